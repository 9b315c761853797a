// SPDX-License-Identifier: Apache-2.0
//! `inspect` of a shim whose guest does not answer.

use harness::inspect::{Stopped, asked, cause, inspected};
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

/// Out of memory in a VM: its guest says who it was, for the log and for `inspect`.
#[test]
fn who_was_killed_in_a_vm_is_named() {
    crate::run(async |test| {
        const LIMIT: u64 = 32 << 20;
        let bundle = test.bundle("c").memory_limit(LIMIT).build();
        let shim = bundle.running().await;
        shim.run(bundle.exec_sh("eats", "exec tail /dev/zero"))
            .await;
        assert_eq!(test.events().exit("c", "eats").await.exit_status, 137);
        // It may be told again when it is known who it was.
        let look = async {
            loop {
                let told = inspected(test).await;
                let killed = &told["containers"][0]["killed"];
                if killed[0]["exec"] == "eats" {
                    return killed.clone();
                }
            }
        };
        let killed = wait::within(wait::DEADLINE, "who was killed", look).await;
        assert_eq!(killed.as_array().map(Vec::len), Some(1), "{killed}");
        let killed = &killed[0];
        assert_eq!(
            (&killed["program"], &killed["in_vm"]),
            (&"tail".into(), &true.into())
        );
        assert_eq!(killed["limit_bytes"], LIMIT);
        assert!(killed["peak_bytes"].as_u64() > Some(LIMIT / 2), "{killed}");
        assert_eq!(killed["cgroup"], killed["exhausted"]);
        let cgroup = killed["cgroup"].as_str().expect("a path");
        let (pid, peak) = (&killed["pid"], &killed["peak_bytes"]);
        let said = format!(
            "exec eats (pid {pid}, tail) was killed in the VM's cgroup {cgroup}: \
             has used {peak} bytes of {LIMIT} at most"
        );
        let log = shim.log();
        assert!(log.contains(&format!("c: out of memory: {said}")), "{log}");
        let text = asked(test, &[]).await;
        let text = String::from_utf8(text.stdout).expect("text");
        assert!(text.contains(&said), "{text}");
    });
}
