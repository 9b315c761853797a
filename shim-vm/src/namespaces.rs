// SPDX-License-Identifier: Apache-2.0
//! The namespaces of a container: those of the guest's that it joins, and its network, which is the
//! host's to make.

use crate::network::Where;
use crate::spec::Refusal;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::PathBuf;

/// How containerd's CRI marks a pod's containers, of which the first is a `sandbox`.
const KIND: &str = "io.kubernetes.cri.container-type";
/// And how CRI-O does. It pins namespaces of the host to files, which all containers are to join, the
/// first one, too: these are the VM's own instead.
const CRIO_KIND: &str = "io.kubernetes.cri-o.ContainerType";
const PINNED: [&str; 2] = ["ipc", "uts"];
const USER: &str = "user";
/// The namespaces that a pod has for itself, unless it wants the host's, and how Kubernetes calls that.
pub const HOSTS: [(&str, &str); 3] = [
    ("network", "hostNetwork"),
    ("pid", "hostPID"),
    ("ipc", "hostIPC"),
];

/// What the containers of a VM have in common.
#[derive(Debug, Default)]
pub struct Common {
    pub anchor: Option<Anchor>,
    /// Mounts of config.json.
    pub mounts: Vec<Value>,
}

/// The process whose namespaces others may join: that of the VM's first container, or, in a pod's
/// sandbox, the guest's own first.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Anchor {
    /// As the host knows it: the VM.
    pub host: u32,
    pub guest: u32,
    /// Another that has the pid namespace to be joined; 0: nobody has.
    #[serde(default)]
    pub pids: Option<u32>,
}

/// Takes the network out, which is the guest's, made like that of the namespace that comes back, and
/// names the others as the guest knows them.
///
/// # Errors
/// If it wants the host's, or joins one that is not in the VM.
pub fn take(spec: &mut Value, anchor: Option<Anchor>) -> Result<Where, Refusal> {
    refuse_hosts(spec)?;
    let crio = spec["annotations"][CRIO_KIND].as_str().map(str::to_owned);
    let mut network = Where::Host;
    let Some(list) = spec["linux"]["namespaces"].as_array_mut() else {
        return Ok(network);
    };
    for namespace in list.iter_mut() {
        let path = namespace["path"].as_str().unwrap_or_default();
        let kind = namespace["type"].as_str().unwrap_or_default();
        match (kind, path) {
            ("network", "") => network = Where::Own,
            ("network", path) => network = Where::At(PathBuf::from(path)),
            (_, "") => {}
            (USER, path) => {
                let own = user_in_guest(path, anchor)?;
                namespace["path"] = own.map_or(Value::Null, Value::from);
            }
            (kind, path) if crio.is_some() && is_pinned(kind, path) => {
                let own = anchor.filter(|it| crio.as_deref() != Some("sandbox") && it.guest != 0);
                namespace["path"] = own.map_or(Value::Null, |it| in_own(it, kind).into());
            }
            (kind, path) => match in_guest(path, anchor) {
                Some(path) => namespace["path"] = path.into(),
                None => return Err(joining(kind, path)),
            },
        }
    }
    list.retain(|namespace| namespace["type"] != "network");
    for namespace in list.iter_mut().filter_map(Value::as_object_mut) {
        namespace.retain(|_, value| !value.is_null());
    }
    Ok(network)
}

/// A pod's first container without a namespace wants the host's, of which a VM has no part.
fn refuse_hosts(spec: &Value) -> Result<(), Refusal> {
    let annotations = &spec["annotations"];
    if annotations[KIND] != "sandbox" && annotations[CRIO_KIND] != "sandbox" {
        return Ok(());
    }
    let list = spec["linux"]["namespaces"].as_array();
    let has = |kind: &str| list.is_some_and(|list| list.iter().any(|it| it["type"] == kind));
    match HOSTS.iter().find(|(kind, _)| !has(kind)) {
        Some((_, name)) => Err(Refusal::Unimplemented((*name).to_owned())),
        None => Ok(()),
    }
}

fn joining(kind: &str, path: &str) -> Refusal {
    Refusal::Unimplemented(format!("joining the {kind} namespace {path}"))
}

/// The user namespace that is at `path` on the host, as the guest knows it; `None`: the container gets one of
/// its own, by its maps. containerd pins that of a pod to a file, which all of the pod's containers are to join:
/// the first has its own instead, and the others have that. A pod without a first container has none.
///
/// # Errors
/// If it is not in the VM.
fn user_in_guest(path: &str, anchor: Option<Anchor>) -> Result<Option<String>, Refusal> {
    let is_pinned = !path.starts_with("/proc/");
    match anchor {
        None if is_pinned => Ok(None),
        Some(Anchor { pids: Some(_), .. }) => Ok(None),
        Some(own) if is_pinned && own.guest != 0 => Ok(Some(in_own(own, USER))),
        anchor => match in_guest(path, anchor) {
            Some(path) => Ok(Some(path)),
            None => Err(joining(USER, path)),
        },
    }
}

fn is_pinned(kind: &str, path: &str) -> bool {
    PINNED.contains(&kind) && !path.starts_with("/proc/")
}

/// A namespace of the anchor's, as the guest knows it.
fn in_own(anchor: Anchor, kind: &str) -> String {
    format!("/proc/{}/ns/{kind}", anchor.guest)
}

/// The same, by its path on the host.
fn in_guest(path: &str, anchor: Option<Anchor>) -> Option<String> {
    let Anchor { host, guest, pids } = anchor?;
    let (pid, name) = path.strip_prefix("/proc/")?.split_once("/ns/")?;
    let guest = pids.filter(|_| name == "pid").unwrap_or(guest);
    (pid.parse() == Ok(host) && guest != 0).then(|| format!("/proc/{guest}/ns/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn joins(path: &str, pids: Option<u32>) -> Result<String, Refusal> {
        let anchor = Some(Anchor {
            host: 400,
            guest: 70,
            pids,
        });
        let kind = path.rsplit('/').next().unwrap_or_default();
        let namespaces = json!([{"type": kind, "path": path}, {"type": "mount"}]);
        let mut spec = json!({"linux": {"namespaces": namespaces}});
        take(&mut spec, anchor)?;
        let path = spec["linux"]["namespaces"][0]["path"].as_str();
        Ok(path.unwrap_or_default().to_owned())
    }

    #[test]
    fn the_namespaces_of_the_anchor_can_be_joined() {
        assert_eq!(joins("/proc/400/ns/ipc", None).unwrap(), "/proc/70/ns/ipc");
        assert_eq!(joins("/proc/400/ns/pid", None).unwrap(), "/proc/70/ns/pid");
        assert_eq!(
            joins("/proc/400/ns/pid", Some(80)).unwrap(),
            "/proc/80/ns/pid"
        );
        assert_eq!(
            joins("/proc/400/ns/uts", Some(0)).unwrap(),
            "/proc/70/ns/uts"
        );
        assert!(joins("/proc/400/ns/pid", Some(0)).is_err(), "nobody has it");
        assert!(joins("/proc/401/ns/ipc", None).is_err());
        assert!(joins("/var/run/ipcns/x", None).is_err());
    }

    /// CRI-O's pins are the host's: a pod's first container has namespaces of its own in the VM, and the
    /// others have those.
    #[test]
    fn what_crio_has_pinned_is_the_vms_own() {
        let taken = |kind: &str, anchor| {
            let pin = |name: &str| json!({"type": name, "path": format!("/var/run/{name}ns/1")});
            let list = json!([pin("network"), pin("ipc"), pin("uts"), {"type": "pid"}]);
            let mut spec = json!({"annotations": {CRIO_KIND: kind}, "linux": {"namespaces": list}});
            let network = take(&mut spec, anchor).unwrap();
            assert_eq!(network, Where::At("/var/run/networkns/1".into()));
            spec["linux"]["namespaces"].clone()
        };
        let own = json!([{"type": "ipc"}, {"type": "uts"}, {"type": "pid"}]);
        assert_eq!(taken("sandbox", None), own);
        let anchor = Some(Anchor {
            host: 400,
            guest: 70,
            pids: None,
        });
        let joined = json!([
            {"type": "ipc", "path": "/proc/70/ns/ipc"},
            {"type": "uts", "path": "/proc/70/ns/uts"},
            {"type": "pid"},
        ]);
        assert_eq!(taken("container", anchor), joined);
        let wants = json!({"annotations": {CRIO_KIND: "sandbox"}, "linux": {"namespaces": []}});
        assert!(take(&mut wants.clone(), None).is_err(), "hostNetwork");
    }

    /// A pod's containers have one user namespace, which is the VM's and not the host's.
    #[test]
    fn a_user_namespace_that_is_pinned_is_the_vms_own() {
        let anchor = |pids| {
            let (host, guest) = (400, 70);
            Some(Anchor { host, guest, pids })
        };
        let pinned = "/run/containerd/pinned-namespaces/user";
        let own = Ok(Some("/proc/70/ns/user".to_owned()));
        assert_eq!(user_in_guest(pinned, None), Ok(None));
        assert_eq!(user_in_guest(pinned, anchor(None)), own);
        assert_eq!(user_in_guest("/proc/400/ns/user", anchor(None)), own);
        for path in [pinned, "/proc/400/ns/user"] {
            assert_eq!(user_in_guest(path, anchor(Some(0))), Ok(None));
        }
        let other = "/proc/401/ns/user";
        let why = user_in_guest(other, anchor(None)).unwrap_err().to_string();
        assert!(
            why.starts_with("joining the user namespace /proc/401"),
            "{why}"
        );
        assert!(user_in_guest(other, None).is_err());
    }

    #[test]
    fn a_pod_that_wants_the_hosts_is_refused_by_name() {
        let refused = |left: &[&str]| {
            let list: Vec<Value> = left.iter().map(|kind| json!({"type": kind})).collect();
            let mut spec = json!({"annotations": {KIND: "sandbox"}, "linux": {"namespaces": list}});
            take(&mut spec, None).err().map(|why| why.to_string())
        };
        assert_eq!(refused(&["network", "pid", "ipc"]), None);
        for (left, name) in [
            (["pid", "ipc"], "hostNetwork"),
            (["network", "ipc"], "hostPID"),
            (["network", "pid"], "hostIPC"),
        ] {
            let why = refused(&left).unwrap();
            assert!(
                why.starts_with(&format!("{name}: not implemented")),
                "{why}"
            );
        }
        let mut plain = json!({"linux": {"namespaces": []}});
        assert_eq!(take(&mut plain, None), Ok(Where::Host));
    }
}
