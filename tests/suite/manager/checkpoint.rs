// SPDX-License-Identifier: Apache-2.0
//! Containers that are stored and go on later.

use harness::manager::{self, Manager};
use harness::peers;

/// Counts the lines that it reads.
const COUNTER: [&str; 3] = [
    "sh",
    "-c",
    "n=0; echo up; while read line </mnt/lines; do n=$((n + 1)); echo $n $line; done",
];

fn said(manager: &Manager, text: &str) {
    manager.until(text, |it| {
        (it.dunnage(&["logs", "x"]).stdout == text).then_some(())
    });
}

#[test]
fn a_container_goes_on_where_it_was_stored() {
    let Some(criu) = peers::criu() else { return };
    manager::on(|manager| {
        std::os::unix::fs::symlink(criu, manager.dir().join("bin/criu")).expect("CRIU");
        let lines = manager.fifo("lines");
        manager
            .run(&["-d", "--restart", "on-failure"], "x", &COUNTER)
            .ok();
        said(manager, "up\n");
        lines.send("one");
        said(manager, "up\n1 one\n");
        let dir = |name: &str| manager.dir().join(name).display().to_string();
        manager
            .dunnage(&["checkpoint", "--leave-running", "x", &dir("early")])
            .ok();
        assert_eq!(manager.status("x"), "running");
        manager
            .dunnage(&["restore", "x", &dir("early")])
            .exits(1)
            .fails_with("stop it first");
        manager
            .dunnage(&["checkpoint", "x", &dir("early")])
            .exits(1)
            .fails_with("File exists");
        manager.dunnage(&["checkpoint", "x", &dir("image")]).ok();
        manager.until("ended", |it| (it.status("x") == "stopped").then_some(()));
        for n in 2..4 {
            manager.dunnage(&["restore", "x", &dir("image")]).ok();
            assert_eq!(manager.status("x"), "running");
            lines.send("more");
            manager.until("it has counted on", |it| {
                let logs = it.dunnage(&["logs", "x"]).stdout;
                (logs.matches("2 more\n").count() == n - 1).then_some(())
            });
            manager.dunnage(&["kill", "-s", "KILL", "x"]).ok();
            // Its policy starts it from its begin.
            manager.until("anew", |it| {
                let logs = it.dunnage(&["logs", "x"]).stdout;
                (logs.matches("up\n").count() == n).then_some(())
            });
            manager.dunnage(&["stop", "-t", "0s", "x"]).ok();
        }
    });
}

/// Without CRIU, or a checkpoint, it is said, and nothing is left or lost.
#[test]
fn what_cannot_be_stored_runs_on() {
    manager::on(|manager| {
        let none = manager.dir().join("bin/criu");
        harness::program::write(&none, "#!/bin/sh\nexit 1\n");
        manager
            .run(&["-d", "--restart", "always"], "x", &["sleep", "1000"])
            .ok();
        let dir = manager.dir().join("image");
        let image = dir.display().to_string();
        let refused = manager.dunnage(&["checkpoint", "x", &image]).exits(1);
        assert!(refused.stderr.to_lowercase().contains("criu"), "{refused}");
        assert!(!dir.exists());
        assert_eq!(manager.status("x"), "running");
        manager
            .dunnage(&["checkpoint", "nobody", &image])
            .exits(1)
            .fails_with("nobody");
        manager.dunnage(&["stop", "-t", "0s", "x"]).ok();
        manager.dunnage(&["checkpoint", "x", &image]).exits(1);
        assert!(!dir.exists());
        manager
            .dunnage(&["restore", "x", &image])
            .exits(1)
            .fails_with(&image);
        assert_eq!(manager.status("x"), "stopped");
    });
}
