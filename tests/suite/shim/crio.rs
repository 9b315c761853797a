// SPDX-License-Identifier: Apache-2.0
//! A pod as CRI-O starts it, which has shims as its runtimes of the type `vm`: nobody to send events to,
//! root file systems that are mounted already, options in a file, and namespaces that it has pinned.

use harness::peers::is_vm;
use harness::start::Answer;
use harness::{Bundle, Shim, Test, differs, peers, wait};
use protos::{any, runtimeoptions};
use serde_json::json;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command};

/// Of the host's: CRI-O has them as files, and here they are links to those of a process.
struct Pinned {
    holder: Child,
}

const KINDS: [&str; 2] = ["ipc", "uts"];

impl Pinned {
    fn make(test: &Test) -> Self {
        let mut command = Command::new("unshare");
        let holder = command.args(["--ipc", "--uts", "sleep", "1000"]).spawn();
        let holder = holder.expect("unshare");
        for kind in KINDS {
            let own = format!("/proc/{}/ns/{kind}", holder.id());
            symlink(own, Self::path(test, kind)).expect("a link");
        }
        Self { holder }
    }

    fn path(test: &Test, kind: &str) -> PathBuf {
        test.share().join(format!("{kind}ns"))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.holder.kill().expect("kill");
        self.holder.wait().expect("wait");
    }
}

/// A container that says in the file `id` which namespace it is in.
fn bundle(test: &Test, id: &str, kind: &str) -> Bundle {
    let pin = |kind: &str| json!({"type": kind, "path": Pinned::path(test, kind)});
    let mut namespaces = vec![
        json!({"type": "pid"}),
        json!({"type": "mount"}),
        json!({"type": "network"}),
    ];
    namespaces.extend(KINDS.map(pin));
    let script = format!(
        "trap 'exit 6' TERM; readlink /proc/self/ns/ipc >/mnt/{id}.new; mv /mnt/{id}.new /mnt/{id}; \
        while :; do sleep 1000 & wait $!; done"
    );
    test.bundle(id)
        .annotation("io.kubernetes.cri-o.ContainerType", kind)
        .annotation("io.kubernetes.cri-o.SandboxID", "p")
        .share()
        .sh(&script)
        .rootfs(Vec::new())
        .set("/root/path", json!(peers::rootfs()))
        .set("/linux/namespaces", json!(namespaces))
        .build()
}

/// `start`, in CRI-O's words.
async fn started(bundle: &Bundle) -> Shim {
    let namespace = bundle.test.namespace();
    let words = ["-namespace", namespace, "-address", "", "-publish-binary"];
    let more = ["/usr/bin/crio", "-id", &bundle.id, "start"];
    let args: Vec<String> = words
        .iter()
        .chain(&more)
        .map(|it| (*it).to_owned())
        .collect();
    let start = bundle
        .start()
        .env("TTRPC_ADDRESS", "")
        .env("GRPC_ADDRESS", "");
    let output = wait::output(start.command(&args), None).await;
    assert_eq!(output.code(), Some(0), "{}", output.err());
    let answer = Answer::parse(&output.stdout);
    assert_eq!(answer.version, 2, "the newest that it speaks");
    Shim::connect(bundle, answer).await
}

async fn runs(shim: &Shim, bundle: &Bundle) -> String {
    let options = bundle.test.share().join("options.toml");
    fs::write(&options, "# A comment.\nSystemdCgroup = false\n").expect("options");
    let options = runtimeoptions::Options {
        config_path: options.to_string_lossy().into_owned(),
        ..Default::default()
    };
    let mut request = bundle.create();
    if !differs("runtimeoptions") {
        request.options = Some(any::pack(&options));
    }
    shim.create(request).await.expect("Create");
    shim.start(&bundle.id, "").await.expect("Start");
    let said = bundle.test.share().join(&bundle.id);
    let look = || fs::read_to_string(&said).map_err(|e| e.to_string());
    wait::until("a word of the container", look).await
}

/// B30: one shim for all, which ends with the last of them.
#[test]
fn a_pod_of_crio_shares_a_shim_and_what_is_pinned() {
    harness::run(async |test| {
        let pinned = Pinned::make(test);
        let pod = bundle(test, "p", "sandbox");
        let shim = started(&pod).await;
        let own = runs(&shim, &pod).await;
        let host = format!("/proc/{}/ns/ipc", pinned.holder.id());
        let is_hosts = fs::read_link(host).expect("a namespace").to_str() == Some(own.trim());
        assert_eq!(is_hosts, !is_vm());
        let container = bundle(test, "c", "container");
        let also = started(&container).await;
        if !differs("crio-group") {
            assert_eq!(also.pid(), shim.pid());
        }
        assert_eq!(runs(&also, &container).await, own);
        for (shim, id) in [(&also, "c"), (&shim, "p")] {
            shim.kill(id, "", libc::SIGTERM, false).await.expect("Kill");
            assert_eq!(shim.wait(id, "").await.expect("Wait").exit_status, 6);
            shim.delete(id, "").await.expect("Delete");
            shim.shutdown(id).await.expect("Shutdown");
        }
        wait::ended(shim.pid()).await;
    });
}
