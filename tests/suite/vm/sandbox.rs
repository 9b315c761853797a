// SPDX-License-Identifier: Apache-2.0
//! The Sandbox API, as containerd's sandboxer `shim` calls it: a pod's VM without a first container.

use crate::{child, said};
use harness::bundle::{Builder, Bundle};
use harness::start::Start;
use harness::upgrade::{copy_of_the_binary, image_of, upgrade};
use harness::{Code, Shim, Test, proc, refused, wait};
use protos::any;
use protos::cgroups::v2::Metrics;
use protos::cri::{
    DnsConfig, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption,
    PodSandboxConfig,
};
use protos::sandbox::*;
use protos::ttrpc::Call;
use serde_json::json;
use std::fs;
use std::time::Duration;

/// A boot's deadline without KVM, and what ends after it.
const BOOT: Duration = Duration::from_secs(60);

/// A sandbox and its shim.
pub struct Sandbox {
    bundle: Bundle,
    pub shim: Shim,
}

impl Sandbox {
    /// One that is not made: containerd gives it a bundle without a config.json.
    async fn new(test: &Test, id: &str) -> Self {
        Self::with(test, id, |start| start).await
    }

    /// The same, of a shim that is started so.
    pub async fn with(test: &Test, id: &str, start: impl FnOnce(Start) -> Start) -> Self {
        let bundle = test.bundle(id).build();
        fs::remove_file(bundle.file("config.json")).expect("it was written");
        let shim = start(bundle.start()).shim().await;
        assert_eq!(shim.answer().version, 3, "S5");
        Self { bundle, shim }
    }

    async fn call<C: Call>(&self, request: &C) -> harness::calls::Result<C::Answer> {
        let call = self.shim.client().call(request, None);
        wait::within(BOOT, C::METHOD, call).await
    }

    fn id(&self) -> String {
        self.bundle.id.clone()
    }

    pub async fn create(&self, config: &PodSandboxConfig) -> harness::calls::Result<()> {
        let request = CreateSandboxRequest {
            sandbox_id: self.id(),
            bundle_path: self.bundle.path.to_string_lossy().into_owned(),
            options: Some(any::pack(config)),
            ..Default::default()
        };
        self.call(&request).await.map(drop)
    }

    pub async fn start(&self) -> harness::calls::Result<u32> {
        let sandbox_id = self.id();
        let started = self.call(&StartSandboxRequest { sandbox_id }).await;
        started.map(|started| started.pid)
    }

    pub async fn stop(&self) {
        let request = StopSandboxRequest {
            sandbox_id: self.id(),
            timeout_secs: 0,
        };
        self.call(&request).await.expect("StopSandbox");
    }

    pub async fn wait(&self) -> u32 {
        let sandbox_id = self.id();
        let ended = self.call(&WaitSandboxRequest { sandbox_id }).await;
        ended.expect("WaitSandbox").exit_status
    }

    async fn state(&self) -> String {
        let request = SandboxStatusRequest {
            sandbox_id: self.id(),
            verbose: true,
        };
        let status = self.call(&request).await.expect("SandboxStatus");
        assert!(status.info["info"].contains(&status.pid.to_string()));
        status.state
    }

    async fn ping(&self) -> harness::calls::Result<()> {
        let sandbox_id = self.id();
        self.call(&PingRequest { sandbox_id }).await.map(drop)
    }

    /// Its end, and that of the shim; nothing of the VM is left.
    pub async fn shut_down(&self) {
        let sandbox_id = self.id();
        let answer = self.call(&ShutdownSandboxRequest { sandbox_id }).await;
        answer.expect("ShutdownSandbox is answered");
        wait::ended(self.shim.pid()).await;
        assert!(!self.bundle.test.vm_dir(&self.id()).exists());
        assert!(!self.shim.socket().exists());
    }

    /// A container of the pod, whose namespaces it joins as CRI says it.
    pub fn container(&self, id: &str, pid: u32) -> Builder {
        let at = |kind: &str| json!({"type": kind, "path": format!("/proc/{pid}/ns/{kind}")});
        let namespaces = json!([at("ipc"), at("uts"), at("pid"), {"type": "mount"}]);
        let builder = self.bundle.test.bundle(id);
        let builder = builder.annotation("io.kubernetes.cri.sandbox-id", &self.id());
        builder
            .set("/linux/namespaces", namespaces)
            .set("/hostname", json!(null))
    }

    pub async fn run(&self, container: Builder) -> Bundle {
        let bundle = container.build();
        self.shim.create(bundle.create()).await.expect("Create");
        self.shim.start(&bundle.id, "").await.expect("Start");
        bundle
    }

    fn qemu(&self) -> i32 {
        child(&self.shim, "-no-user-config")
    }
}

/// A pod called web, whose containers share their pids.
pub fn pod() -> PodSandboxConfig {
    PodSandboxConfig {
        hostname: "web".into(),
        dns_config: Some(DnsConfig {
            servers: vec!["10.9.9.9".into()],
            ..Default::default()
        }),
        linux: Some(LinuxPodSandboxConfig {
            sysctls: [("kernel.shm_rmid_forced".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// S1, S4, S5: the VM boots at StartSandbox, is there before its first container and after its last,
/// whatever the Task API says of shutting down, and ends at StopSandbox. Its containers have the pod's
/// name, resolver, sysctls, pids and memory.
#[test]
fn a_sandbox_outlives_its_containers() {
    crate::run(async |test| {
        let sandbox = Sandbox::new(test, "s").await;
        let shim = &sandbox.shim;
        let sandbox_id = "other".to_owned();
        let none = sandbox.call(&PingRequest { sandbox_id }).await;
        assert_eq!(refused(none).code, Code::NotFound);
        sandbox.create(&pod()).await.unwrap();
        assert_eq!(
            refused(sandbox.create(&pod()).await).code,
            Code::AlreadyExists
        );
        assert_eq!(proc::children(shim.pid()), [0; 0], "it is not started");
        assert_eq!(sandbox.state().await, "SANDBOX_NOTREADY");
        let early = test.bundle("early").build();
        let status = refused(shim.create(early.create()).await);
        assert!(
            status.message.contains("sandbox s is not started"),
            "{status:?}"
        );

        let pid = sandbox.start().await.unwrap();
        assert_eq!(pid as i32, sandbox.qemu());
        assert_eq!(
            refused(sandbox.start().await).code,
            Code::FailedPrecondition
        );
        assert_eq!(sandbox.state().await, "SANDBOX_READY");
        sandbox.ping().await.unwrap();
        let sandbox_id = sandbox.id();
        let platform = sandbox.call(&PlatformRequest { sandbox_id }).await.unwrap();
        let platform = platform.platform.unwrap();
        assert_eq!((&*platform.os, &*platform.architecture), ("linux", "amd64"));

        let first = sandbox.run(sandbox.container("a", pid)).await;
        shim.kill("a", "", 9, true).await.unwrap();
        shim.wait("a", "").await.unwrap();
        shim.delete("a", "").await.unwrap();
        shim.shutdown(&first.id).await.unwrap();
        assert_eq!(
            pid as i32,
            sandbox.qemu(),
            "it is not over with its last container"
        );
        sandbox.ping().await.unwrap();

        let b = sandbox.run(sandbox.container("b", pid)).await;
        let c = sandbox.run(sandbox.container("c", pid)).await;
        let script = "hostname; cat /etc/hostname /etc/resolv.conf /proc/sys/kernel/shm_rmid_forced; \
                      echo word >/dev/shm/word; echo x >>/etc/resolv.conf";
        let text = said(shim, &b, b.exec_sh("e", script)).await;
        assert_eq!(text, "web\nweb\nnameserver 10.9.9.9\n1\n");
        let text = said(
            shim,
            &c,
            c.exec_sh("e", "cat /dev/shm/word; ps -o pid,args"),
        )
        .await;
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        assert_eq!((lines[0], lines[2]), ("word", "1 /pause"), "{text}");
        assert_eq!(text.matches("sleep 100000").count(), 2, "{text}");

        let sandbox_id = sandbox.id();
        let metrics = sandbox
            .call(&SandboxMetricsRequest { sandbox_id })
            .await
            .unwrap();
        let data = metrics.metrics.unwrap().data.unwrap();
        let metrics = any::unpack::<Metrics>(&data).unwrap().unwrap();
        assert!(metrics.memory.unwrap().usage > 64 << 20);

        sandbox.stop().await;
        assert_eq!(sandbox.wait().await, 0);
        for id in ["b", "c"] {
            assert_eq!(test.events().exit(id, id).await.exit_status, 137);
        }
        assert_eq!(sandbox.state().await, "SANDBOX_NOTREADY");
        assert_eq!(refused(sandbox.ping().await).code, Code::FailedPrecondition);
        let late = refused(shim.create(early.create()).await);
        assert!(late.message.contains("sandbox s is stopped"), "{late:?}");
        shim.delete("b", "").await.unwrap();
        sandbox.stop().await;
        sandbox.shut_down().await;
    });
}

/// S1: several sandboxes start at once, one of them is asked to twice; one is stopped while it starts, one
/// before. Whoever waits hears of it, and nothing stays.
#[test]
fn sandboxes_start_at_once_and_stop_while_they_start() {
    crate::run(async |test| {
        let [one, other, stopped] = ["one", "other", "stopped"];
        let made = async |id: &str| {
            let sandbox = Sandbox::new(test, id).await;
            sandbox.create(&pod()).await.unwrap();
            sandbox
        };
        let (one, other, stopped) = (made(one).await, made(other).await, made(stopped).await);
        let stops = async {
            wait::until("QEMU of the one to be stopped", || {
                let children = proc::children(stopped.shim.pid());
                if children.len() > 1 {
                    Ok(())
                } else {
                    Err(format!("{children:?}"))
                }
            })
            .await;
            stopped.stop().await;
        };
        let (a, b, c, d, (), waited) = tokio::join!(
            one.start(),
            one.start(),
            other.start(),
            stopped.start(),
            stops,
            stopped.wait()
        );
        assert_eq!(a.unwrap() as i32, one.qemu());
        assert_eq!(refused(b).code, Code::FailedPrecondition);
        assert_eq!(c.unwrap() as i32, other.qemu());
        let why = refused(d);
        assert_eq!(why.code, Code::FailedPrecondition);
        assert!(why.message.contains("stopped while it started"), "{why:?}");
        assert_eq!(waited, 0);
        assert_eq!(proc::children(stopped.shim.pid()), [0; 0]);
        assert!(!test.vm_dir("stopped").exists());
        for sandbox in [&one, &other, &stopped] {
            sandbox.shut_down().await;
        }
        let never = made("never").await;
        never.stop().await;
        assert_eq!(never.wait().await, 0);
        assert_eq!(refused(never.start().await).code, Code::FailedPrecondition);
        never.shut_down().await;
    });
}

/// V14: a sandbox without a container, and who waits for it, go on under the shim's next image; and where
/// the shim is brought back when it is killed, it is there as it was.
#[test]
fn a_sandbox_outlives_its_shims_image() {
    crate::run(async |test| {
        let bundle = test.bundle("s").build();
        fs::remove_file(bundle.file("config.json")).expect("it was written");
        let start = bundle.start().env("DUNNAGE_ON_SHIM_DEATH", "adopt");
        let shim = start.shim().await;
        let mut sandbox = Sandbox { bundle, shim };
        sandbox.create(&pod()).await.unwrap();
        let pid = sandbox.start().await.unwrap();
        let binary = copy_of_the_binary(test, "a");
        let upgraded = async {
            let output = upgrade(test, &binary).await;
            assert_eq!(output.code(), Some(0), "{output:?}");
            assert_eq!(image_of(&sandbox.shim), binary);
            assert_eq!(sandbox.state().await, "SANDBOX_READY");
            let a = sandbox.run(sandbox.container("a", pid)).await;
            let text = said(&sandbox.shim, &a, a.exec_sh("e", "hostname; ps")).await;
            assert!(
                text.starts_with("web\n") && text.contains("/pause"),
                "{text}"
            );
            sandbox.stop().await;
        };
        let (waited, ()) = tokio::join!(sandbox.wait(), upgraded);
        assert_eq!(waited, 0);
        sandbox.shim.delete("a", "").await.unwrap();
        // Also one that has ended.
        let output = upgrade(test, &binary).await;
        assert_eq!(output.code(), Some(0), "{output:?}");
        assert_eq!(sandbox.wait().await, 0);
        sandbox.shut_down().await;

        let bundle = test.bundle("t").build();
        fs::remove_file(bundle.file("config.json")).expect("it was written");
        let start = bundle.start().env("DUNNAGE_ON_SHIM_DEATH", "adopt");
        let shim = start.shim().await;
        sandbox = Sandbox { bundle, shim };
        sandbox.create(&pod()).await.unwrap();
        let pid = sandbox.start().await.unwrap();
        let keeper = proc::stat(sandbox.shim.pid()).unwrap().ppid;
        wait::signal(sandbox.shim.pid(), libc::SIGKILL).unwrap();
        wait::ended(sandbox.shim.pid()).await;
        let answer = sandbox.shim.answer().clone();
        sandbox.shim = Shim::connect(&sandbox.bundle, answer).await;
        assert_eq!(sandbox.state().await, "SANDBOX_READY");
        let b = sandbox.run(sandbox.container("b", pid)).await;
        let text = said(&sandbox.shim, &b, b.exec_sh("e", "hostname")).await;
        assert_eq!(text, "web\n");
        sandbox.stop().await;
        assert_eq!(sandbox.wait().await, 0);
        sandbox.shut_down().await;
        wait::ended(keeper).await;
    });
}

/// S1: a VM that stands still keeps nobody from an answer of Ping and Status, and is stopped. One that is
/// killed has ended: its container's exit is told first, and then all who wait for it hear so.
#[test]
fn a_vm_that_hangs_or_dies_ends_its_sandbox() {
    crate::run(async |test| {
        let sandbox = Sandbox::new(test, "dies").await;
        sandbox.create(&pod()).await.unwrap();
        let pid = sandbox.start().await.unwrap();
        let a = sandbox.run(sandbox.container("a", pid)).await;
        let again = Sandbox {
            bundle: sandbox.bundle.clone(),
            shim: sandbox.shim.reconnect().await,
        };
        let kill = async { wait::signal(sandbox.qemu(), libc::SIGKILL).unwrap() };
        let ended = tokio::join!(
            sandbox.wait(),
            sandbox.wait(),
            again.wait(),
            sandbox.shim.wait("a", ""),
            kill
        );
        assert_eq!((ended.0, ended.1, ended.2), (137, 137, 137));
        assert_eq!(ended.3.unwrap().exit_status, 137);
        assert_eq!(sandbox.wait().await, 137);
        assert_eq!(sandbox.state().await, "SANDBOX_NOTREADY");
        let late = refused(sandbox.shim.create(a.create()).await);
        assert!(!late.message.is_empty());
        sandbox.shim.delete("a", "").await.unwrap();
        sandbox.shut_down().await;

        let sandbox = Sandbox::new(test, "hangs").await;
        sandbox.create(&pod()).await.unwrap();
        let pid = sandbox.start().await.unwrap();
        let b = sandbox.run(sandbox.container("b", pid)).await;
        wait::signal(sandbox.qemu(), libc::SIGSTOP).unwrap();
        let exec = b.exec("e", &["true"]);
        sandbox.shim.exec(exec).await.unwrap();
        let hangs = sandbox.shim.start("b", "e");
        let others = async {
            sandbox.ping().await.unwrap();
            assert_eq!(sandbox.state().await, "SANDBOX_READY");
            sandbox.stop().await;
        };
        let (hangs, ()) = tokio::join!(hangs, others);
        assert!(hangs.is_err());
        assert_eq!(sandbox.wait().await, 0);
        sandbox.shut_down().await;
    });
}

/// V7, S4: what a VM can't give its pod is refused by name, before there is one; then the shim can be shut
/// down. A shim that is killed leaves nothing that `delete` would not take away.
#[test]
fn a_sandbox_that_cannot_be_leaves_nothing() {
    crate::run(async |test| {
        for (id, options, name) in [
            ("n", [2, 1, 0], "hostNetwork"),
            ("p", [0, 2, 0], "hostPID"),
            ("i", [0, 1, 2], "hostIPC"),
        ] {
            let [network, pid, ipc] = options;
            let namespace_options = Some(NamespaceOption {
                network,
                pid,
                ipc,
                ..Default::default()
            });
            let mut config = pod();
            config.linux = Some(LinuxPodSandboxConfig {
                security_context: Some(LinuxSandboxSecurityContext { namespace_options }),
                ..Default::default()
            });
            let sandbox = Sandbox::new(test, id).await;
            let status = refused(sandbox.create(&config).await);
            assert_eq!(status.code, Code::Unimplemented);
            assert!(
                status.message.starts_with(&format!("{name}: ")),
                "{status:?}"
            );
            assert_eq!(proc::children(sandbox.shim.pid()), [0; 0]);
            sandbox.shut_down().await;
        }
        // A sysctl that is none fails the start, by name.
        let sandbox = Sandbox::new(test, "sysctl").await;
        let mut config = pod();
        let linux = config.linux.as_mut().unwrap();
        linux.sysctls = [("kernel.no_such".to_owned(), "1".to_owned())].into();
        sandbox.create(&config).await.unwrap();
        let status = refused(sandbox.start().await);
        assert!(status.message.contains("kernel.no_such"), "{status:?}");
        assert_eq!(sandbox.wait().await, 137);
        sandbox.shut_down().await;

        // Pids that are not shared can't be joined.
        let sandbox = Sandbox::new(test, "killed").await;
        let mut config = pod();
        let namespace_options = Some(NamespaceOption {
            pid: NamespaceMode::Container.into(),
            ..Default::default()
        });
        let linux = config.linux.as_mut().unwrap();
        linux.security_context = Some(LinuxSandboxSecurityContext { namespace_options });
        sandbox.create(&config).await.unwrap();
        let pid = sandbox.start().await.unwrap();
        let a = sandbox.container("a", pid).build();
        let status = refused(sandbox.shim.create(a.create()).await);
        assert!(
            status.message.contains("joining the pid namespace"),
            "{status:?}"
        );
        let vm = [sandbox.qemu(), child(&sandbox.shim, "fsd")];
        sandbox.shim.kill_process().await;
        for pid in vm {
            wait::ended(pid).await;
        }
        sandbox.bundle.start().deleted().await;
        assert!(!test.vm_dir("killed").exists());
    });
}
