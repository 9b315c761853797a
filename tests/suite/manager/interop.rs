// SPDX-License-Identifier: Apache-2.0
//! `dunnage` over a shim that is neither ours nor Go's: tests/stranger, which is made of containerd's
//! Rust crates. It speaks version 3 of the Task API, as JSON says that its `start` answers.

use harness::manager::{self, Manager};
use harness::{proc, wait};
use std::path::Path;

fn over_a_stranger(test: fn(&mut Manager)) {
    manager::under(Path::new(env!("CARGO_BIN_EXE_stranger")), test);
}

/// A container that runs on; what it says is in `c.log`.
fn detached(manager: &Manager, words: &[&str]) -> i32 {
    let log = format!("file://{}/c.log", manager.dir().display());
    let options = ["-d", "--log-uri", &log];
    manager.run(&options, "c", words).ok();
    manager.pid_of("c")
}

/// The topics of what was published of a container, in their order.
fn topics(manager: &Manager, id: &str) -> Vec<String> {
    let events = manager.json(&["events", "--no-follow"]);
    let of = events.iter().filter(|it| it["event"]["container_id"] == id);
    let topic = |event: &serde_json::Value| event["topic"].as_str().unwrap_or_default().to_owned();
    let mut topics: Vec<String> = of.map(topic).collect();
    topics.retain(|topic| topic.starts_with("/tasks/"));
    topics
}

#[test]
fn a_container_of_another_shim_runs_and_ends() {
    over_a_stranger(|manager| {
        let script = "echo out; echo err >&2; exit 7";
        let output = manager.run(&[], "c", &["sh", "-c", script]).exits(7);
        assert_eq!((&*output.stdout, &*output.stderr), ("out\n", "err\n"));
        assert_eq!(manager.exits("c"), [(7, "shim".to_owned())]);
        let life = ["create", "start", "exit"].map(|what| format!("/tasks/{what}"));
        assert_eq!(topics(manager, "c")[..3], life);
    });
}

#[test]
fn a_container_of_another_shim_takes_execs_and_signals() {
    over_a_stranger(|manager| {
        let pid = detached(manager, &["sh", "-c", "echo up; exec sleep 1000"]);
        assert_eq!(manager.status("c"), "running");
        let said = manager.until("what it says", |it| {
            std::fs::read_to_string(it.dir().join("c.log"))
                .ok()
                .filter(|log| !log.is_empty())
        });
        assert_eq!(said, "up\n");
        manager.until("the program", |_| {
            (proc::words(pid, "cmdline") == ["sleep", "1000"]).then_some(())
        });
        let exec = manager.dunnage(&["exec", "c", "sh", "-c", "echo in; exit 3"]);
        exec.exits(3).prints("in\n");
        let waiting = manager.spawn_dunnage(&["wait", "c"]);
        manager.dunnage(&["kill", "-s", "TERM", "c"]).ok();
        waiting.finish().ok().prints("143\n");
        assert!(!proc::alive(pid));
        assert_eq!(manager.exits("c"), [(143, "shim".to_owned())]);
        manager.dunnage(&["delete", "c"]).ok();
        let life = [
            "create",
            "start",
            "exec-added",
            "exec-started",
            "exit",
            "exit",
            "delete",
        ];
        assert_eq!(
            topics(manager, "c"),
            life.map(|what| format!("/tasks/{what}"))
        );
    });
}

/// Its own `delete` ends what it leaves.
#[test]
fn another_shim_is_killed_and_its_container_told_of_once() {
    over_a_stranger(|manager| {
        let pid = detached(manager, &["sleep", "1000"]);
        wait::signal(manager.shim_of("c"), libc::SIGKILL).expect("kill");
        manager.until("its exit", |it| (it.exits("c").len() == 1).then_some(()));
        assert_eq!(manager.exits("c")[0].0, 137);
        assert!(!proc::alive(pid));
    });
}
