// SPDX-License-Identifier: Apache-2.0
//! What the helper is asked for, out of what a config.json and an exec's OCI process say; and whether it
//! may be asked at all. Whatever is not known here to the last detail is the OCI runtime's to do: a field
//! that nobody here knows too.

use nix::sched::CloneFlags;
use protos::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::SystemTime;

/// All that a helper does.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Files to write itself into, `cgroup.procs` of each hierarchy.
    pub cgroups: Vec<PathBuf>,
    /// Those of init's that it joins (`CLONE_NEW*`).
    pub namespaces: i32,
    pub oom_score_adj: Option<i64>,
    pub keyring: Option<String>,
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub cwd: String,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// Its streams become the user's; with this also the group's.
    pub streams_have_group: bool,
    pub no_new_privs: bool,
    pub capabilities: Capabilities,
    pub limits: Vec<Limit>,
}

/// Sets of capabilities, a bit for each.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Capabilities {
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

/// Of a resource, by the kernel's number (getrlimit(2)).
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Limit {
    pub resource: u32,
    pub soft: u64,
    pub hard: u64,
}

/// The process that it has made: its pid, and a time when that was not there yet.
#[derive(Debug, Serialize, Deserialize)]
pub struct Made {
    pub pid: u32,
    before: (i64, i32),
}

impl Made {
    pub fn new(pid: u32, before: SystemTime) -> Self {
        let Timestamp { seconds, nanos } = before.into();
        let before = (seconds, nanos);
        Self { pid, before }
    }

    pub fn at(&self) -> Timestamp {
        let (seconds, nanos) = self.before;
        Timestamp { seconds, nanos }
    }
}

/// What a container's config.json says of its execs.
#[derive(Clone, Debug, PartialEq)]
pub struct Terms {
    namespaces: i32,
    oom_score_adj: Option<i64>,
    has_limits: bool,
}

/// What is known here, of `linux` and of an OCI process; of these the second ones only if they are empty.
const LINUX: [&str; 8] = [
    "cgroupsPath",
    "devices",
    "maskedPaths",
    "namespaces",
    "readonlyPaths",
    "resources",
    "rootfsPropagation",
    "sysctl",
];
const NOT_LINUX: [&str; 4] = ["gidMappings", "mountLabel", "seccomp", "uidMappings"];
const PROCESS: [&str; 9] = [
    "args",
    "capabilities",
    "consoleSize",
    "cwd",
    "env",
    "noNewPrivileges",
    "oomScoreAdj",
    "rlimits",
    "user",
];
const NOT_PROCESS: [&str; 3] = ["apparmorProfile", "selinuxLabel", "terminal"];
const USER: [&str; 3] = ["additionalGids", "gid", "uid"];
/// In the kernel's order (linux/capability.h).
#[rustfmt::skip]
const CAPABILITIES: [&str; 41] = [
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
];
/// In the kernel's order (asm-generic/resource.h).
const LIMITS: [&str; 16] = [
    "CPU",
    "FSIZE",
    "DATA",
    "STACK",
    "CORE",
    "RSS",
    "NPROC",
    "NOFILE",
    "MEMLOCK",
    "AS",
    "LOCKS",
    "SIGPENDING",
    "MSGQUEUE",
    "NICE",
    "RTPRIO",
    "RTTIME",
];

/// Why the OCI runtime is asked: the field.
type Result<T> = std::result::Result<T, String>;

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// The first field of `object` that is not one of `known`, or that should be empty and is not.
fn only(object: &Map<String, Value>, known: &[&str], empty: &[&str], what: &str) -> Result<()> {
    let is_known =
        |key: &str, value: &Value| known.contains(&key) || is_empty(value) && empty.contains(&key);
    let other = object.iter().find(|(key, value)| !is_known(key, value));
    other.map_or(Ok(()), |(key, _)| Err(format!("{what}.{key}")))
}

fn object<'a>(value: &'a Value, what: &str) -> Result<&'a Map<String, Value>> {
    value.as_object().ok_or_else(|| what.to_owned())
}

/// A list of texts; none is an empty one.
fn texts(value: &Value, what: &str) -> Result<Vec<String>> {
    if value.is_null() {
        return Ok(Vec::new());
    }
    let list: Option<Vec<String>> = value.as_array().and_then(|list| {
        list.iter()
            .map(|one| one.as_str().map(str::to_owned))
            .collect()
    });
    let list = list.filter(|list| list.iter().all(|text| !text.contains('\0')));
    list.ok_or_else(|| what.to_owned())
}

fn number(value: &Value, what: &str) -> Result<u32> {
    let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
    number.ok_or_else(|| what.to_owned())
}

/// The kernel's number of `<prefix><name>`.
fn index(name: &str, prefix: &str, names: &[&str]) -> Result<usize> {
    let bare = name.strip_prefix(prefix);
    let index = bare.and_then(|bare| names.iter().position(|known| *known == bare));
    index.ok_or_else(|| name.to_owned())
}

impl Terms {
    /// Of this config.json.
    ///
    /// # Errors
    /// The field that only the OCI runtime sees to.
    pub fn of(config: &Value) -> Result<Self> {
        let (linux, process) = (&config["linux"], &config["process"]);
        only(object(linux, "linux")?, &LINUX, &NOT_LINUX, "linux")?;
        // A terminal of init's is no exec's.
        let known: Vec<&str> = PROCESS.into_iter().chain(["terminal"]).collect();
        only(object(process, "process")?, &known, &NOT_PROCESS, "process")?;
        let mut namespaces = CloneFlags::empty();
        for namespace in linux["namespaces"].as_array().into_iter().flatten() {
            namespaces |= match namespace["type"].as_str() {
                Some("pid") => CloneFlags::CLONE_NEWPID,
                Some("mount") => CloneFlags::CLONE_NEWNS,
                Some("ipc") => CloneFlags::CLONE_NEWIPC,
                Some("uts") => CloneFlags::CLONE_NEWUTS,
                Some("network") => CloneFlags::CLONE_NEWNET,
                Some("cgroup") => CloneFlags::CLONE_NEWCGROUP,
                other => return Err(format!("linux.namespaces: {other:?}")),
            };
        }
        // What a failed exec leaves is found by its own pid namespace.
        if !namespaces.contains(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS) {
            return Err("linux.namespaces".into());
        }
        Ok(Self {
            namespaces: namespaces.bits(),
            oom_score_adj: process["oomScoreAdj"].as_i64(),
            has_limits: !is_empty(&process["rlimits"]),
        })
    }

    /// What to ask for, for an exec of this OCI process.
    ///
    /// # Errors
    /// The field that only the OCI runtime sees to.
    pub fn request(&self, process: &Value) -> Result<Request> {
        only(
            object(process, "process")?,
            &PROCESS,
            &NOT_PROCESS,
            "process",
        )?;
        let user = object(&process["user"], "user")?;
        only(user, &USER, &["umask", "username"], "user")?;
        let args = texts(&process["args"], "args")?;
        if args.first().is_none_or(String::is_empty) {
            return Err("args".into());
        }
        let env = texts(&process["env"], "env")?;
        let mut names = BTreeSet::new();
        let once = |one: &String| matches!(one.split_once('='), Some((name, _)) if !name.is_empty() && names.insert(name.to_owned()));
        // An empty HOME is none to some.
        if !env.iter().all(once) || env.iter().any(|one| one == "HOME=") {
            return Err("env".into());
        }
        let cwd = process["cwd"]
            .as_str()
            .filter(|cwd| cwd.starts_with('/') && !cwd.contains('\0'));
        let limits = limits(&process["rlimits"])?;
        if limits.is_empty() && self.has_limits {
            return Err("rlimits".into());
        }
        let adj = process["oomScoreAdj"].as_i64();
        if adj != self.oom_score_adj {
            return Err("oomScoreAdj".into());
        }
        let groups = process["user"]["additionalGids"].as_array();
        let groups = groups.into_iter().flatten();
        Ok(Request {
            cgroups: Vec::new(),
            namespaces: self.namespaces,
            oom_score_adj: adj,
            keyring: None,
            args,
            env,
            cwd: cwd.ok_or("cwd")?.to_owned(),
            uid: number(&process["user"]["uid"], "user.uid")?,
            gid: number(&process["user"]["gid"], "user.gid")?,
            groups: groups
                .map(|gid| number(gid, "user.additionalGids"))
                .collect::<Result<_>>()?,
            streams_have_group: false,
            no_new_privs: process["noNewPrivileges"].as_bool().unwrap_or_default(),
            capabilities: capabilities(&process["capabilities"])?,
            limits,
        })
    }
}

fn capabilities(value: &Value) -> Result<Capabilities> {
    let sets = object(value, "capabilities")?;
    let names = [
        "bounding",
        "effective",
        "permitted",
        "inheritable",
        "ambient",
    ];
    only(sets, &names, &[], "capabilities")?;
    let set = |name: &str| -> Result<u64> {
        let list = texts(&value[name], name)?;
        list.iter().try_fold(0, |set, one| {
            Ok(set | 1 << index(one, "CAP_", &CAPABILITIES)?)
        })
    };
    Ok(Capabilities {
        bounding: set("bounding")?,
        effective: set("effective")?,
        permitted: set("permitted")?,
        inheritable: set("inheritable")?,
        ambient: set("ambient")?,
    })
}

fn limits(value: &Value) -> Result<Vec<Limit>> {
    let mut limits: Vec<Limit> = Vec::new();
    for limit in value.as_array().into_iter().flatten() {
        let name = limit["type"].as_str().unwrap_or_default();
        let resource = index(name, "RLIMIT_", &LIMITS)? as u32;
        let (soft, hard) = (limit["soft"].as_u64(), limit["hard"].as_u64());
        let (soft, hard) = soft.zip(hard).ok_or_else(|| name.to_owned())?;
        if limits.iter().any(|other| other.resource == resource) {
            return Err(name.to_owned());
        }
        limits.push(Limit {
            resource,
            soft,
            hard,
        });
    }
    Ok(limits)
}

#[cfg(test)]
mod tests;
