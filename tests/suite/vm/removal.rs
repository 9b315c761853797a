// SPDX-License-Identifier: Apache-2.0
//! What operators type to be rid of a container, while its guest is the attacker: it ends within
//! seconds, and neither the VM nor its shim is left.

use crate::attacker;
use harness::containerd::ctr::ends_within;
use harness::containerd::{Containerd, on};
use harness::cri::{self, Cri};
use harness::{manager, peers, proc, program};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

const RUNTIME: &str = "io.containerd.vm.v2";
/// What the guest may owe (2 s), once for the kill and once for the deletion, and a slow machine.
const PROMISED: Duration = Duration::from_secs(20);

/// Modes that let a container come up, and are about the calls of its removal.
const MODES: [&str; 6] = [
    "honest",
    "no-kill",
    "kill-lies",
    "kill-not-found",
    "no-delete",
    "delete-lies",
];

/// A shim in `dir`/bin whose VMs are the attacker's: a script that names the configuration.
fn install(dir: &Path, mode: &str) {
    let config = attacker::configuration(
        &dir.join("hostile"),
        mode,
        "start_timeout = 70\nkill_timeout = 2",
    );
    let real = dir.join("real/containerd-shim-vm-v2");
    fs::create_dir_all(dir.join("real")).expect("a directory");
    if !real.exists() {
        program::copy(peers::shim(), &real);
    }
    let script = dir.join("bin/containerd-shim-vm-v2");
    let text = format!(
        "#!/bin/sh\nDUNNAGE_VM_CONFIG={} exec {} \"$@\"\n",
        config.display(),
        real.display()
    );
    // Not written over: a shim may run it.
    let new = dir.join("hostile/script");
    fs::write(&new, text).expect("a script");
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).expect("a program");
    fs::rename(&new, &script).expect("in its place");
}

/// Does it, in the time that is promised.
#[track_caller]
fn in_time(what: &str, work: impl FnOnce()) {
    let before = Instant::now();
    work();
    let took = before.elapsed();
    assert!(took < PROMISED, "{what} took {took:?}");
}

#[track_caller]
fn gone(what: &str, pid: i32) {
    assert!(
        ends_within(pid, PROMISED),
        "{what}: {}",
        proc::describe(pid)
    );
}

fn ctr_removes_containers(containerd: &mut Containerd) {
    let runtime = ["--runtime", RUNTIME];
    for (n, mode) in MODES.into_iter().enumerate() {
        install(containerd.dir(), mode);
        let task = containerd.run_detached(&runtime, "c", &["x"]);
        let shim = containerd.shim_of(&task);
        // With a kill before, in every other mode; by force alone ctr does both itself.
        let killed = n % 2 == 1;
        if killed {
            in_time(mode, || containerd.kill_task("KILL", "c"));
        }
        in_time(mode, || {
            let deleted = containerd.ctr(&["task", "delete", "--force", "c"]).ok();
            let told = deleted.stderr.contains("exit code 137");
            assert!(!killed || told, "{mode}: {deleted}");
        });
        containerd.ctr(&["containers", "delete", "c"]).ok();
        gone(mode, task.pid);
        gone(mode, shim);
    }
}

#[test]
fn ctr_1_6_removes_containers_of_an_attacker() {
    crate::prepare();
    on("1.6", ctr_removes_containers);
}

#[test]
fn dunnage_removes_containers_of_an_attacker() {
    crate::prepare();
    manager::on(|manager| {
        for mode in MODES {
            install(manager.dir(), mode);
            manager.run(&["-d", "--runtime", RUNTIME], "c", &["x"]).ok();
            let (vm, shim) = (manager.pid_of("c"), manager.shim_of("c"));
            in_time(mode, || {
                manager.dunnage(&["rm", "--force", "c"]).ok();
            });
            gone(mode, vm);
            gone(mode, shim);
        }
    });
}

fn pods_are_removed(cri: &mut Cri) {
    for mode in MODES {
        install(cri.containerd.dir(), mode);
        let pod = cri.run_pod(cri.pod(mode), "vm").expect("RunPodSandbox");
        let (vm, shim) = (cri.pause_of(&pod), cri.shim_of(&pod));
        in_time(mode, || {
            cri.stop_pod(&pod.id).expect("StopPodSandbox");
            cri.remove_pod(&pod.id).expect("RemovePodSandbox");
        });
        gone(mode, vm);
        gone(mode, shim);
    }
}

#[test]
fn containerd_2_1_removes_pods_of_an_attacker() {
    crate::prepare();
    cri::on("2.1", pods_are_removed);
}
