// SPDX-License-Identifier: Apache-2.0
//! Real containerds, with the shim under its own name in their PATH.

use harness::containerd::{Containerd, on};
use harness::{peers, program};
use std::fs;

const RUNTIME: &str = "io.containerd.vm.v2";

fn containers_run_in_vms(containerd: &mut Containerd) {
    let shim = containerd.dir().join("bin/containerd-shim-vm-v2");
    program::copy(peers::shim(), &shim);
    crate::install_image(containerd.dir());
    let runtime = ["--rm", "--runtime", RUNTIME];
    let script = "uname -r; cat; exit 7";
    let mut run = containerd.spawn_run(&runtime, "c1", &["sh", "-c", script]);
    run.write("to the guest\n");
    // ctr forgets an end of input that comes before its task.
    run.stdout.wait_for("the line", |out| {
        out.contains("to the guest\n").then_some(())
    });
    run.close_stdin();
    let ran = run.finish().exits(7);
    let mut lines = ran.stdout.lines();
    let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let guest = lines.next().unwrap_or_default();
    assert!(!guest.is_empty() && guest != host.trim(), "kernel {guest}");
    assert_eq!(lines.next(), Some("to the guest"));

    let task = containerd.run_detached(&runtime[1..], "c2", &["sleep", "1000"]);
    let qemu = fs::read_to_string(format!("/proc/{}/comm", task.pid)).unwrap();
    assert!(qemu.starts_with("qemu"), "{qemu}");
    containerd
        .exec("c2", "e1", &["sh", "-c", "echo in; exit 3"])
        .exits(3)
        .prints("in\n");
    // I9: all of a long output, though ctr stops to read at the exit.
    let script = "head -c 3000000 /dev/zero | tr '\\0' o";
    let long = containerd.exec("c2", "e2", &["sh", "-c", script]).ok();
    assert_eq!(long.stdout, "o".repeat(3_000_000));
    containerd.ctr(&["tasks", "pause", "c2"]).ok();
    assert_eq!(containerd.status("c2"), "PAUSED");
    containerd.ctr(&["tasks", "resume", "c2"]).ok();
    let metrics = containerd.ctr(&["tasks", "metrics", "c2"]).ok();
    assert!(metrics.stdout.contains("pids.current"), "{metrics}");
    containerd.kill_task("SIGKILL", "c2");
    // Which waits for its end.
    let deleted = containerd.ctr(&["tasks", "delete", "--force", "c2"]).ok();
    assert!(deleted.stderr.contains("exit code 137"), "{deleted}");
    containerd.ctr(&["containers", "delete", "c2"]).ok();
}

#[test]
fn containerd_1_6_runs_containers_in_vms() {
    crate::prepare();
    on("1.6", containers_run_in_vms);
}

#[test]
fn containerd_2_1_runs_containers_in_vms() {
    crate::prepare();
    on("2.1", containers_run_in_vms);
}
