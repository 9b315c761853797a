//! A container's config.json: what of it the host must see to, and what of it the guest gets.
//!
//! The guest gets every field as it is but those that name something of the host's: the root
//! filesystem, the sources of bind mounts, the network namespace, block devices and swap, and the labels
//! of security modules that the guest does not have.

use crate::config::Wanted;
use crate::devices;
use crate::hooks::Hooks;
use crate::limits::Place;
use crate::network::Where;
use crate::points::{self, Point};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use task::json;

/// Every runtime of version 1 takes it.
const OCI_VERSION: &str = "1.0.2";

/// A bind mount of the host's, to be shown to the guest.
#[derive(Debug, PartialEq)]
pub struct Volume {
    pub source: PathBuf,
    pub readonly: bool,
    /// What the host mounts in it later appears in it.
    pub follows: bool,
    /// Without what else is mounted in it.
    pub alone: bool,
    /// What processes share there is memory, which must be the guest's own.
    pub memory: bool,
    /// Its place among the mounts.
    mount: usize,
}

/// A config.json, taken apart.
#[derive(Debug)]
pub struct Translated {
    /// For the guest, but for the sources of its volumes.
    spec: Value,
    /// The root filesystem, when containerd gives no mounts for one; relative to the bundle.
    pub root: PathBuf,
    /// What must be in the root filesystem, if it can't be written to.
    pub points: Option<Vec<Point>>,
    pub volumes: Vec<Volume>,
    pub network: Where,
    /// Of the network; the guest has but one.
    pub sysctls: HashMap<String, String>,
    pub hooks: Hooks,
    pub wanted: Wanted,
    /// On the host.
    pub place: Place,
}

impl Translated {
    /// The guest's config.json; `sources` are the guest's paths of the volumes, in their order.
    pub fn config(&self, sources: &[String]) -> Vec<u8> {
        let mut spec = self.spec.clone();
        for (volume, source) in self.volumes.iter().zip(sources) {
            spec["mounts"][volume.mount]["source"] = source.as_str().into();
        }
        spec.to_string().into_bytes()
    }
}

/// Why a config.json can't be followed in a VM.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    #[error("config.json: {0}")]
    Broken(String),
    #[error("{0}: not implemented for containers in a VM")]
    Unimplemented(String),
}

/// The process whose namespaces others may join: that of the VM's first container.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Anchor {
    /// As the host knows it: the VM.
    pub host: u32,
    pub guest: u32,
}

/// Translates the config.json of container `id`, for a VM with `anchor` in it.
///
/// # Errors
/// If it is none, or asks for what a VM can't give.
pub fn translate(id: &str, config: &[u8], anchor: Option<Anchor>) -> Result<Translated, Refusal> {
    let mut spec: Value = json::read_first(config).map_err(|e| Refusal::Broken(e.to_string()))?;
    are_objects(&spec)?;
    let hooks = Hooks::take(&mut spec)?;
    let root = spec["root"]["path"].as_str().unwrap_or("rootfs").into();
    if !spec["root"].is_object() {
        return Err(Refusal::Broken("no root".into()));
    }
    spec["root"]["path"] = protos::places::rootfs(id).into();
    // The guest's runtime may be older than the host's, and refuses what it has not heard of.
    if spec["ociVersion"]
        .as_str()
        .is_some_and(|version| version.starts_with("1."))
    {
        spec["ociVersion"] = OCI_VERSION.into();
    }
    let readonly = spec["root"]["readonly"] == true;
    devices::check(&mut spec)?;
    let points = readonly.then(|| points::of(&spec));
    let volumes = volumes(&spec);
    let network = namespaces(&mut spec, anchor)?;
    let sysctls = network_sysctls(&mut spec);
    let wanted = wanted(&spec);
    let place = Place::of(&spec, id).map_err(Refusal::Broken)?;
    take_what_is_the_hosts(&mut spec["linux"]["resources"]);
    for (part, label) in [
        ("process", "apparmorProfile"),
        ("process", "selinuxLabel"),
        ("linux", "mountLabel"),
    ] {
        if let Some(part) = spec[part].as_object_mut() {
            part.remove(label);
        }
    }
    if let Some(path) = spec["linux"]["cgroupsPath"].as_str() {
        spec["linux"]["cgroupsPath"] = cgroup(path, id).into();
    }
    Ok(Translated {
        spec,
        root,
        points,
        volumes,
        network,
        sysctls,
        hooks,
        wanted,
        place,
    })
}

/// Of a container's resources: a guest has neither the host's block devices nor swap.
pub fn take_what_is_the_hosts(resources: &mut Value) {
    for (part, name) in [("", "blockIO"), ("/memory", "swap")] {
        if let Some(part) = resources.pointer_mut(part).and_then(Value::as_object_mut) {
            part.remove(name);
        }
    }
}

/// What parts are put into must take them.
fn are_objects(spec: &Value) -> Result<(), Refusal> {
    if !spec.is_object() {
        return Err(Refusal::Broken("is no object".into()));
    }
    let parts = ["root", "process", "linux", "hooks"];
    let other = |part: &&&str| !matches!(spec[**part], Value::Null | Value::Object(_));
    match parts.iter().find(other) {
        Some(part) => Err(Refusal::Broken(format!("{part}: is no object"))),
        None => Ok(()),
    }
}

/// Without a source of the host's, a mount has nothing of it.
fn volumes(spec: &Value) -> Vec<Volume> {
    let mut volumes = Vec::new();
    let mounts = spec["mounts"].as_array();
    for (place, mount) in mounts.into_iter().flatten().enumerate() {
        let options: Vec<&str> = mount["options"]
            .as_array()
            .map(|list| list.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        let has = |name: &str| options.contains(&name);
        if !(mount["type"] == "bind" || has("bind") || has("rbind")) {
            continue;
        }
        let memory = mount["destination"] == "/dev/shm";
        let source = Path::new(mount["source"].as_str().unwrap_or_default());
        // The kernel's own: the guest has them too.
        let kernels = ["/proc", "/sys", "/dev"];
        if kernels.iter().any(|own| source.starts_with(own)) && !memory {
            continue;
        }
        volumes.push(Volume {
            source: source.into(),
            readonly: has("ro") || has("rro"),
            follows: ["slave", "rslave", "shared", "rshared"]
                .into_iter()
                .any(has),
            alone: has("bind") && !has("rbind"),
            memory,
            mount: place,
        });
    }
    volumes
}

/// The network is the guest's, made like that of the namespace that comes back.
fn namespaces(spec: &mut Value, anchor: Option<Anchor>) -> Result<Where, Refusal> {
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
            (kind, path) => match in_guest(path, anchor) {
                Some(path) => namespace["path"] = path.into(),
                None => {
                    let text = format!("joining the {kind} namespace {path}");
                    return Err(Refusal::Unimplemented(text));
                }
            },
        }
    }
    list.retain(|namespace| namespace["type"] != "network");
    Ok(network)
}

/// A namespace of the VM's first container, as the guest knows it.
fn in_guest(path: &str, anchor: Option<Anchor>) -> Option<String> {
    let Anchor { host, guest } = anchor?;
    let (pid, name) = path.strip_prefix("/proc/")?.split_once("/ns/")?;
    (pid.parse() == Ok(host)).then(|| format!("/proc/{guest}/ns/{name}"))
}

/// The guest's network is set up once, not by the OCI runtime.
fn network_sysctls(spec: &mut Value) -> HashMap<String, String> {
    let mut taken = HashMap::new();
    if let Some(all) = spec["linux"]["sysctl"].as_object_mut() {
        all.retain(|name, value| {
            let network = name.starts_with("net.");
            if network {
                taken.insert(name.clone(), value.as_str().unwrap_or_default().to_owned());
            }
            !network
        });
    }
    taken
}

fn wanted(spec: &Value) -> Wanted {
    let resources = &spec["linux"]["resources"];
    let cpu = &resources["cpu"];
    let quota = cpu["quota"].as_i64().filter(|&quota| quota > 0);
    let period = cpu["period"]
        .as_u64()
        .filter(|&period| period > 0)
        .unwrap_or(100_000);
    let vcpus = quota.map(|quota| quota.unsigned_abs().div_ceil(period));
    let annotations = spec["annotations"].as_object();
    let text = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
    Wanted {
        memory: resources["memory"]["limit"]
            .as_i64()
            .filter(|&limit| limit > 0)
            .map(i64::unsigned_abs),
        vcpus: vcpus.map(|n| u32::try_from(n).unwrap_or(u32::MAX)),
        annotations: annotations.into_iter().flatten().filter_map(text).collect(),
    }
}

/// `slice:prefix:name`, as systemd's driver has it, is a path in the guest, which has no systemd.
fn cgroup(path: &str, id: &str) -> String {
    match path.split(':').collect::<Vec<_>>()[..] {
        [_, prefix, name] => format!("/{prefix}-{name}"),
        _ if path.is_empty() => format!("/{id}"),
        _ => format!("/{}", path.trim_start_matches('/')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn translated(spec: &Value) -> (Translated, Value) {
        let translated = translate("c1", spec.to_string().as_bytes(), None).unwrap();
        let sources: Vec<String> = (0..9).map(|n| format!("/guest/{n}")).collect();
        let config = serde_json::from_slice(&translated.config(&sources)).unwrap();
        (translated, config)
    }

    #[test]
    fn what_is_the_hosts_is_taken_out_and_the_rest_stays() {
        let spec = json!({
            "ociVersion": "1.1.0",
            "unknown": {"kept": 18_446_744_073_709_551_615_u64},
            "root": {"path": "rootfs", "readonly": true},
            "process": {"args": ["sh"], "apparmorProfile": "p", "selinuxLabel": "l"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/data", "type": "bind", "source": "/host/d", "options": ["rbind", "ro"]},
                {"destination": "/etc/hosts", "source": "/host/hosts", "options": ["bind"]},
                {"destination": "/dev/shm", "type": "bind", "source": "/run/shm", "options": ["bind"]},
            ],
            "linux": {
                "cgroupsPath": "system.slice:cri:abc",
                "namespaces": [{"type": "pid"}, {"type": "network", "path": "/var/run/netns/n"}],
                "sysctl": {"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "0"},
                "resources": {
                    "memory": {"limit": 1000, "swap": 2000},
                    "cpu": {"quota": 150_000, "period": 100_000},
                    "blockIO": {"weight": 10},
                },
            },
            "annotations": {"a": "b"},
        });
        let (translated, config) = translated(&spec);
        assert_eq!(config["unknown"], spec["unknown"]);
        assert_eq!(config["ociVersion"], "1.0.2");
        assert_eq!(
            config["root"],
            json!({"path": "/run/share/c1/rootfs", "readonly": true})
        );
        assert_eq!(config["process"], json!({"args": ["sh"]}));
        assert_eq!(config["mounts"][0], spec["mounts"][0]);
        for (mount, volume) in [(1, 0), (2, 1), (3, 2)] {
            let source = format!("/guest/{volume}");
            assert_eq!(config["mounts"][mount]["source"], source);
        }
        assert_eq!(config["linux"]["namespaces"], json!([{"type": "pid"}]));
        assert_eq!(
            config["linux"]["sysctl"],
            json!({"kernel.shm_rmid_forced": "0"})
        );
        assert_eq!(config["linux"]["cgroupsPath"], "/cri-abc");
        let resources = &config["linux"]["resources"];
        assert_eq!(resources["memory"], json!({"limit": 1000}));
        assert_eq!(resources["blockIO"], Value::Null);
        assert_eq!(translated.root, Path::new("rootfs"));
        assert_eq!(translated.network, Where::At("/var/run/netns/n".into()));
        assert_eq!(translated.sysctls["net.ipv4.ip_forward"], "1");
        let volume = |source: &str, readonly, mount| Volume {
            source: source.into(),
            readonly,
            follows: false,
            alone: source != "/host/d",
            memory: source == "/run/shm",
            mount,
        };
        let volumes = [
            volume("/host/d", true, 1),
            volume("/host/hosts", false, 2),
            volume("/run/shm", false, 3),
        ];
        assert_eq!(translated.volumes, volumes);
        let wanted = translated.wanted;
        assert_eq!((wanted.memory, wanted.vcpus), (Some(1000), Some(2)));
        assert_eq!(wanted.annotations["a"], "b");
    }

    #[test]
    fn the_namespaces_of_the_vms_first_container_can_be_joined() {
        let anchor = Some(Anchor {
            host: 400,
            guest: 70,
        });
        let joins = |path: &str| {
            let namespaces = json!([{"type": "ipc", "path": path}, {"type": "mount"}]);
            let spec = json!({"root": {}, "linux": {"namespaces": namespaces}});
            translate("c", spec.to_string().as_bytes(), anchor)
        };
        let joined = joins("/proc/400/ns/ipc").unwrap();
        let config: Value = serde_json::from_slice(&joined.config(&[])).unwrap();
        assert_eq!(config["linux"]["namespaces"][0]["path"], "/proc/70/ns/ipc");
        assert!(joins("/proc/401/ns/ipc").is_err());
        assert!(joins("/var/run/ipcns/x").is_err());
    }

    #[test]
    fn what_a_vm_cannot_give_is_refused_by_name() {
        let refused = |spec: Value| {
            translate("c", spec.to_string().as_bytes(), None)
                .unwrap_err()
                .to_string()
        };
        let joined = json!({"root": {}, "linux": {"namespaces": [{"type": "ipc", "path": "/proc/7/ns/ipc"}]}});
        let why = refused(joined);
        assert!(
            why.starts_with("joining the ipc namespace /proc/7/ns/ipc: not impl"),
            "{why}"
        );
        let hooks = json!({"root": {}, "hooks": {"createContainer": [{"path": "/h"}]}});
        assert!(refused(hooks).starts_with("hooks.createContainer: not impl"));
        let hooks = json!({"hooks": {"poststop": [{"path": "/x", "env": ["A=1", "B"]}]}});
        let why = "config.json: hooks.poststop: 0.env: env \"B\": must be NAME=value";
        assert_eq!(refused(hooks), why);
        assert_eq!(refused(json!({})), "config.json: no root");
        assert!(translate("c", b"{", None).is_err());
        let (_, config) = translated(&json!({"root": {}, "linux": {"cgroupsPath": "/default/c1"}}));
        assert_eq!(config["linux"]["cgroupsPath"], "/default/c1");
    }
}
