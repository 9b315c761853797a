// SPDX-License-Identifier: Apache-2.0
//! Kubernetes' view of the shim: a private containerd that serves the CRI, and a kubelet's calls.
//!
//! ```text
//! on("2.1", test) ── Cri::start ── test(&mut cri) ── Cri::finish
//!                     a private containerd, in a      removes what the test left, and asserts
//!                     network namespace of its own    that nothing else stays
//! call     requests, one method each, with a deadline
//! network  the "host" of the pods: a network namespace with a bridge that CNI plugins make
//! stream   exec and attach, over a WebSocket
//! ```
//! The bridge, the pods' addresses and the streaming server are in that namespace alone, and go
//! with it.

mod call;
mod network;
pub mod stream;

/// The CRI's messages.
#[allow(
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub mod api {
    include!("../generated/runtime.v1.rs");
}

use self::api::image_service_client::ImageServiceClient;
use self::api::runtime_service_client::RuntimeServiceClient;
use self::api::*;
use self::network::Network;
use crate::containerd::fifo::Fifo;
use crate::containerd::{self, Containerd, DEADLINE, IMAGE, SHIM, Setup};
use crate::{peers, proc, program, wait};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::{fs, thread};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tonic::transport::{Channel, Endpoint};

/// The image of a pod's first container, as tests/setup.sh calls it.
const PAUSE: &str = "dunnage.test/pause:1";

/// For every 1.x and 2.x alike: 2.x reads the sections of 1.x. `vm` is for tests that bring its
/// shim, and so is `sandboxes`, whose pods have no first container; `other` is a runtime whose type is
/// not the one name that CRI knows, so that its options travel as TOML.
const CONFIG: &str = r#"
[plugins."io.containerd.nri.v1.nri"]
disable = true
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "dunnage.test/pause:1"
disable_apparmor = true
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "PLUGINS"
conf_dir = "DIR/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "SNAPSHOTTER"
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
Root = "DIR/runc/default"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.other]
runtime_type = "io.containerd.dunnage.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.other.options]
SystemdCgroup = false
Root = "DIR/runc/other"
BinaryName = "DIR/bin/other-runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.vm]
runtime_type = "io.containerd.vm.v2"
pod_annotations = ["io.dunnage.vm.*"]
container_annotations = ["io.dunnage.vm.*"]
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.sandboxes]
runtime_type = "io.containerd.vm.v2"
sandboxer = "shim"
"#;

/// Runs `test` with a containerd of release `name` that serves the CRI, then proves that nothing
/// is left of it.
pub fn on(name: &'static str, test: fn(&mut Cri)) {
    if let Some(mut cri) = Cri::start(name) {
        test(&mut cri);
        cri.finish();
    }
}

pub struct Cri {
    pub containerd: Containerd,
    network: Network,
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    handle: Handle,
    /// Dropped, it ends the thread that drives the connections.
    _driver: oneshot::Sender<()>,
}

/// A running pod.
#[derive(Clone, Debug)]
pub struct Pod {
    pub id: String,
    pub config: PodSandboxConfig,
}

impl Cri {
    fn start(name: &'static str) -> Option<Self> {
        let network = Network::new();
        let setup = Setup {
            namespace: Some(containerd::KUBERNETES),
            cri: true,
            config: CONFIG,
            network: Some(network.file()),
            prepare: Some(prepare),
            env: Vec::new(),
        };
        let containerd = containerd::start(name, setup)?;
        containerd.import("pause.tar");
        let (driver, ended) = oneshot::channel();
        let tokio = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        let handle = tokio.handle().clone();
        thread::spawn(move || {
            let _ = tokio.block_on(ended);
        });
        let channel = connect(&containerd, &handle);
        let cri = Self {
            containerd,
            network,
            runtime: RuntimeServiceClient::new(channel.clone()),
            images: ImageServiceClient::new(channel),
            handle,
            _driver: driver,
        };
        cri.ready();
        Some(cri)
    }

    /// Waits until pods can be run: the service is there, so is the network, and the images are
    /// known.
    fn ready(&self) {
        self.until("CRI to be ready", || {
            let status = self.status().map_err(|e| e.message().to_owned())?;
            let unmet = status.conditions.into_iter().find(|it| !it.status);
            unmet.map_or(Ok(()), |it| Err(format!("{}: {}", it.r#type, it.message)))
        });
        for image in [IMAGE, PAUSE] {
            self.until(image, || match self.image(image) {
                Ok(Some(_)) => Ok(()),
                Ok(None) => Err("not known".to_owned()),
                Err(e) => Err(e.message().to_owned()),
            });
        }
    }

    /// Waits for what nothing announces.
    #[track_caller]
    pub fn until<T>(&self, what: &str, look: impl FnMut() -> Result<T, String>) -> T {
        wait::until_within(DEADLINE, what, look)
    }

    /// SIGKILLs containerd, and starts it again after `meanwhile`.
    pub fn restart(&mut self, meanwhile: impl FnOnce(&Self)) {
        self.containerd.kill();
        meanwhile(self);
        self.containerd.restart();
        let channel = connect(&self.containerd, &self.handle);
        self.runtime = RuntimeServiceClient::new(channel.clone());
        self.images = ImageServiceClient::new(channel);
        self.ready();
    }

    /// What a kubelet says of a pod, to be changed before [`Cri::run`].
    pub fn pod(&self, name: &str) -> PodSandboxConfig {
        let logs = self.containerd.dir().join("logs").join(name);
        fs::create_dir_all(&logs).expect("directory of logs");
        let cgroup = self.containerd.dir().file_name().expect("a name");
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: logs.to_string_lossy().into_owned(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/{}", cgroup.to_string_lossy()),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(NamespaceOption {
                        pid: NamespaceMode::Container.into(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// What a kubelet says of a container, to be changed before [`Cri::create`]. It sees the
    /// test's [`Fifo`]s in /share.
    pub fn container(&self, name: &str, command: &[&str]) -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: name.to_owned(),
                attempt: 0,
            }),
            image: Some(image(IMAGE)),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            mounts: vec![Mount {
                container_path: "/share".to_owned(),
                host_path: self.share().to_string_lossy().into_owned(),
                ..Default::default()
            }],
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig {
                resources: Some(LinuxContainerResources::default()),
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(NamespaceOption {
                        pid: NamespaceMode::Container.into(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        }
    }

    pub fn share(&self) -> PathBuf {
        self.containerd.dir().join("share")
    }

    pub fn fifo(&self, name: &str) -> Fifo {
        self.containerd.fifo(name)
    }

    /// A pod with the default runtime.
    #[track_caller]
    pub fn run(&self, name: &str) -> Pod {
        self.run_pod(self.pod(name), "")
            .unwrap_or_else(|e| panic!("RunPodSandbox {name}: {e}"))
    }

    /// Creates and starts a container.
    #[track_caller]
    pub fn launch(&self, pod: &Pod, config: ContainerConfig) -> String {
        let id = self.create(pod, config);
        self.start_container(&id)
            .unwrap_or_else(|e| panic!("StartContainer: {e}"));
        id
    }

    /// A container that is up, and that SIGTERM ends with exit code 6.
    #[track_caller]
    pub fn service(&self, pod: &Pod, name: &str) -> String {
        // Names are the same in many pods.
        let place = format!("{name}-{}.up", &pod.id[..8]);
        let up = self.fifo(&place);
        let script = format!(
            "trap 'exit 6' TERM; echo up > /share/{place}; while :; do sleep 1000 & wait $!; done"
        );
        let id = self.launch(pod, self.container(name, &["sh", "-c", &script]));
        assert_eq!(up.line(), "up");
        id
    }

    /// Waits until CRI says that the container has exited.
    #[track_caller]
    pub fn exited(&self, id: &str) -> ContainerStatus {
        self.until("exit of a container", || {
            let status = self.container_status(id);
            match status.state() {
                ContainerState::ContainerExited => Ok(status),
                other => Err(format!("{other:?}")),
            }
        })
    }

    /// The one shim that serves the pod.
    #[track_caller]
    pub fn shim_of(&self, pod: &Pod) -> i32 {
        let pause = self.pause_of(pod);
        let shim = proc::stat(pause).expect("the pause container").ppid;
        let shims = self.containerd.shims();
        assert!(
            shims.contains(&shim),
            "parent {} of the pause container is none of {shims:?}",
            proc::describe(shim)
        );
        shim
    }

    /// `ping`, from where containerd is; what it said.
    pub fn ping(&self, address: &str) -> std::process::Output {
        let busybox = peers::rootfs().join("bin/busybox");
        self.network
            .command(&busybox)
            .args(["ping", "-c", "1", "-W", "10", address])
            .output()
            .expect("busybox")
    }

    /// Removes pods the way a kubelet does, and asserts that nothing else is left.
    fn finish(self) {
        for pod in self.pods() {
            self.stop_pod(&pod.id)
                .unwrap_or_else(|e| panic!("StopPodSandbox: {e}"));
            self.remove_pod(&pod.id)
                .unwrap_or_else(|e| panic!("RemovePodSandbox: {e}"));
        }
        assert_eq!(self.containers(), [], "containers without a pod");
        self.containerd.finish();
    }
}

/// What is in a containerd's directory before it starts.
fn prepare(dir: &Path) {
    for name in ["cni", "runc", "logs"] {
        fs::create_dir(dir.join(name)).expect("a new directory");
    }
    fs::write(dir.join("cni/10-pods.conflist"), network::conflist(dir)).expect("CNI config");
    let runc = peers::runc().display();
    let record = dir.join("other-runc.record");
    let script = format!(
        "#!/bin/sh\necho \"$@\" >>{}\nexec {runc} \"$@\"\n",
        record.display()
    );
    program::write(&dir.join("bin/other-runc"), &script);
    symlink(SHIM, dir.join("bin/containerd-shim-dunnage-v2")).expect("symlink");
}

fn connect(containerd: &Containerd, handle: &Handle) -> Channel {
    let _inside = handle.enter();
    let endpoint = Endpoint::from_shared(format!("unix://{}", containerd.address()));
    endpoint.expect("an address").connect_lazy()
}

fn image(name: &str) -> ImageSpec {
    ImageSpec {
        image: name.to_owned(),
        ..Default::default()
    }
}
