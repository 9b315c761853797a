// SPDX-License-Identifier: Apache-2.0
//! The `delete` command: what cleans up when a shim is gone (D1 to D7).

use harness::{Bundle, Shim, Test, differs, peers, proc, start, vm_differs, wait};
use protos::runc::Options;
use protos::task::DeleteResponse;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// A running container whose shim has just been killed, and its init.
async fn orphan(bundle: &Bundle, binary: &Path, options: &Options) -> i32 {
    let shim = bundle.start().binary(binary).shim().await;
    let options = start::options(options);
    let request = protos::task::CreateTaskRequest {
        options,
        ..bundle.create()
    };
    let pid = shim.create(request).await.unwrap().pid;
    shim.start(&bundle.id, "").await.unwrap();
    shim.kill_process().await;
    if vm_differs("dies-with-shim") {
        wait::ended(pid as i32).await;
    } else {
        assert!(proc::alive(pid as i32), "containers outlive their shim");
    }
    pid as i32
}

fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs() as i64
}

fn check(answer: &DeleteResponse, pid: u32, since: i64) {
    assert_eq!((answer.pid, answer.exit_status), (pid, 137), "D4");
    let at = answer.exited_at.expect("exited_at").seconds;
    assert!((since..=now()).contains(&at), "exited_at {at} is now");
}

/// B26, D1 to D4: container, mounts and runtime state go; the answer is pid, 137, now.
#[test]
fn delete_kills_and_cleans_what_a_dead_shim_left() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let pid = orphan(&bundle, peers::shim(), &Options::default()).await;
        if !vm_differs("private-mounts") {
            assert_eq!(bundle.mounts(), [bundle.file("rootfs").to_string_lossy()]);
            assert!(test.runc_root().join("c").exists());
        }
        let since = now();
        let answer = bundle.start().deleted().await;
        check(&answer, pid as u32, since);
        wait::ended(pid).await;
        assert_eq!(bundle.mounts(), [] as [String; 0]);
        assert!(!test.runc_root().join("c").exists());
    });
}

/// D7: twice is as good as once.
#[test]
fn delete_is_idempotent() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let pid = orphan(&bundle, peers::shim(), &Options::default()).await as u32;
        for _ in 0..2 {
            let since = now();
            check(&bundle.start().deleted().await, pid, since);
        }
    });
}

/// D3: no init.pid, then no pid; the rest is done all the same.
#[test]
fn delete_without_an_init_pid_answers_minus_one() {
    harness::run_unless_vm_differs("dies-with-shim", async |test| {
        let bundle = test.bundle("c").build();
        let pid = orphan(&bundle, peers::shim(), &Options::default()).await;
        fs::remove_file(bundle.file("init.pid")).unwrap();
        let since = now();
        check(&bundle.start().deleted().await, u32::MAX, since);
        wait::ended(pid).await;
    });
}

/// D2: a task whose Create did not get to write `runtime` and `options.json`.
#[test]
fn delete_needs_neither_runtime_nor_options() {
    harness::run_unless_vm_differs("guests-runtime", async |test| {
        let bundle = test.bundle("c").build();
        let pid = orphan(&bundle, peers::shim(), &Options::default()).await;
        let contents = fs::read(bundle.file("runtime")).unwrap();
        fs::remove_file(bundle.file("runtime")).unwrap();
        fs::remove_file(bundle.file("options.json")).unwrap();
        if differs("delete-without-runtime") {
            assert_eq!(bundle.start().delete().await.code(), Some(1));
            fs::write(bundle.file("runtime"), contents).unwrap();
        }
        let since = now();
        check(&bundle.start().deleted().await, pid as u32, since);
        wait::ended(pid).await;
    });
}

/// D3: before Create there is nothing to delete, and that is no error.
#[test]
fn delete_of_a_container_never_created_succeeds() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        bundle.start().shim().await.kill_process().await;
        if differs("delete-without-runtime") {
            assert_eq!(bundle.start().delete().await.code(), Some(1));
            return;
        }
        let since = now();
        check(&bundle.start().deleted().await, u32::MAX, since);
    });
}

/// D2: the runtime's root is the one the task was created with.
#[test]
fn delete_uses_the_root_of_the_options() {
    harness::run_unless_vm_differs("guests-runtime", async |test| {
        let root = test.dir().join("runc-root");
        let options = Options {
            root: root.to_string_lossy().into_owned(),
            ..Default::default()
        };
        let bundle = test.bundle("c").build();
        let pid = orphan(&bundle, peers::shim(), &options).await;
        assert!(
            root.join(test.namespace()).join("c").exists(),
            "the root is obeyed"
        );
        let since = now();
        check(&bundle.start().deleted().await, pid as u32, since);
        wait::ended(pid).await;
        assert!(!root.join(test.namespace()).join("c").exists());
    });
}

/// D5: containerd removes the bundle, and nobody else.
#[test]
fn delete_leaves_the_bundle() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        orphan(&bundle, peers::shim(), &Options::default()).await;
        let files = bundle.files();
        bundle.start().deleted().await;
        assert_eq!(bundle.files(), files);
    });
}

async fn cleans_up_after(test: &Test, maker: &Path, cleaner: &Path) {
    let bundle = test.bundle("c").build();
    let pid = orphan(&bundle, maker, &Options::default()).await;
    let since = now();
    check(
        &bundle.start().binary(cleaner).deleted().await,
        pid as u32,
        since,
    );
    wait::ended(pid).await;
}

/// D7: after an upgrade, the new binary deletes what the old one made; after a downgrade too.
#[test]
fn delete_cleans_up_after_the_other_shim() {
    if peers::is_go() || vm_differs("guests-runtime") {
        return;
    }
    let Some(go) = peers::go_shim() else {
        println!("no Go shim on this machine");
        return;
    };
    harness::run(async |test| cleans_up_after(test, go, peers::shim()).await);
    harness::run(async |test| cleans_up_after(test, peers::shim(), go).await);
}

/// The running shim is not disturbed by a `delete` for a container that it does not have.
#[test]
fn delete_of_one_container_spares_the_group() {
    harness::run_unless_vm_differs("delete-of-one", async |test| {
        let group = |id| {
            test.bundle(id)
                .annotation("io.containerd.runc.v2.group", "g")
                .build()
        };
        let (one, two) = (group("one"), group("two"));
        let shim: Shim = one.start().shim().await;
        two.start().shim().await;
        shim.create(one.create()).await.unwrap();
        let pid = shim.create(two.create()).await.unwrap().pid;
        shim.start("two", "").await.unwrap();
        let since = now();
        check(&two.start().deleted().await, pid, since);
        assert_eq!(test.events().exit("two", "two").await.exit_status, 137);
        assert_eq!(shim.state("one", "").await.unwrap().exit_status, 0);
    });
}
