// SPDX-License-Identifier: Apache-2.0
//! N6: filesystems that a program serves and a helper mounts.

use super::{ended, mount, sh, started, text};
use harness::bundle::Builder;
use harness::stdio::Fifo;
use harness::{Bundle, Code, Test, differs, peers, proc, program, refused, wait};
use serde_json::json;
use std::fs;
use std::time::Duration;
use tokio::io::AsyncReadExt;

/// The type of the filesystem that is mounted on the container's root.
fn kind(bundle: &Bundle) -> Option<String> {
    let (_, line) = bundle.mountinfo().into_iter().next()?;
    let (_, after) = line.split_once(" - ")?;
    Some(after.split(' ').next()?.to_owned())
}

/// The process that serves the container's FUSE filesystem.
fn server(bundle: &Bundle) -> i32 {
    // A VM's is made beside the share, and moved there with all of its mounts.
    let vm = bundle.test.vm_dir(&bundle.id).join("stage-");
    let rootfs = bundle.mounted_at();
    let at = |word: &String| word == text(&rootfs) || word.starts_with(text(&vm));
    let serves = |pid: &i32| proc::alive(*pid) && proc::words(*pid, "cmdline").iter().any(at);
    let found: Vec<i32> = proc::all().into_iter().filter(serves).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0]
}

fn fuse_overlay(test: &Test, id: &str, kind: &str) -> Builder {
    let dirs = ["upper", "work"].map(|name| test.dir().join(format!("{id}-{name}")));
    for dir in &dirs {
        fs::create_dir(dir).unwrap();
    }
    let options = [
        format!("lowerdir={}", text(peers::rootfs())),
        format!("upperdir={}", text(&dirs[0])),
        format!("workdir={}", text(&dirs[1])),
    ];
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    test.bundle(id)
        .rootfs(vec![mount(kind, "overlay", &options)])
        .set("/root/readonly", json!(false))
}

/// N6: mount.fuse and mount.fuse3 mount it; with the mount goes who serves it.
#[test]
fn fuse_filesystems_are_mounted_by_their_helper() {
    harness::run(async |test| {
        for (id, prefix) in [("old", "fuse"), ("new", "fuse3")] {
            let bundle = fuse_overlay(test, id, &format!("{prefix}.fuse-overlayfs")).build();
            let shim = started(&bundle).await;
            assert_eq!(kind(&bundle).as_deref(), Some("fuse.fuse-overlayfs"));
            let server = server(&bundle);
            sh(&shim, &bundle, "e", "echo written >/file").await;
            let written = test.dir().join(format!("{id}-upper/file"));
            assert_eq!(fs::read_to_string(written).unwrap(), "written\n");
            ended(&shim, id).await;
            shim.delete(id, "").await.unwrap();
            assert_eq!(bundle.mounts(), [] as [String; 0]);
            wait::ended(server).await;
        }
    });
}

/// N6, N7: a filesystem whose server died or hangs answers errors or nothing; Delete does not ask.
#[test]
fn fuse_filesystem_without_its_server_is_unmounted() {
    harness::run_unless_vm_differs("volume-fifos", async |test| {
        for (id, signal) in [("dead", libc::SIGKILL), ("stuck", libc::SIGSTOP)] {
            let [up, hold] = ["up", "hold"].map(|name| format!("{id}-{name}"));
            let (_held, mut settled) = Fifo::new(test.share().join(&up)).gate();
            Fifo::new(test.share().join(&hold));
            // Not in the middle of reading itself: only its filesystem could end that.
            let script = format!("echo up >/mnt/{up}; read x </mnt/{hold}");
            let builder = fuse_overlay(test, id, "fuse3.fuse-overlayfs");
            let bundle = builder.share().sh(&script).build();
            let shim = started(&bundle).await;
            let mut word = [0; 3];
            let read = settled.read_exact(&mut word);
            wait::soon("init's word", read).await.unwrap();
            let server = server(&bundle);
            if signal == libc::SIGSTOP && differs("stuck-fuse") {
                ended(&shim, id).await;
                continue;
            }
            wait::signal(server, signal).unwrap();
            // Init may miss its pages, and end by itself.
            let _ = shim.kill(id, "", libc::SIGKILL, false).await;
            shim.wait(id, "").await.unwrap();
            shim.delete(id, "").await.unwrap();
            assert_eq!(bundle.mounts(), [] as [String; 0]);
            let _ = wait::signal(server, libc::SIGCONT);
            wait::ended(server).await;
        }
    });
}

/// Makes this script the first mount.fuse3 in the PATH of shims.
fn helper(test: &Test, script: &str) {
    let helper = test.dir().join("bin/mount.fuse3");
    program::write(&helper, &format!("#!/bin/sh\n{script}\n"));
}

/// N6: what the helper says is the error, and what it did is undone.
#[test]
fn fuse_helper_that_fails_is_quoted_and_undone() {
    harness::run(async |test| {
        helper(
            test,
            "mount -t tmpfs tmpfs \"$2\"; echo no luck >&2; exit 7",
        );
        let bundle = fuse_overlay(test, "c", "fuse3.x").build();
        let shim = bundle.start().shim().await;
        let status = refused(shim.create(bundle.create()).await);
        assert_eq!(status.code, Code::Unknown);
        for said in ["mount.fuse3", "no luck", "exit status 7", "upperdir="] {
            assert!(status.message.contains(said), "{said}: {}", status.message);
        }
        assert_eq!(bundle.mounts(), [] as [String; 0]);
        let fine = mount("bind", text(peers::rootfs()), &["rbind"]);
        let mut request = bundle.create();
        request.rootfs = vec![fine];
        shim.create(request).await.unwrap();
    });
}

/// N6: a helper that hangs is killed when the caller gives up, and what it did is undone.
#[test]
fn fuse_helper_that_hangs_ends_with_its_callers_deadline() {
    if differs("fuse-helper-deadline") {
        return;
    }
    harness::run_unless_vm_differs("boot", async |test| {
        let pid = test.dir().join("pid");
        let script = "mount -t tmpfs tmpfs \"$2\"; echo $$ >\"$PIDFILE.new\"
                      mv \"$PIDFILE.new\" \"$PIDFILE\"; exec sleep 100000";
        helper(test, script);
        let bundle = fuse_overlay(test, "c", "fuse3.x").build();
        let start = bundle.start().env("PIDFILE", text(&pid));
        let shim = start.shim().await;
        let request = bundle.create();
        let limit = Duration::from_secs(1);
        let (created, ()) = tokio::join!(shim.call_for(&request, limit), wait::exists(&pid),);
        assert_eq!(refused(created).code, Code::DeadlineExceeded);
        let pid = fs::read_to_string(&pid).unwrap();
        wait::ended(pid.trim().parse().unwrap()).await;
        // The first Create unwinds on its own; once it has, another one may begin.
        let mut fine = bundle.create();
        fine.rootfs = vec![mount("bind", text(peers::rootfs()), &["rbind"])];
        let again = async {
            while let Err(error) = shim.create(fine.clone()).await {
                let status = refused::<()>(Err(error));
                assert!(status.message.contains("already exists"), "{status}");
            }
        };
        wait::soon("a second Create", again).await;
        assert_eq!(bundle.mounts(), [text(&bundle.file("rootfs"))]);
    });
}
