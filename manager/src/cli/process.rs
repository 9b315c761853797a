// SPDX-License-Identifier: Apache-2.0
//! The process of a container, or one more in it: what the command line changes in what an OCI spec
//! says. All else of that stays as it is, also what we know nothing of.

use super::env_file::{self, Variables};
use super::users::{self, Asked, Users};
use clap::Args;
use serde_json::{Map, Value, json};

/// The capabilities of a container that is not privileged; Docker's and containerd's choice.
pub const USUAL: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// All others that there are (capabilities(7)).
const UNUSUAL: &[&str] = &[
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_DAC_READ_SEARCH",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_NET_ADMIN",
    "CAP_NET_BROADCAST",
    "CAP_PERFMON",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
];

/// What `--cap-add` and `--cap-drop` call them all.
const ALL: &str = "CAP_ALL";

/// How a process differs from the container's own.
#[derive(Clone, Debug, Default, PartialEq, Args)]
pub struct ProcessWishes {
    /// An environment variable, KEY=VALUE (repeatable)
    #[arg(short, long = "env", value_name = "KEY=VALUE", value_parser = variable)]
    pub env: Vec<String>,
    /// A file of environment variables: KEY=VALUE, or KEY for ours, one a line (repeatable)
    #[arg(long, value_name = "FILE", value_parser = env_file::read)]
    pub env_file: Vec<Variables>,
    /// The working directory
    #[arg(short, long, value_parser = directory)]
    pub workdir: Option<String>,
    /// The user, USER[:GROUP], each a number or a name of the container's; the group of a number is the
    /// same number
    #[arg(short, long, value_name = "USER[:GROUP]", value_parser = users::asked)]
    pub user: Option<Asked>,
    /// A capability to add, such as NET_ADMIN, or ALL (repeatable)
    #[arg(long, value_name = "CAPABILITY", value_parser = capability)]
    pub cap_add: Vec<String>,
    /// A capability to take away, or ALL (repeatable)
    #[arg(long, value_name = "CAPABILITY", value_parser = capability)]
    pub cap_drop: Vec<String>,
}

fn variable(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((key, _)) if !key.is_empty() => Ok(text.to_owned()),
        _ => Err("not KEY=VALUE".into()),
    }
}

fn directory(text: &str) -> Result<String, String> {
    let path = text.starts_with('/').then(|| text.to_owned());
    path.ok_or_else(|| "not an absolute path".into())
}

/// Its whole name, of `net_raw` too.
fn capability(text: &str) -> Result<String, String> {
    let name = text.to_uppercase();
    let name = if name.starts_with("CAP_") {
        name
    } else {
        format!("CAP_{name}")
    };
    let is_one = name == ALL || USUAL.contains(&name.as_str()) || UNUSUAL.contains(&name.as_str());
    let none = || "no capability: see capabilities(7)".into();
    is_one.then_some(name).ok_or_else(none)
}

impl ProcessWishes {
    /// Changes `process`, a `process` of the OCI runtime spec, as wished: its command if one is
    /// given, and that it has a terminal if it shall. Names are those of `users`.
    ///
    /// # Errors
    /// A text that names what in it is not as the spec has it.
    pub fn change(
        &self,
        process: &mut Value,
        tty: bool,
        command: &[String],
        users: &Users,
    ) -> Result<(), String> {
        if *self == Self::default() && !tty && command.is_empty() {
            return Ok(());
        }
        let Value::Object(process) = process else {
            return Err("its spec has no process".into());
        };
        if !command.is_empty() {
            process.insert("args".into(), json!(command));
            process.remove("commandLine");
        }
        if tty {
            process.insert("terminal".into(), true.into());
        }
        if let Some(cwd) = &self.workdir {
            process.insert("cwd".into(), cwd.as_str().into());
        }
        if let Some(asked) = &self.user {
            let found = users.find(asked).map_err(|e| format!("--user: {e}"))?;
            let user = object(process, "user")?;
            // Those and that were the other's.
            user.remove("additionalGids");
            user.remove("username");
            if let Value::Object(found) = found.spec() {
                user.extend(found);
            }
        }
        self.change_env(process, tty)?;
        if !self.cap_add.is_empty() || !self.cap_drop.is_empty() {
            self.change_capabilities(object(process, "capabilities")?)?;
        }
        Ok(())
    }

    fn change_env(&self, process: &mut Map<String, Value>, tty: bool) -> Result<(), String> {
        if self.env.is_empty() && self.env_file.is_empty() && !tty {
            return Ok(());
        }
        let env = list(process, "env")?;
        let of_files = self.env_file.iter().flat_map(|file| &file.0);
        for variable in of_files.chain(&self.env) {
            let begin = variable.split_inclusive('=').next().unwrap_or(variable);
            env.retain(|old| !old.as_str().is_some_and(|old| old.starts_with(begin)));
            env.push(variable.as_str().into());
        }
        let mut texts = env.iter().filter_map(Value::as_str);
        if tty && !texts.any(|variable| variable.starts_with("TERM=")) {
            env.push("TERM=xterm".into());
        }
        Ok(())
    }

    fn change_capabilities(&self, sets: &mut Map<String, Value>) -> Result<(), String> {
        let names = |all: &[String]| all.iter().any(|name| name == ALL);
        let (add_all, drop_all) = (names(&self.cap_add), names(&self.cap_drop));
        let is_dropped = |name: &str| self.cap_drop.iter().any(|dropped| dropped == name);
        let every = USUAL.iter().chain(UNUSUAL).copied();
        let more = every.filter(|name| add_all && !is_dropped(name));
        let named = self.cap_add.iter().map(String::as_str);
        let added: Vec<&str> = named.filter(|&name| name != ALL).chain(more).collect();
        for set in [
            "bounding",
            "effective",
            "permitted",
            "inheritable",
            "ambient",
        ] {
            let is_for_all = !["inheritable", "ambient"].contains(&set);
            if !is_for_all && !sets.contains_key(set) {
                continue;
            }
            let set = list(sets, set)?;
            set.retain(|name| !drop_all && !name.as_str().is_some_and(is_dropped));
            for &name in &added {
                if is_for_all && !set.iter().any(|old| old == name) {
                    set.push(name.into());
                }
            }
        }
        Ok(())
    }
}

/// What is under `key`, made if it is not there.
///
/// # Errors
/// A text that names the key, if it is something else.
pub fn object<'a>(
    of: &'a mut Map<String, Value>,
    key: &str,
) -> Result<&'a mut Map<String, Value>, String> {
    let there = of.entry(key).or_insert(Value::Null);
    if there.is_null() {
        *there = json!({});
    }
    let object = there.as_object_mut();
    object.ok_or_else(|| format!("its spec's {key} is no object"))
}

/// What is under `key`, made if it is not there.
///
/// # Errors
/// A text that names the key, if it is something else.
pub fn list<'a>(of: &'a mut Map<String, Value>, key: &str) -> Result<&'a mut Vec<Value>, String> {
    let there = of.entry(key).or_insert(Value::Null);
    if there.is_null() {
        *there = json!([]);
    }
    let list = there.as_array_mut();
    list.ok_or_else(|| format!("its spec's {key} is no list"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn what_is_not_wished_stays_also_what_nobody_knows() {
        let old = json!({
            "terminal": false, "args": ["sleep"], "cwd": "/tmp", "env": ["FOO=bar"],
            "user": {"uid": 1000, "gid": 1000, "additionalGids": [7], "umask": 18},
            "capabilities": {}, "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 77, "soft": 77}],
            "oomScoreAdj": 5, "scheduler": {"policy": "SCHED_BATCH"}, "newer": {"than": "we"},
        });
        let mut process = old.clone();
        let (none, no_users) = (ProcessWishes::default(), Users::default());
        none.change(&mut process, false, &strings(&["id", "-u"]), &no_users)
            .unwrap();
        let mut expected = old.clone();
        expected["args"] = json!(["id", "-u"]);
        assert_eq!(process, expected);
        let wishes = ProcessWishes {
            env: strings(&["FOO=x=y", "A="]),
            workdir: Some("/".into()),
            user: Some(Asked::Ids(5, 6)),
            ..none
        };
        wishes.change(&mut process, true, &[], &no_users).unwrap();
        expected["terminal"] = true.into();
        expected["cwd"] = "/".into();
        expected["env"] = json!(["FOO=x=y", "A=", "TERM=xterm"]);
        expected["user"] = json!({"uid": 5, "gid": 6, "umask": 18});
        assert_eq!(process, expected);
    }

    #[test]
    fn what_is_no_spec_is_named() {
        let wishes = ProcessWishes {
            env: strings(&["A=b"]),
            user: Some(Asked::Ids(0, 0)),
            cap_add: strings(&["CAP_KILL"]),
            ..Default::default()
        };
        for (mut process, word) in [
            (json!(null), "process"),
            (json!({"env": "A=b"}), "env"),
            (json!({"user": 5}), "user"),
            (json!({"capabilities": []}), "capabilities"),
            (json!({"capabilities": {"bounding": 5}}), "bounding"),
        ] {
            let none = Users::default();
            let error = wishes.change(&mut process, false, &[], &none).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn capabilities_as_docker_counts_them() {
        let changed = |add: &[&str], drop: &[&str]| {
            let wishes = ProcessWishes {
                cap_add: add.iter().map(|it| capability(it).unwrap()).collect(),
                cap_drop: drop.iter().map(|it| capability(it).unwrap()).collect(),
                ..Default::default()
            };
            let old = json!({"bounding": ["CAP_CHOWN", "CAP_KILL"], "ambient": ["CAP_KILL"]});
            let mut process = json!({"capabilities": old});
            wishes
                .change(&mut process, false, &[], &Users::default())
                .unwrap();
            process["capabilities"].clone()
        };
        let sets = changed(&["bpf"], &["KILL"]);
        assert_eq!(sets["bounding"], json!(["CAP_CHOWN", "CAP_BPF"]));
        assert_eq!(sets["effective"], json!(["CAP_BPF"]));
        assert_eq!(sets["ambient"], json!([]));
        assert_eq!(sets["inheritable"], json!(null));
        let sets = changed(&["cap_kill"], &["all"]);
        assert_eq!(sets["bounding"], json!(["CAP_KILL"]));
        let sets = changed(&["ALL"], &["KILL"]);
        assert_eq!(sets["bounding"].as_array().unwrap().len(), 40);
    }

    #[test]
    fn values_that_mean_nothing_are_refused() {
        for text in ["NET_RAWW", "", "CAP_", "CAP_CAP_KILL"] {
            assert!(capability(text).is_err(), "{text}");
        }
        assert!(variable("A").is_err() && variable("=b").is_err() && directory("tmp").is_err());
    }
}
