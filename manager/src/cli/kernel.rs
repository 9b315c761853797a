// SPDX-License-Identifier: Apache-2.0
//! What the kernel shares between a container and others, lets its processes use, and is told for it:
//! namespaces, resource limits and sysctls.

use super::process::{list, object};
use clap::Args;
use serde_json::{Map, Value, json};

/// What `--ulimit` calls the limits of setrlimit(2).
const LIMITS: &[&str] = &[
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];
/// The sysctls that each IPC namespace has of its own (ipc_namespaces(7)).
const OF_IPC: &[&str] = &[
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

#[derive(Clone, Debug, Default, Args)]
pub struct Kernel {
    /// Whose processes it sees and may signal: host, or container:ID
    #[arg(long, value_name = "host|container:ID", value_parser = pid)]
    pid: Option<Share>,
    /// Whose System V IPC and POSIX message queues it has: private, host (whose shared memory it has then,
    /// too), or container:ID
    #[arg(long, value_name = "private|host|container:ID", value_parser = share)]
    ipc: Option<Share>,
    /// A kernel parameter of its own namespaces, KEY=VALUE (repeatable)
    #[arg(long, value_name = "KEY=VALUE", value_parser = sysctl)]
    sysctl: Vec<(String, String)>,
    /// A resource limit, such as nofile=1024:2048; -1 for none (repeatable)
    #[arg(long, value_name = "TYPE=SOFT[:HARD]", value_parser = ulimit)]
    ulimit: Vec<Value>,
}

/// With whom a container shares something.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Share {
    Nobody,
    Host,
    Container(String),
}

fn share(text: &str) -> Result<Share, String> {
    match text.split_once(':').unwrap_or((text, "")) {
        ("private", "") => Ok(Share::Nobody),
        ("host", "") => Ok(Share::Host),
        ("container", id) => match crate::names::check_id(id) {
            Ok(()) => Ok(Share::Container(id.to_owned())),
            Err(_) => Err(format!("{id:?} is no container's id")),
        },
        _ => Err("none of private, host, container:ID".into()),
    }
}

fn pid(text: &str) -> Result<Share, String> {
    let share = share(text).ok().filter(|share| *share != Share::Nobody);
    share.ok_or_else(|| "neither host nor container:ID".into())
}

fn sysctl(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("not KEY=VALUE")?;
    let key = key.replace('/', ".");
    let is_own = key
        .strip_prefix("net.")
        .is_some_and(|rest| !rest.is_empty())
        || key
            .strip_prefix("fs.mqueue.")
            .is_some_and(|rest| !rest.is_empty())
        || OF_IPC.contains(&key.as_str());
    match is_own {
        true if !value.is_empty() => Ok((key, value.to_owned())),
        true => Err("its value is empty".into()),
        false => Err(format!(
            "{key:?} is no parameter of a container's own namespaces"
        )),
    }
}

fn ulimit(text: &str) -> Result<Value, String> {
    let (kind, limits) = text.split_once('=').ok_or("not TYPE=SOFT[:HARD]")?;
    if !LIMITS.contains(&kind) {
        return Err(format!("{kind:?} is none of {}", LIMITS.join(", ")));
    }
    let number = |text: &str| match text {
        "-1" => Ok(u64::MAX),
        text => text.parse().map_err(|_| format!("{text:?} is no limit")),
    };
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let (soft, hard) = (number(soft)?, number(hard)?);
    if soft > hard {
        return Err("the soft limit is above the hard one".into());
    }
    let kind = format!("RLIMIT_{}", kind.to_uppercase());
    Ok(json!({"type": kind, "soft": soft, "hard": hard}))
}

impl Kernel {
    /// # Errors
    /// A text that names the option that does not go with the spec, or what in that is not as the OCI
    /// runtime spec has it.
    pub fn change(&self, spec: &mut Map<String, Value>) -> Result<(), String> {
        for (kind, share) in [("pid", &self.pid), ("ipc", &self.ipc)] {
            if let Some(share) = share {
                change_namespace(spec, kind, share)?;
            }
        }
        if self.ipc == Some(Share::Host) {
            share_memory(list(spec, "mounts")?);
        }
        for (key, value) in &self.sysctl {
            let linux = object(spec, "linux")?;
            check_sysctl(list(linux, "namespaces")?, key, value)?;
            object(linux, "sysctl")?.insert(key.clone(), value.as_str().into());
        }
        if !self.ulimit.is_empty() {
            let limits = list(object(spec, "process")?, "rlimits")?;
            for limit in &self.ulimit {
                limits.retain(|old| old["type"] != limit["type"]);
                limits.push(limit.clone());
            }
        }
        Ok(())
    }
}

impl Kernel {
    /// That each sysctl is still the container's own, once its network is known.
    ///
    /// # Errors
    /// A text that names the one that is not.
    pub fn check(&self, spec: &Value) -> Result<(), String> {
        let none = Vec::new();
        let namespaces = spec["linux"]["namespaces"].as_array().unwrap_or(&none);
        let mut sysctls = self.sysctl.iter();
        sysctls.try_for_each(|(key, value)| check_sysctl(namespaces, key, value))
    }
}

fn check_sysctl(namespaces: &[Value], key: &str, value: &str) -> Result<(), String> {
    let kind = match key.starts_with("net.") {
        true => "network",
        false => "ipc",
    };
    if namespaces.iter().any(|it| it["type"] == kind) {
        return Ok(());
    }
    let why = format!("the container has no {kind} namespace of its own");
    Err(format!("--sysctl {key}={value}: {why}"))
}

fn change_namespace(
    spec: &mut Map<String, Value>,
    kind: &str,
    share: &Share,
) -> Result<(), String> {
    let namespaces = list(object(spec, "linux")?, "namespaces")?;
    namespaces.retain(|namespace| namespace["type"] != kind);
    match share {
        Share::Host => {}
        Share::Nobody => namespaces.push(json!({"type": kind})),
        // Where that is, is known when its task is created.
        Share::Container(id) => {
            let path = format!("{}{id}", crate::joining::CONTAINER);
            namespaces.push(json!({"type": kind, "path": path}));
        }
    }
    Ok(())
}

/// The host's, which is in files, too.
fn share_memory(mounts: &mut Vec<Value>) {
    for place in ["/dev/shm", "/dev/mqueue"] {
        mounts.retain(|mount| mount["destination"] != place);
        if std::path::Path::new(place).is_dir() {
            let options = ["rbind", "nosuid", "noexec", "nodev"];
            mounts.push(
                json!({"destination": place, "type": "bind", "source": place, "options": options}),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Map<String, Value> {
        let spec = json!({"linux": {"namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "network"}]}});
        spec.as_object().unwrap().clone()
    }

    #[test]
    fn namespaces_are_shared_as_asked() {
        let mut changed = spec();
        let kernel = Kernel {
            pid: pid("host").ok(),
            ipc: share("container:x").ok(),
            ..Default::default()
        };
        kernel.change(&mut changed).unwrap();
        let namespaces = json!([{"type": "network"}, {"type": "ipc", "path": "container:x"}]);
        assert_eq!(changed["linux"]["namespaces"], namespaces);
        for text in ["", "x", "container:", "container:../x", "private", "host:x"] {
            assert!(pid(text).is_err(), "{text}");
        }
        assert_eq!(share("private"), Ok(Share::Nobody));
    }

    #[test]
    fn sysctls_are_those_of_its_namespaces() {
        for text in [
            "net.core.somaxconn",
            "net.core.somaxconn=",
            "net.=1",
            "kernel.panic=1",
            "vm.swappiness=1",
            "kernel.hostname=x",
            "=1",
            "",
        ] {
            assert!(sysctl(text).is_err(), "{text}");
        }
        let kernel = Kernel {
            sysctl: vec![
                sysctl("net/core/somaxconn=7").unwrap(),
                sysctl("kernel.msgmax=9").unwrap(),
            ],
            ..Default::default()
        };
        let mut changed = spec();
        kernel.change(&mut changed).unwrap();
        let expected = json!({"net.core.somaxconn": "7", "kernel.msgmax": "9"});
        assert_eq!(changed["linux"]["sysctl"], expected);
        let why = kernel.change(&mut Map::new()).unwrap_err();
        assert!(why.contains("--sysctl net.core.somaxconn=7"), "{why}");
    }

    #[test]
    fn limits_replace_those_of_the_same_type() {
        let kernel = Kernel {
            ulimit: vec![ulimit("nofile=5:9").unwrap(), ulimit("core=-1").unwrap()],
            ..Default::default()
        };
        let mut changed = spec();
        changed.insert(
            "process".into(),
            json!({"rlimits": [{"type": "RLIMIT_NOFILE"}]}),
        );
        kernel.change(&mut changed).unwrap();
        let all = u64::MAX;
        let expected = json!([{"type": "RLIMIT_NOFILE", "soft": 5, "hard": 9},
                              {"type": "RLIMIT_CORE", "soft": all, "hard": all}]);
        assert_eq!(changed["process"]["rlimits"], expected);
        for text in [
            "",
            "nofile",
            "nofile=",
            "nofile=x",
            "nofile=9:5",
            "nofile=-1:5",
            "files=5",
            "nofile=-2",
        ] {
            assert!(ulimit(text).is_err(), "{text}");
        }
    }
}
