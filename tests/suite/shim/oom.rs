// SPDX-License-Identifier: Apache-2.0
//! Out of memory: TaskOOM for a container whose limit was hit (O1, O3).

use harness::events::{Event, Kind};
use harness::stdio::{Fifos, Stdio};
use harness::{Test, differs, wait};
use serde_json::json;
use std::fs;
use std::path::PathBuf;

/// Takes memory until there is none.
const EAT: &str = "exec tail /dev/zero";
const LIMIT: u64 = 16 << 20;

fn ooms(test: &Test, container: &str) -> usize {
    let of = |e: &Event| matches!(&e.kind, Kind::Oom(oom) if oom.container_id == container);
    test.events().count(of)
}

async fn oom(test: &Test, container: &str) {
    let of = |e: &Event| matches!(&e.kind, Kind::Oom(oom) if oom.container_id == container);
    test.events()
        .wait_for("TaskOOM", |e| of(e).then_some(()))
        .await;
}

/// O1: the container is named, and goes on; the process that ate is killed.
#[test]
fn oom_of_an_exec_is_told() {
    harness::run(async |test| {
        let bundle = test.bundle("c").memory_limit(LIMIT).build();
        let shim = bundle.running().await;
        shim.run(bundle.exec_sh("e", EAT)).await;
        oom(test, "c").await;
        assert_eq!(test.events().exit("c", "e").await.exit_status, 137);
        let state = shim.state("c", "").await.unwrap();
        assert_eq!(state.status(), protos::task_types::Status::Running);
    });
}

/// O3: an init that eats from its first moment on.
#[test]
fn oom_of_init_is_told() {
    harness::run(async |test| {
        let bundle = test.bundle("c").memory_limit(LIMIT).sh(EAT).build();
        let shim = bundle.running().await;
        oom(test, "c").await;
        assert_eq!(test.events().exit("c", "c").await.exit_status, 137);
        assert_eq!(shim.wait("c", "").await.unwrap().exit_status, 137);
    });
}

/// O1: each container of a shim is watched by itself.
#[test]
fn oom_names_the_right_container() {
    harness::run(async |test| {
        let one = test.bundle("one").memory_limit(LIMIT).build();
        let two = test.bundle("two").memory_limit(LIMIT).build();
        let shim = one.running().await;
        shim.create(two.create()).await.unwrap();
        shim.start("two", "").await.unwrap();
        shim.run(two.exec_sh("e", EAT)).await;
        oom(test, "two").await;
        test.events().exit("two", "e").await;
        assert_eq!(ooms(test, "one"), 0);
    });
}

/// O1: systemd or Docker in a container have cgroups of their own there, which come and go: each
/// kill in one of them is told, also when those before are gone, with what they had counted.
#[test]
fn kills_below_the_containers_cgroup_are_told_one_by_one() {
    harness::run_unless_vm_differs("guests-cgroups", async |test| {
        let bundle = test.bundle("c").memory_limit(LIMIT).build();
        let shim = bundle.running().await;
        let cgroup = PathBuf::from(format!("/sys/fs/cgroup/memory/{}-c", test.namespace()));
        for n in 1..=4 {
            // The second and third have the name of one that is gone.
            let below = cgroup.join(if n == 4 { "last" } else { "below" });
            fs::create_dir(&below).unwrap();
            let id = format!("e{n}");
            let fifos = Fifos::new(test.dir().join(&id));
            let _readers = fifos.readers();
            let request = bundle.exec_sh(&id, "read -r x; exec tail /dev/zero");
            let pid = shim.run(request.fifos(&fifos)).await;
            fs::write(below.join("cgroup.procs"), pid.to_string()).unwrap();
            fifos.stdin.writer().await.write("eat\n").await;
            assert_eq!(test.events().exit("c", &id).await.exit_status, 137);
            let of = |e: &Event| matches!(e.kind, Kind::Oom(_));
            test.events().wait_count("TaskOOM", n, of).await;
            wait::until("an empty cgroup", || {
                fs::remove_dir(&below).map_err(|e| e.to_string())
            })
            .await;
        }
        shim.run(bundle.exec("fence", &["true"])).await;
        test.events().exit("c", "fence").await;
        assert_eq!(ooms(test, "c"), 4);
    });
}

/// O1: a cgroup that is removed is not out of memory, although the kernel says so.
#[test]
fn removal_of_the_cgroup_is_no_oom() {
    harness::run(async |test| {
        let fence = test.bundle("fence").build();
        let shim = fence.running().await;
        for n in 0..5 {
            let id = format!("c{n}");
            let bundle = test.bundle(&id).memory_limit(LIMIT).args(&["true"]).build();
            shim.create(bundle.create()).await.unwrap();
            shim.start(&id, "").await.unwrap();
            shim.wait(&id, "").await.unwrap();
            shim.delete(&id, "").await.unwrap();
            test.events().delete(&id).await;
        }
        shim.run(fence.exec("e", &["true"])).await;
        test.events().exit("fence", "e").await;
        assert_eq!(test.events().count(|e| matches!(e.kind, Kind::Oom(_))), 0);
    });
}

/// O3: memory may run out before Start: a hook of the container's, in the container's cgroup.
#[test]
fn watch_begins_with_create() {
    harness::run(async |test| {
        if differs("oom-from-create") {
            return;
        }
        let bundle = test.bundle("c").memory_limit(LIMIT).build();
        let shim = bundle.start().shim().await;
        shim.create(bundle.create()).await.unwrap();
        let eat = bundle.exec_spec("e", &{
            let mut process = harness::bundle::process(test, &["sh", "-c", EAT]);
            process["noNewPrivileges"] = json!(false);
            process
        });
        shim.run(eat).await;
        oom(test, "c").await;
    });
}
