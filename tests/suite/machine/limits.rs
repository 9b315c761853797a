// SPDX-License-Identifier: Apache-2.0
//! Limits and the freezer: Update, Pause, Resume, Kill and Pids (T70 to T74).

use crate::{cgroup, field, read};
use harness::vm::with_cgroup2;
use protos::task_types::Status;
use serde_json::json;

/// T74: each limit reaches the kernel, before Start, while it runs and while it is paused.
#[test]
fn update_sets_the_kernels_limits() {
    with_cgroup2(async |test| {
        let bundle = test.bundle("c").memory_limit(64 << 20).build();
        let shim = bundle.start().shim().await;
        shim.create(bundle.create()).await.unwrap();
        let dir = cgroup(test, "c");
        assert_eq!(read(&dir, "memory.max"), "67108864");
        let update = async |json: &str| shim.update("c", json).await.unwrap();
        update(r#"{"memory":{"limit":50331648}}"#).await;
        assert_eq!(read(&dir, "memory.max"), "50331648");
        shim.start("c", "").await.unwrap();
        update(r#"{"pids":{"limit":50}}"#).await;
        assert_eq!(read(&dir, "pids.max"), "50");
        shim.pause("c").await.unwrap();
        update(r#"{"cpu":{"quota":30000,"period":100000}}"#).await;
        assert_eq!(read(&dir, "cpu.max"), "30000 100000");
        assert_eq!(field(&dir, "cgroup.events", "frozen"), 1);
        shim.resume("c").await.unwrap();
    });
}

/// T70: a fork over the limit fails, Pids tells who is there, and the container goes on.
#[test]
fn pids_limit_holds() {
    with_cgroup2(async |test| {
        let limit = json!(8);
        let bundle = test.bundle("c").set("/linux/resources/pids/limit", limit);
        let bundle = bundle.build();
        let shim = bundle.running().await;
        let script = "for n in 1 2 3 4 5 6 7 8 9; do sleep 100000 & done";
        shim.run(bundle.exec_sh("e", script)).await;
        assert_ne!(shim.wait("c", "e").await.unwrap().exit_status, 0);
        let dir = cgroup(test, "c");
        assert!(field(&dir, "pids.events", "max") > 0);
        let pids = shim.pids("c").await.unwrap().processes;
        assert!((2..=8).contains(&pids.len()), "{pids:?}");
        assert_eq!(shim.state("c", "").await.unwrap().status(), Status::Running);
    });
}

/// T71: a paused container stands still, and goes on where it was.
#[test]
fn pause_freezes_and_resume_thaws() {
    with_cgroup2(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        shim.run(bundle.exec_sh("e", "while :; do :; done")).await;
        let dir = cgroup(test, "c");
        shim.pause("c").await.unwrap();
        assert_eq!(shim.state("c", "").await.unwrap().status(), Status::Paused);
        assert_eq!(field(&dir, "cgroup.events", "frozen"), 1);
        let used = || field(&dir, "cpu.stat", "user_usec");
        let before = used();
        shim.resume("c").await.unwrap();
        assert_eq!(shim.state("c", "").await.unwrap().status(), Status::Running);
        assert_eq!(field(&dir, "cgroup.events", "frozen"), 0);
        harness::wait::until("it uses time again", || match used() {
            now if now > before => Ok(()),
            now => Err(format!("{now} µs")),
        })
        .await;
    });
}

/// T72: SIGKILL ends a paused container.
#[test]
fn kill_ends_a_paused_container() {
    with_cgroup2(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        shim.pause("c").await.unwrap();
        shim.kill("c", "", 9, false).await.unwrap();
        assert_eq!(shim.wait("c", "").await.unwrap().exit_status, 137);
        assert_eq!(test.events().exit("c", "c").await.exit_status, 137);
    });
}
