// SPDX-License-Identifier: Apache-2.0
//! A container's config.json: what of it the host must see to, and what of it the guest gets.
//!
//! The guest gets every field as it is but those that name something of the host's: the root
//! filesystem, the sources of bind mounts, the network namespace, block devices and swap, and the labels
//! of security modules that the guest does not have.

mod volumes;

pub use volumes::{Owners, Volume};

use crate::config::Wanted;
use crate::devices;
use crate::hooks::Hooks;
use crate::limits::Place;
use crate::namespaces::{self, Common};
use crate::network::Where;
use crate::points::{self, Point};
use crate::sockets::Inside;
use crate::wants;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use task::json;

/// Every runtime of version 1 takes it.
const OCI_VERSION: &str = "1.0.2";

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
    /// The guest's config.json; `sources` are the guest's paths of the volumes, in their order, and
    /// `sockets` what is mounted in each.
    pub fn config(&self, sources: &[String], sockets: &[Vec<Inside>]) -> Vec<u8> {
        let mut spec = self.spec.clone();
        for (volume, source) in self.volumes.iter().zip(sources) {
            spec["mounts"][volume.mount]["source"] = source.as_str().into();
        }
        // From the last on, so that places stay what they are.
        for (volume, inside) in self.volumes.iter().zip(sockets).rev() {
            let Some(mounts) = spec["mounts"].as_array_mut() else {
                break;
            };
            let at = mounts[volume.mount]["destination"].as_str().map(Path::new);
            let at = at.unwrap_or(Path::new("/")).to_owned();
            for socket in inside {
                let mount = json!({
                    "destination": at.join(&socket.below),
                    "type": "bind",
                    "source": socket.source,
                    "options": ["bind", "nosuid", "nodev", "noexec"],
                });
                mounts.insert(volume.mount + 1, mount);
            }
        }
        spec.to_string().into_bytes()
    }

    /// The guest's mount of the volume is not read-only, as a mount of the host's is in it which is not: for the guest's
    /// kernel all that is one filesystem, and what of it can't be written to the host says.
    pub fn is_writable(&mut self, volume: usize) {
        let mount = &mut self.spec["mounts"][self.volumes[volume].mount];
        if let Some(options) = mount["options"].as_array_mut() {
            options.retain(|option| option != "ro");
        }
    }

    /// The guest's path of the root filesystem.
    pub fn has_root(&mut self, path: &str) {
        self.spec["root"]["path"] = path.into();
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

/// Translates the config.json of container `id`, for a VM whose containers have `common`.
///
/// # Errors
/// If it is none, or asks for what a VM can't give.
pub fn translate(id: &str, config: &[u8], common: &Common) -> Result<Translated, Refusal> {
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
    add_mounts(&mut spec, &common.mounts);
    let readonly = spec["root"]["readonly"] == true;
    devices::check(&mut spec)?;
    let points = readonly.then(|| points::of(&spec));
    let volumes = volumes::volumes(&mut spec)?;
    let network = namespaces::take(&mut spec, common.anchor)?;
    let sysctls = network_sysctls(&mut spec);
    let wanted = wants::of(&spec);
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

/// What a container mounts itself it has, but for memory of its own in place of the pod's.
fn add_mounts(spec: &mut Value, common: &[Value]) {
    if spec["mounts"].is_null() && !common.is_empty() {
        spec["mounts"] = Value::Array(Vec::new());
    }
    let Some(mounts) = spec["mounts"].as_array_mut() else {
        return;
    };
    for mount in common {
        let destination = &mount["destination"];
        match mounts
            .iter_mut()
            .find(|own| own["destination"] == *destination)
        {
            Some(own) if own["type"] == "tmpfs" => *own = mount.clone(),
            Some(_) => {}
            None => mounts.push(mount.clone()),
        }
    }
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

    fn translated(spec: &Value) -> (Translated, Value) {
        let translated = translate("c1", spec.to_string().as_bytes(), &Common::default()).unwrap();
        let sources: Vec<String> = (0..9).map(|n| format!("/guest/{n}")).collect();
        let config = serde_json::from_slice(&translated.config(&sources, &[])).unwrap();
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
            recursively: false,
            follows: false,
            alone: source != "/host/d",
            memory: source == "/run/shm",
            owners: None,
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
    fn what_all_have_is_added_to_what_a_container_mounts_itself() {
        let mount = |destination: &str, kind: &str| json!({"destination": destination, "type": kind, "source": kind});
        let own = ["/dev/shm", "/etc/hosts"]
            .map(|at| mount(at, if at == "/dev/shm" { "tmpfs" } else { "bind" }));
        let spec = json!({"root": {}, "mounts": own});
        let common = Common {
            mounts: ["/dev/shm", "/etc/hosts", "/etc/resolv.conf"]
                .map(|at| json!({"destination": at, "type": "bind", "source": "/pods"}))
                .into(),
            ..Common::default()
        };
        let translated = translate("c", spec.to_string().as_bytes(), &common).unwrap();
        let sources: Vec<&Path> = translated.volumes.iter().map(|it| &*it.source).collect();
        assert_eq!(sources, ["/pods", "bind", "/pods"].map(Path::new));
        assert!(translated.volumes[0].memory);
        let none = translate("c", br#"{"root": {}}"#, &common).unwrap();
        assert_eq!(none.volumes.len(), 3);
    }

    #[test]
    fn what_a_vm_cannot_give_is_refused_by_name() {
        let refused = |spec: Value| {
            translate("c", spec.to_string().as_bytes(), &Common::default())
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
        assert!(translate("c", b"{", &Common::default()).is_err());
        let (_, config) = translated(&json!({"root": {}, "linux": {"cgroupsPath": "/default/c1"}}));
        assert_eq!(config["linux"]["cgroupsPath"], "/default/c1");
    }
}
