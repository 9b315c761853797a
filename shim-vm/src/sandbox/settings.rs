// SPDX-License-Identifier: Apache-2.0
//! What a pod's configuration, CRI's, says of its sandbox, and the files that its containers have of it.

use crate::config::Wanted;
use crate::limits::Place;
use crate::namespaces::HOSTS;
use crate::network::Where;
use crate::shared_vm::hostname;
use crate::spec::Refusal;
use crate::wants::Resources;
use protos::any;
use protos::cri::{DnsConfig, LinuxPodSandboxConfig, NamespaceMode, PodSandboxConfig};
use protos::sandbox::CreateSandboxRequest;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// What containerd's CRI sets in pods itself, unless its sandboxes are a shim's.
const SYSCTLS: [(&str, &str); 2] = [
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    ("net.ipv4.ping_group_range", "0 2147483647"),
];
/// Files of the bundle, and where containers have them.
const FILES: [(&str, &str); 3] = [
    ("resolv.conf", "/etc/resolv.conf"),
    ("hostname", "/etc/hostname"),
    ("hosts", "/etc/hosts"),
];
/// Not there: it stands for memory of the guest's.
const MEMORY: &str = "shm";
const LOCALHOST: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost\n";

#[derive(Clone, Debug)]
pub struct Settings {
    pub hostname: String,
    pub sysctls: HashMap<String, String>,
    pub network: Where,
    /// The host's cgroup. What a pod may use is the limit of the one above.
    pub place: Place,
    pub wanted: Wanted,
    /// Its containers have one pid namespace.
    pub shares_pids: bool,
    /// `None`: as the host's.
    resolv_conf: Option<String>,
}

impl Settings {
    /// # Errors
    /// What can't be, or can't be read.
    pub fn of(request: &CreateSandboxRequest) -> Result<Self, Refusal> {
        let id = &request.sandbox_id;
        if id.is_empty() || id.contains('/') || id.starts_with('.') {
            return Err(Refusal::Broken(format!("sandbox id {id:?}: not an id")));
        }
        if !Path::new(&request.bundle_path).is_absolute() {
            let text = format!("bundle {:?}: not an absolute path", request.bundle_path);
            return Err(Refusal::Broken(text));
        }
        let config = config(request)?;
        let linux = config.linux.unwrap_or_default();
        let shares_pids = namespaces(&linux)?;
        let mut annotations = config.annotations;
        annotations.extend(request.annotations.clone());
        let resources = linux.resources.unwrap_or_default();
        let resources = Resources {
            memory: resources.memory_limit_in_bytes,
            quota: resources.cpu_quota,
            period: resources.cpu_period,
            shares: resources.cpu_shares,
        };
        let mut sysctls: HashMap<String, String> = SYSCTLS
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        sysctls.extend(linux.sysctls);
        let cgroup = json!({"linux": {"cgroupsPath": cgroup(&linux.cgroup_parent, id)}});
        Ok(Self {
            hostname: match config.hostname.as_str() {
                "" => hostname(id),
                name => name.to_owned(),
            },
            sysctls,
            network: match request.netns_path.as_str() {
                "" => Where::Own,
                path => Where::At(path.into()),
            },
            place: Place::of(&cgroup, id).map_err(Refusal::Broken)?,
            wanted: Wanted {
                memory: resources.memory(),
                vcpus: resources.vcpus(),
                annotations,
            },
            shares_pids,
            resolv_conf: config.dns_config.as_ref().map(resolv_conf).transpose()?,
        })
    }

    /// Writes [`FILES`] into the bundle.
    ///
    /// # Errors
    /// It names the file.
    pub fn write_files(&self, bundle: &Path) -> Result<(), String> {
        for (name, place) in FILES {
            let text = match name {
                "hostname" => format!("{}\n", self.hostname).into_bytes(),
                "hosts" => LOCALHOST.into(),
                // A host need not have one.
                _ => match &self.resolv_conf {
                    Some(text) => text.clone().into_bytes(),
                    None => fs::read(place).unwrap_or_default(),
                },
            };
            let path = bundle.join(name);
            let readable = fs::Permissions::from_mode(0o644);
            let written =
                fs::write(&path, text).and_then(|()| fs::set_permissions(&path, readable));
            written.map_err(|e| format!("write {}: {e}", path.display()))?;
        }
        Ok(())
    }
}

/// What containers have of the bundle, as mounts of config.json. A guest writes nothing of it.
pub fn mounts(bundle: &Path) -> Vec<Value> {
    let mount = |source: &str, destination: &str, access: &str| {
        json!({
            "destination": destination,
            "type": "bind",
            "source": bundle.join(source),
            "options": ["rbind", access, "nosuid", "nodev", "noexec"],
        })
    };
    let files = FILES.map(|(name, place)| mount(name, place, "ro"));
    let memory = mount(MEMORY, "/dev/shm", "rw");
    files.into_iter().chain([memory]).collect()
}

/// The pod's configuration; without one, what the API has as defaults.
fn config(request: &CreateSandboxRequest) -> Result<PodSandboxConfig, Refusal> {
    let options = request.options.as_ref();
    let Some(options) = options.filter(|options| !options.type_url.is_empty()) else {
        return Ok(PodSandboxConfig::default());
    };
    match any::unpack::<PodSandboxConfig>(options) {
        Some(Ok(config)) => Ok(config),
        Some(Err(e)) => Err(Refusal::Broken(format!("options: {e}"))),
        None => {
            let text = format!("options {:?}: not a PodSandboxConfig", options.type_url);
            Err(Refusal::Broken(text))
        }
    }
}

/// Whether the pod's containers have one pid namespace.
fn namespaces(linux: &LinuxPodSandboxConfig) -> Result<bool, Refusal> {
    let options = linux.security_context.as_ref();
    let options = options.and_then(|context| context.namespace_options);
    let options = options.unwrap_or_default();
    let modes = [options.network(), options.pid(), options.ipc()];
    let mut modes = HOSTS.iter().zip(modes);
    if let Some(((_, name), _)) = modes.find(|(_, mode)| *mode == NamespaceMode::Node) {
        return Err(Refusal::Unimplemented((*name).to_owned()));
    }
    Ok(options.pid() == NamespaceMode::Pod)
}

/// As CRI names the cgroup of a pod's first container.
fn cgroup(parent: &str, id: &str) -> String {
    let slice = Path::new(parent).file_name().and_then(|name| name.to_str());
    match slice {
        None => String::new(),
        Some(slice) if slice.ends_with(".slice") => format!("{slice}:cri-containerd:{id}"),
        Some(_) => format!("{}/{id}", parent.trim_end_matches('/')),
    }
}

fn resolv_conf(dns: &DnsConfig) -> Result<String, Refusal> {
    let mut words = dns.servers.iter().chain(&dns.searches).chain(&dns.options);
    if let Some(word) = words.find(|word| word.contains(char::is_control)) {
        return Err(Refusal::Broken(format!("dns_config: {word:?}: not a word")));
    }
    let mut text = String::new();
    for (name, words) in [("search", &dns.searches), ("options", &dns.options)] {
        if !words.is_empty() {
            text += &format!("{name} {}\n", words.join(" "));
        }
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use protos::cri::{LinuxContainerResources, LinuxSandboxSecurityContext, NamespaceOption};

    fn request(config: &PodSandboxConfig) -> CreateSandboxRequest {
        CreateSandboxRequest {
            sandbox_id: "s1".into(),
            bundle_path: "/b".into(),
            netns_path: "/run/netns/n".into(),
            options: Some(any::pack(config)),
            ..Default::default()
        }
    }

    fn with(options: NamespaceOption) -> PodSandboxConfig {
        let namespace_options = Some(options);
        PodSandboxConfig {
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(LinuxSandboxSecurityContext { namespace_options }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn a_pods_configuration_makes_its_vm() {
        let mut config = with(NamespaceOption {
            pid: NamespaceMode::Container.into(),
            ..Default::default()
        });
        config.hostname = "web".into();
        config.annotations = [("io.dunnage.vm.vcpus".to_owned(), "2".to_owned())].into();
        config.dns_config = Some(DnsConfig {
            servers: vec!["10.0.0.1".into(), "10.0.0.2".into()],
            searches: vec!["a.b".into(), "b".into()],
            options: vec!["ndots:5".into()],
        });
        let linux = config.linux.get_or_insert_default();
        linux.cgroup_parent = "/kubepods/pod1".into();
        linux.sysctls = [("net.ipv4.ping_group_range".to_owned(), "1 0".to_owned())].into();
        linux.resources = Some(LinuxContainerResources {
            memory_limit_in_bytes: 5 << 20,
            cpu_quota: 150_000,
            cpu_period: 100_000,
            cpu_shares: 9000,
        });
        let settings = Settings::of(&request(&config)).unwrap();
        assert_eq!(
            (settings.hostname.as_str(), settings.shares_pids),
            ("web", false)
        );
        assert_eq!(settings.network, Where::At("/run/netns/n".into()));
        assert_eq!(
            settings.place.cgroup.as_deref(),
            Some(Path::new("/kubepods/pod1/s1"))
        );
        assert_eq!(settings.sysctls["net.ipv4.ping_group_range"], "1 0");
        assert_eq!(settings.sysctls["net.ipv4.ip_unprivileged_port_start"], "0");
        let wanted = &settings.wanted;
        assert_eq!((wanted.memory, wanted.vcpus), (Some(5 << 20), Some(2)));
        assert_eq!(wanted.annotations["io.dunnage.vm.vcpus"], "2");
        let text = "search a.b b\noptions ndots:5\nnameserver 10.0.0.1\nnameserver 10.0.0.2\n";
        assert_eq!(settings.resolv_conf.as_deref(), Some(text));
        let dir = tempfile::tempdir().unwrap();
        settings.write_files(dir.path()).unwrap();
        assert_eq!(
            fs::read_to_string(dir.path().join("resolv.conf")).unwrap(),
            text
        );
        assert_eq!(
            fs::read_to_string(dir.path().join("hostname")).unwrap(),
            "web\n"
        );
        // Of a slice systemd's driver makes the path, as for a pod's first container.
        assert_eq!(
            cgroup("/kubepods.slice/kubepods-x.slice", "s"),
            "kubepods-x.slice:cri-containerd:s"
        );
        assert_eq!(cgroup("", "s"), "");
    }

    #[test]
    fn without_a_configuration_there_are_defaults() {
        let settings = Settings::of(&CreateSandboxRequest {
            sandbox_id: "s".repeat(80),
            bundle_path: "/b".into(),
            ..Default::default()
        });
        let settings = settings.unwrap();
        assert_eq!((settings.hostname.len(), settings.shares_pids), (63, true));
        assert_eq!(settings.network, Where::Own);
        assert_eq!((settings.place.cgroup, settings.resolv_conf), (None, None));
    }

    #[test]
    fn what_a_vm_cannot_give_is_refused_by_name() {
        let refused = |config: &PodSandboxConfig| Settings::of(&request(config)).unwrap_err();
        let node = NamespaceMode::Node.into();
        let of = |network, pid, ipc| NamespaceOption {
            network,
            pid,
            ipc,
            ..Default::default()
        };
        for (options, name) in [
            (of(node, 1, 0), "hostNetwork"),
            (of(0, node, 0), "hostPID"),
            (of(0, 1, node), "hostIPC"),
        ] {
            assert_eq!(refused(&with(options)), Refusal::Unimplemented(name.into()));
        }
        let dns = PodSandboxConfig {
            dns_config: Some(DnsConfig {
                servers: vec!["1.1.1.1\noptions x".into()],
                ..Default::default()
            }),
            ..Default::default()
        };
        assert!(refused(&dns).to_string().contains("dns_config"));
        for (id, bundle) in [("", "/b"), ("../x", "/b"), ("s", "b")] {
            let mut wrong = request(&PodSandboxConfig::default());
            (wrong.sandbox_id, wrong.bundle_path) = (id.into(), bundle.into());
            assert!(
                matches!(Settings::of(&wrong), Err(Refusal::Broken(_))),
                "{id} {bundle}"
            );
        }
    }
}
