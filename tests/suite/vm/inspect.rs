// SPDX-License-Identifier: Apache-2.0
//! `inspect` of a shim whose guest does not answer.

use harness::inspect::{Stopped, cause, inspected};
use harness::{proc, wait};
use serde_json::Value;
use tokio::task::spawn_local;

#[test]
fn a_guest_that_hangs_is_the_cause() {
    crate::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let told = inspected(test).await;
        let vm = &told["runtime"]["vm"];
        let qemu = vm["qemu"].as_i64().expect("a pid") as i32;
        assert!(proc::alive(qemu) && vm["gone"] == Value::Null, "{told}");
        assert!(vm["booted_seconds"].as_f64() > Some(0.0), "{told}");
        shim.exec(bundle.exec_sh("e", "exit 3")).await.unwrap();
        let stopped = Stopped::new(qemu);
        let starting = spawn_local({
            let shim = shim.clone();
            async move { shim.start("c", "e").await }
        });
        let (cause, _) = cause(test).await;
        assert!(
            cause.starts_with("Start of c/e has gone on for "),
            "{cause}"
        );
        assert!(cause.ends_with("it waits for the guest"), "{cause}");
        drop(stopped);
        starting.await.unwrap().unwrap();
        assert_eq!(shim.wait("c", "e").await.unwrap().exit_status, 3);
    });
}

/// Out of memory in a VM: the guest knows who it was, and says so where `inspect` looks.
#[test]
fn who_was_killed_in_a_vm_is_named_by_its_guest() {
    crate::run(async |test| {
        let bundle = test.bundle("c").memory_limit(32 << 20).build();
        let shim = bundle.running().await;
        shim.run(bundle.exec_sh("e", "exec tail /dev/zero")).await;
        assert_eq!(test.events().exit("c", "e").await.exit_status, 137);
        let look = async {
            loop {
                let told = inspected(test).await;
                let console = told["runtime"]["vm"]["console"].to_string();
                if console.contains("was killed") {
                    return console;
                }
            }
        };
        let console = wait::within(wait::DEADLINE, "the guest's word", look).await;
        // By the guest's own name of the exec.
        let said = "c: out of memory: exec e1 (pid ";
        assert!(console.contains(said), "{console}");
        assert!(
            console.contains(", tail) was killed in cgroup "),
            "{console}"
        );
    });
}
