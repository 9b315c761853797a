// SPDX-License-Identifier: Apache-2.0
//! Out of memory: TaskOOM for a container whose limit was hit, before its exit (O1, O3).

use crate::cgroup;
use harness::events::{Event, Kind};
use harness::inspect::inspected;
use harness::vm::with_cgroup2;
use harness::{Test, wait};
use protos::task_types::Status;
use serde_json::Value;
use std::fs;

/// Takes memory until there is none.
pub const EAT: &str = "exec tail /dev/zero";
const LIMIT: u64 = 16 << 20;

fn is_oom(event: &Event, container: &str) -> bool {
    matches!(&event.kind, Kind::Oom(oom) if oom.container_id == container)
}

async fn oom(test: &Test, container: &str) {
    let of = |e: &Event| is_oom(e, container).then_some(());
    test.events().wait_for("TaskOOM", of).await;
}

/// O1: the container is named, and goes on; the process that ate is killed.
#[test]
fn oom_of_an_exec_is_told() {
    with_cgroup2(async |test| {
        let bundle = test.bundle("c").memory_limit(LIMIT).build();
        let shim = bundle.running().await;
        shim.run(bundle.exec_sh("e", EAT)).await;
        oom(test, "c").await;
        assert_eq!(test.events().exit("c", "e").await.exit_status, 137);
        let state = shim.state("c", "").await.unwrap();
        assert_eq!(state.status(), Status::Running);
    });
}

/// O3: an init that eats from its first moment on; its cgroup goes with it, the event does not.
#[test]
fn oom_of_init_is_told_before_its_exit() {
    with_cgroup2(async |test| {
        let bundle = test.bundle("c").memory_limit(LIMIT).sh(EAT).build();
        let shim = bundle.running().await;
        oom(test, "c").await;
        assert_eq!(test.events().exit("c", "c").await.exit_status, 137);
        assert_eq!(shim.wait("c", "").await.unwrap().exit_status, 137);
        let all = test.events().about("c");
        let place = |of: &dyn Fn(&Event) -> bool| all.iter().position(of).unwrap();
        let told = place(&|e| is_oom(e, "c"));
        assert!(told < place(&|e| e.exit_of("c", "c").is_some()));
    });
}

/// O1: each container of a shim is watched by itself.
#[test]
fn oom_names_the_right_container() {
    with_cgroup2(async |test| {
        let one = test.bundle("one").memory_limit(LIMIT).build();
        let two = test.bundle("two").memory_limit(LIMIT).build();
        let shim = one.running().await;
        shim.create(two.create()).await.unwrap();
        shim.start("two", "").await.unwrap();
        shim.run(two.exec_sh("e", EAT)).await;
        oom(test, "two").await;
        test.events().exit("two", "e").await;
        assert_eq!(test.events().count(|e| is_oom(e, "one")), 0);
    });
}

/// O1: a cgroup that is removed is not out of memory.
#[test]
fn removal_of_the_cgroup_is_no_oom() {
    with_cgroup2(async |test| {
        let fence = test.bundle("fence").build();
        let shim = fence.running().await;
        for id in ["one", "two", "three"] {
            let bundle = test.bundle(id).memory_limit(LIMIT).args(&["true"]).build();
            shim.create(bundle.create()).await.unwrap();
            shim.start(id, "").await.unwrap();
            shim.wait(id, "").await.unwrap();
            shim.delete(id, "").await.unwrap();
            test.events().delete(id).await;
        }
        shim.run(fence.exec("e", &["true"])).await;
        test.events().exit("fence", "e").await;
        assert_eq!(test.events().count(|e| matches!(e.kind, Kind::Oom(_))), 0);
    });
}

/// Who was killed, in the container's cgroup or in one below it, with all of that, if it says so.
#[test]
fn who_was_killed_is_named() {
    with_cgroup2(async |test| {
        let bundle = test.bundle("c").memory_limit(LIMIT).build();
        let shim = bundle.running().await;
        let pid = shim.run(bundle.exec_sh("e", EAT)).await;
        test.events().exit("c", "e").await;
        let told = told_of(test, 1).await;
        let dir = cgroup(test, "c");
        assert_eq!(told["memory"]["cgroup"], dir.display().to_string());
        assert_eq!(told["memory"]["limit_bytes"], LIMIT);
        assert_eq!(told["memory"]["oom_kills"], 1);
        assert_eq!(told["memory"]["oom_kills_local"], 1);
        let killed = &told["killed"][0];
        assert_eq!(
            (&killed["exec"], &killed["pid"]),
            (&"e".into(), &pid.into())
        );
        let path = format!("/{}-c", test.namespace());
        assert_eq!(killed["cgroup"], path);
        assert_eq!(killed["limit_bytes"], LIMIT);
        assert_eq!(killed["with_group"], false);
        let named = format!("exec e (pid {pid}, tail) was killed in cgroup {path}");
        assert!(shim.log().contains(&named), "{}", shim.log());

        // A group is killed with init, which is in it.
        fs::write(dir.join("memory.oom.group"), "1").unwrap();
        let eater = shim.run(bundle.exec_sh("f", EAT)).await;
        test.events().exit("c", "f").await;
        test.events().exit("c", "c").await;
        let told = told_of(test, 3).await;
        assert_eq!(told["memory"]["oom_group"], true);
        let killed = told["killed"].as_array().expect("a list");
        let of = |pid: u32| killed.iter().find(|it| it["pid"] == pid);
        let eater = of(eater).expect("the one that ate");
        assert_eq!(
            (&eater["exec"], &eater["with_group"]),
            (&"f".into(), &true.into())
        );
        let init = of(shim.state("c", "").await.unwrap().pid).expect("init");
        assert_eq!(
            (&init["exec"], &init["with_group"]),
            (&"".into(), &true.into())
        );
    });
}

/// What `inspect` says of the container, once it says of so many that they were killed.
async fn told_of(test: &Test, count: usize) -> Value {
    let look = async {
        loop {
            let told = inspected(test).await["containers"][0].clone();
            if told["killed"]
                .as_array()
                .is_some_and(|it| it.len() >= count)
            {
                return told;
            }
        }
    };
    wait::within(wait::DEADLINE, "a kill that is told", look).await
}
