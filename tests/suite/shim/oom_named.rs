// SPDX-License-Identifier: Apache-2.0
//! Who was killed when memory ran out: in the log, and told by `inspect`.

use harness::events::{Event, Kind};
use harness::inspect::{Stopped, asked, inspected};
use harness::stdio::{Fifos, Stdio, mkfifo};
use harness::{Test, differs, vm_differs, wait};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

const EAT: &str = "exec tail /dev/zero";
const LIMIT: u64 = 16 << 20;

/// Whom `inspect` says to be killed, once it says so of so many.
async fn killed(test: &Test, count: usize) -> Vec<Value> {
    let look = async {
        loop {
            let told = inspected(test).await;
            let killed = told["containers"][0]["killed"].as_array().cloned();
            let killed = killed.unwrap_or_default();
            if killed.len() >= count {
                return killed;
            }
        }
    };
    wait::within(wait::DEADLINE, "a kill that is told", look).await
}

fn cgroup(test: &Test) -> PathBuf {
    PathBuf::from(format!("/sys/fs/cgroup/memory/{}-c", test.namespace()))
}

/// Neither another shim nor a guest tells.
fn is_not_told() -> bool {
    differs("inspect") || vm_differs("guests-cgroups")
}

#[test]
fn the_exec_that_was_killed_is_named() {
    if is_not_told() {
        return;
    }
    harness::run(async |test| {
        let bundle = test.bundle("c").memory_limit(LIMIT).build();
        let shim = bundle.running().await;
        let pid = shim.run(bundle.exec_sh("e", EAT)).await;
        // It may be killed before anybody knows whose pid it has.
        test.events().exit("c", "e").await;
        let killed = killed(test, 1).await;
        let path = format!("/{}-c", test.namespace());
        assert_eq!(killed.len(), 1, "{killed:?}");
        let killed = &killed[0];
        assert_eq!(killed["exec"], "e");
        assert_eq!(killed["pid"], pid);
        assert_eq!(killed["program"], "tail");
        assert_eq!(
            (&killed["cgroup"], &killed["exhausted"]),
            (&path.clone().into(), &path.clone().into())
        );
        assert_eq!(killed["limit_bytes"], LIMIT);
        assert!(killed["peak_bytes"].as_u64() > Some(LIMIT / 2), "{killed}");
        let said = format!(
            "c: out of memory: exec e (pid {pid}, tail) was killed in cgroup {path}: has used "
        );
        assert!(shim.log().contains(&said), "{}", shim.log());
        let text = asked(test, &[]).await;
        let text = String::from_utf8(text.stdout).expect("text");
        for said in [
            format!("exec e (pid {pid}, tail) was killed in cgroup {path}"),
            "of 16384 KiB, 1 killed for want of it, in /sys/fs/cgroup/memory/".into(),
        ] {
            assert!(text.contains(&said), "{said}: {text}");
        }
    });
}

/// Init's exit may be the end of its cgroup; its child's is not.
#[test]
fn init_and_what_it_has_started_are_told_apart() {
    if is_not_told() {
        return;
    }
    harness::run(async |test| {
        let script = "tail /dev/zero; read -r x; exec tail /dev/zero";
        let fifos = Fifos::new(test.dir().join("io"));
        let _readers = fifos.readers();
        let bundle = test.bundle("c").memory_limit(LIMIT).sh(script).build();
        let shim = bundle.start().shim().await;
        shim.create(bundle.create().fifos(&fifos)).await.unwrap();
        let pid = shim.start("c", "").await.unwrap().pid;
        assert_eq!(killed(test, 1).await[0]["exec"], Value::Null);
        fifos.stdin.writer().await.write("eat\n").await;
        assert_eq!(test.events().exit("c", "c").await.exit_status, 137);
        let killed = killed(test, 2).await;
        assert_eq!(
            (&killed[1]["exec"], &killed[1]["pid"]),
            (&"".into(), &pid.into())
        );
    });
}

/// O1: a cgroup below may be gone, with its counter, before anybody has looked at it.
#[test]
fn a_kill_in_a_cgroup_that_is_gone_is_told_and_named() {
    if is_not_told() {
        return;
    }
    harness::run(async |test| {
        let bundle = test.bundle("c").memory_limit(LIMIT).share().build();
        let shim = bundle.running().await;
        // A shim that is stopped copies no input.
        let go = test.share().join("go");
        mkfifo(&go);
        let request = bundle.exec_sh("e", "read -r x </mnt/go; exec tail /dev/zero");
        let pid = shim.run(request).await;
        let below = cgroup(test).join("below");
        fs::create_dir(&below).unwrap();
        fs::write(below.join("cgroup.procs"), pid.to_string()).unwrap();
        let stopped = Stopped::new(shim.pid());
        fs::write(&go, "eat\n").unwrap();
        wait::until("an empty cgroup", || {
            fs::remove_dir(&below).map_err(|e| e.to_string())
        })
        .await;
        drop(stopped);
        let of = |e: &Event| matches!(e.kind, Kind::Oom(_)).then_some(());
        test.events().wait_for("TaskOOM", of).await;
        let killed = killed(test, 1).await;
        assert_eq!(killed[0]["exec"], "e");
        let path = format!("/{}-c/below", test.namespace());
        assert_eq!(killed[0]["cgroup"], path);
        assert_eq!(killed[0]["limit_bytes"], LIMIT);
        assert_eq!(test.events().count(|e| matches!(e.kind, Kind::Oom(_))), 1);
    });
}
