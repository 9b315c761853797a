// SPDX-License-Identifier: Apache-2.0
//! Root filesystems that take more than mount(2) (N4 to N8), and unmounting that takes its time.

mod fuse;
mod idmap;
mod killed;
mod loopdev;
mod slow;

use harness::{Bundle, Code, Shim, differs, peers, refused};
use protos::types::Mount;
use std::path::Path;
use std::process::Command;

fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        r#type: kind.to_owned(),
        source: source.to_owned(),
        target: String::new(),
        options: options.iter().map(|o| (*o).to_owned()).collect(),
    }
}

/// Runs a program of the machine's to its end.
fn tool(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e} (tests/setup.sh installs it)"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Creates and starts the container.
async fn started(bundle: &Bundle) -> Shim {
    let shim = bundle.start().shim().await;
    shim.create(bundle.create()).await.unwrap();
    shim.start(&bundle.id, "").await.unwrap();
    shim
}

/// Runs `script` in the running container; it must succeed.
async fn sh(shim: &Shim, bundle: &Bundle, exec: &str, script: &str) {
    shim.exec(bundle.exec_sh(exec, script)).await.unwrap();
    shim.start(&bundle.id, exec).await.unwrap();
    let status = shim.wait(&bundle.id, exec).await.unwrap().exit_status;
    assert_eq!(status, 0, "{script}");
    shim.delete(&bundle.id, exec).await.unwrap();
}

async fn ended(shim: &Shim, id: &str) {
    shim.kill(id, "", libc::SIGKILL, false).await.unwrap();
    shim.wait(id, "").await.unwrap();
}

/// N8, N2: refused by name before anything is mounted; the text says who should have done it.
#[test]
fn mounts_for_the_mount_manager_are_refused_by_name() {
    harness::run_unless_vm_differs("guests-images", async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.start().shim().await;
        let busybox = text(peers::rootfs());
        let mkdir = "X-containerd.mkdir.path=/x";
        for (mounts, culprit) in [
            (vec![mount("bind", busybox, &["rbind", mkdir])], mkdir),
            (
                vec![mount("format/overlay", "overlay", &[])],
                "format/overlay",
            ),
            (vec![mount("mkfs/loop", "/image", &[])], "mkfs/loop"),
            (vec![mount("mkdir/bind", busybox, &["bind"])], "mkdir/bind"),
        ] {
            let mut request = bundle.create();
            request.rootfs = [bundle.rootfs.clone(), mounts].concat();
            let result = shim.create(request).await;
            if differs("managed-mounts") {
                if result.is_ok() {
                    shim.delete("c", "").await.unwrap();
                }
                continue;
            }
            let status = refused(result);
            assert_eq!(status.code, Code::Unknown);
            for said in [culprit, "mount manager"] {
                assert!(status.message.contains(said), "{said}: {}", status.message);
            }
            assert_eq!(bundle.mounts(), [] as [String; 0]);
        }
    });
}
