// SPDX-License-Identifier: Apache-2.0
//! A VM that has gone on is as one that has booted: to its shim's next image, to a shim that is brought back, to
//! a second checkpoint, and when it dies or nobody waits for it any more.

use super::{COUNTER, goes_on, restored, run, running, saved, shim, with_pipes, writable};
use crate::death::qemu;
use crate::{adopt, child, said};
use harness::bundle::Bundle;
use harness::disk::Served;
use harness::events::{Event, Kind};
use harness::raw::Raw;
use harness::stdio::{Reader, Writer};
use harness::upgrade::{copy_of_the_binary, image_of, upgrade};
use harness::{Code, Shim, Test, proc, refused, wait};
use protos::service;
use protos::task_types::Status as State;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Enough to make a VM that waits, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// A container of [`COUNTER`], saved into `image` when it had counted to 1.
async fn counted(test: &Test, config: &Path, image: &Path) {
    let bundle = writable(test, "c", COUNTER).build();
    let first = shim(&bundle, config).await;
    let (fifos, mut out, _err) = with_pipes((&first, &bundle), true, None).await;
    first.start("c", "").await.unwrap();
    counts(&mut fifos.stdin.writer().await, &mut out, 1).await;
    saved(&first, "c", image).await;
}

/// It counts one line, which makes so many.
async fn counts(lines: &mut Writer, out: &mut Reader, number: u32) {
    lines.write("x\n").await;
    let line = out.line().await;
    assert!(
        line.starts_with(&format!("{number} x ")),
        "{number}: {line}"
    );
}

async fn is_upgraded(test: &Test, shim: &Shim, dir: &str) {
    let binary = copy_of_the_binary(test, dir);
    let output = upgrade(test, &binary).await;
    assert_eq!(output.code(), Some(0), "{output:?}");
    assert_eq!(image_of(shim), binary);
}

/// Before its Start and after it the shim is replaced; that saves the VM again, which goes on once more.
#[test]
fn what_goes_on_is_upgraded_and_saved_again() {
    run(async |test, config, image| {
        counted(test, config, image).await;
        let bundle = writable(test, "b", COUNTER).build();
        let second = shim(&bundle, config).await;
        let (fifos, mut out, _err) = with_pipes((&second, &bundle), true, Some(image)).await;
        let again = test.dir().join("again");
        let request = |exit| super::request("b", &again, exit);
        refused(second.checkpoint(request(true)).await);
        assert!(!again.exists(), "it is not started");
        is_upgraded(test, &second, "a").await;
        assert_eq!(
            second.state("b", "").await.unwrap().status(),
            State::Created
        );
        second.start("b", "").await.unwrap();
        let mut lines = fifos.stdin.writer().await;
        counts(&mut lines, &mut out, 2).await;
        is_upgraded(test, &second, "b").await;
        counts(&mut lines, &mut out, 3).await;
        let exec = bundle.exec_sh("e", "echo here");
        assert_eq!(said(&second, &bundle, exec).await, "here\n");
        second.delete("b", "e").await.unwrap();
        saved(&second, "b", &again).await;
        second.released().await;

        let bundle = writable(test, "d", COUNTER).build();
        let third = shim(&bundle, config).await;
        let (fifos, mut out, _err) = with_pipes((&third, &bundle), true, Some(&again)).await;
        third.start("d", "").await.unwrap();
        let mut lines = fifos.stdin.writer().await;
        counts(&mut lines, &mut out, 4).await;
        let exec = bundle.exec_sh("e", "echo here");
        assert_eq!(said(&third, &bundle, exec).await, "here\n");
        drop(lines);
        third.close_io("d", "").await.unwrap();
        assert_eq!(test.events().exit("d", "d").await.exit_status, 7);
    });
}

/// A shim that is killed before its Start, and after it, is brought back to it; that one saves it.
#[test]
fn what_goes_on_is_adopted() {
    run(async |test, config, image| {
        counted(test, config, image).await;
        let bundle = writable(test, "b", COUNTER).build();
        let start = bundle.start().env("DUNNAGE_ON_SHIM_DEATH", "adopt");
        let start = start.env("DUNNAGE_VM_CONFIG", &config.to_string_lossy());
        let shim = start.shim().await;
        let (fifos, mut out, _err) = with_pipes((&shim, &bundle), true, Some(image)).await;
        let vm = shim.state("b", "").await.unwrap().pid;
        let shim = adopt::kill(&bundle, &shim).await;
        let state = shim.state("b", "").await.unwrap();
        assert_eq!((state.status(), state.pid), (State::Created, vm));
        shim.start("b", "").await.unwrap();
        let mut lines = fifos.stdin.writer().await;
        counts(&mut lines, &mut out, 2).await;
        let shim = adopt::kill(&bundle, &shim).await;
        counts(&mut lines, &mut out, 3).await;
        let again = test.dir().join("again");
        let request = super::request("b", &again, false);
        shim.checkpoint(request).await.unwrap();
        counts(&mut lines, &mut out, 4).await;
        adopt::end(test, &bundle, &shim, vm).await;

        let bundle = writable(test, "d", COUNTER).build();
        let third = super::shim(&bundle, config).await;
        let (fifos, mut out, _err) = with_pipes((&third, &bundle), true, Some(&again)).await;
        third.start("d", "").await.unwrap();
        counts(&mut fifos.stdin.writer().await, &mut out, 4).await;
        third.stopped().await;
    });
}

/// What is killed for want of memory is told of; with its shim the VM ends, and the image is whole.
#[test]
fn what_goes_on_runs_out_of_memory_and_dies_as_others() {
    run(async |test, config, image| {
        let build = |id: &str| test.bundle(id).memory_limit(48 << 20).build();
        let first = running(&build("c"), config).await;
        saved(&first, "c", image).await;
        let bundle = build("b");
        let second = goes_on(&bundle, config, image).await;
        let eats = bundle.exec_sh("eats", "exec tail /dev/zero");
        second.run(eats).await;
        let oom = |event: &Event| {
            matches!(&event.kind, Kind::Oom(oom) if oom.container_id == "b").then_some(())
        };
        test.events().wait_for("TaskOOM", oom).await;
        assert_eq!(second.wait("b", "eats").await.unwrap().exit_status, 137);
        second.delete("b", "eats").await.unwrap();
        let vm = [qemu(&second), child(&second, "fsd")];
        second.kill_process().await;
        for pid in vm {
            wait::ended(pid).await;
        }
        assert_eq!(bundle.start().deleted().await.exit_status, 137);
        assert!(!test.vm_dir("b").exists());

        let bundle = build("d");
        let third = goes_on(&bundle, config, image).await;
        let exec = bundle.exec_sh("e", "echo here");
        assert_eq!(said(&third, &bundle, exec).await, "here\n");
        wait::signal(qemu(&third), libc::SIGKILL).unwrap();
        assert_eq!(test.events().exit("d", "d").await.exit_status, 137);
        third.delete("d", "").await.unwrap();
    });
}

/// The pid of the shim's child whose command line says `word`, as soon as it is there.
async fn comes(shim: &Shim, word: &str) -> i32 {
    let mut found = None;
    wait::until(word, || {
        let says = |pid: &i32| proc::words(*pid, "cmdline").iter().any(|w| w == word);
        found = proc::children(shim.pid()).into_iter().find(says);
        found.map(drop).ok_or_else(|| "it is not there".into())
    })
    .await;
    found.expect("it is there")
}

/// Nothing of a container is there, nor of its VM, and another can be made.
async fn is_undone(test: &Test, shim: &Shim, bundle: &Bundle, image: &Path) {
    let id = &bundle.id;
    let undone = || match (test.vm_dir(id).exists(), proc::children(shim.pid())) {
        (false, none) if none.is_empty() => Ok(()),
        some => Err(format!("{some:?}")),
    };
    wait::until("the end of it", undone).await;
    assert_eq!(refused(shim.state(id, "").await).code, Code::NotFound);
    let create = restored(bundle.create(), image);
    shim.create(create).await.unwrap();
    shim.start(id, "").await.unwrap();
    let told = said(shim, bundle, bundle.exec_sh("e", "echo here"));
    assert_eq!(told.await, "here\n");
    shim.stopped().await;
}

/// A Create whose client goes away, or whose deadline comes, while QEMU or the file server is at it, or the
/// image is read from a disk that stands still.
#[test]
fn a_create_that_is_given_up_leaves_nothing() {
    run(async |test, config, image| {
        let first = running(&test.bundle("c").build(), config).await;
        saved(&first, "c", image).await;
        for (n, word) in ["-no-user-config", "fsd"].into_iter().enumerate() {
            let bundle = test.bundle(&format!("goes{n}")).build();
            let shim = shim(&bundle, config).await;
            let create = restored(bundle.create(), image);
            let mut raw = Raw::to(&shim).await;
            let method = (service::TASK_V2, "Create");
            raw.request(1, method, &create, None).await;
            let pid = comes(&shim, word).await;
            wait::signal(pid, libc::SIGSTOP).unwrap();
            drop(raw);
            wait::ended(pid).await;
            is_undone(test, &shim, &bundle, image).await;

            let bundle = test.bundle(&format!("late{n}")).build();
            let shim = super::shim(&bundle, config).await;
            let create = restored(bundle.create(), image);
            let (created, pid) = tokio::join!(shim.call_for(&create, PATIENCE), async {
                let pid = comes(&shim, word).await;
                wait::signal(pid, libc::SIGSTOP).unwrap();
                pid
            });
            assert_eq!(refused(created).code, Code::DeadlineExceeded);
            wait::ended(pid).await;
            is_undone(test, &shim, &bundle, image).await;
        }
        let served = Served::new(test, test.dir().join("disk")).await;
        let slow = test.dir().join("disk/image");
        fs::create_dir(&slow).unwrap();
        for name in ["state", "manifest.json"] {
            fs::copy(image.join(name), slow.join(name)).unwrap();
        }
        let bundle = test.bundle("slow").build();
        let shim = shim(&bundle, config).await;
        let stopped = served.stop();
        let create = restored(bundle.create(), &slow);
        let created = shim.call_for(&create, PATIENCE / 5).await;
        assert_eq!(refused(created).code, Code::DeadlineExceeded);
        assert_eq!(refused(shim.state("slow", "").await).code, Code::NotFound);
        drop(stopped);
        is_undone(test, &shim, &bundle, &slow).await;
    });
}

/// A disk that stands still keeps nobody: the container runs on, nothing is left of it later, and it is saved
/// then.
#[test]
fn a_checkpoint_that_is_given_up_leaves_nothing() {
    run(async |test, config, image| {
        let bundle = test.bundle("c").build();
        let shim = running(&bundle, config).await;
        let served = Served::new(test, test.dir().join("disk")).await;
        let slow = test.dir().join("disk/image");
        let stopped = served.stop();
        let request = super::request("c", &slow, false);
        let given_up = refused(shim.call_for(&request, PATIENCE / 5).await);
        assert_eq!(given_up.code, Code::DeadlineExceeded);
        let told = said(&shim, &bundle, bundle.exec_sh("e", "echo here"));
        assert_eq!(told.await, "here\n");
        drop(stopped);
        wait::until("nothing of it", || match slow.exists() {
            false => Ok(()),
            true => Err(format!("{} is there", slow.display())),
        })
        .await;
        saved(&shim, "c", image).await;
    });
}
