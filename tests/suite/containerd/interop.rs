// SPDX-License-Identifier: Apache-2.0
//! containerd over a shim that is neither ours nor Go's: tests/stranger, which is made of containerd's
//! Rust crates. It shows that the stranger is a shim, so that what `dunnage` does over it counts.
//!
//! Only containerd 2.x takes it: it speaks version 3 of the Task API alone, which 1.6 and 1.7 refuse.

use harness::containerd::{Containerd, DEADLINE};
use harness::{proc, wait};
use std::path::Path;

fn over_a_stranger(test: impl FnOnce(&mut Containerd)) {
    harness::containerd::with("2.1", String::new(), |containerd| {
        containerd.use_shim(Path::new(env!("CARGO_BIN_EXE_stranger")));
        test(containerd);
    });
}

#[test]
fn a_container_of_another_shim_runs_and_ends() {
    over_a_stranger(|containerd| {
        let script = "echo out; echo err >&2; exit 7";
        let output = containerd.run(&[], "c", &["sh", "-c", script]).exits(7);
        assert_eq!((&*output.stdout, &*output.stderr), ("out\n", "err\n"));
    });
}

#[test]
fn a_container_of_another_shim_takes_execs_and_signals() {
    over_a_stranger(|containerd| {
        let events = containerd.events();
        let task = containerd.run_detached(&[], "c", &["sleep", "1000"]);
        assert_eq!(task.status, "RUNNING");
        wait::until_within(DEADLINE, "the program", || {
            let words = proc::words(task.pid, "cmdline");
            match words == ["sleep", "1000"] {
                true => Ok(()),
                false => Err(format!("{words:?}")),
            }
        });
        let exec = containerd.exec("c", "e", &["sh", "-c", "echo in; exit 3"]);
        exec.exits(3).prints("in\n");
        containerd.kill_task("SIGTERM", "c");
        events.until_seen("exit c 143");
        assert_eq!(containerd.status("c"), "STOPPED");
        containerd.ctr(&["task", "delete", "c"]);
        events.until_seen("delete c 143");
    });
}
