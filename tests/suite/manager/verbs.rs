// SPDX-License-Identifier: Apache-2.0
//! What is asked of containers that are there: of one, and of several at once.

use harness::manager::{self, Manager};
use std::time::Duration;

/// Runs until it is told to end by TERM, and says so.
const SERVER: [&str; 3] = [
    "sh",
    "-c",
    "trap 'echo TERM; exit 5' TERM; trap 'echo QUIT; exit 6' QUIT; echo up; while :; do sleep 0.02; done",
];

fn up(manager: &Manager, options: &[&str], id: &str) {
    let options = [&["-d"], options].concat();
    manager.run(&options, id, &SERVER).ok();
    said(manager, id, "up\n");
}

/// Waits until its log is this.
fn said(manager: &Manager, id: &str, text: &str) {
    manager.until(text, |it| {
        (it.dunnage(&["logs", id]).stdout == text).then_some(())
    });
}

/// As docker does it: each error is told, the rest is done, and the end is a failure.
#[test]
fn of_several_containers_each_is_told_and_the_rest_is_done() {
    manager::on(|manager| {
        for id in ["a", "b"] {
            up(manager, &[], id);
        }
        let all = ["no1", "a", "no2", "b"];
        let ask = |verb: &[&str], code: i32| {
            let told = manager.dunnage(&[verb, &all].concat()).exits(code);
            let mut lines: Vec<&str> = told.stderr.lines().collect();
            // `stop` and `restart` are about all at the same time.
            lines.sort_unstable();
            assert!(lines.len() == 2, "{told}");
            assert!(
                lines[0].contains("no1") && lines[1].contains("no2"),
                "{told}"
            );
            told
        };
        ask(&["pause"], 1);
        assert_eq!(manager.status("b"), "paused");
        ask(&["resume"], 1);
        let stats = ask(&["--json", "stats", "--no-stream"], 1).stdout;
        assert_eq!(stats.lines().count(), 2, "{stats}");
        ask(&["kill", "-s", "quit"], 1);
        manager.dunnage(&["wait", "a", "b"]).ok().prints("6\n6\n");
        ask(&["start"], 125);
        for id in ["a", "b"] {
            said(manager, id, "up\nQUIT\nup\n");
        }
        ask(&["restart"], 1);
        for id in ["a", "b"] {
            said(manager, id, "up\nQUIT\nup\nTERM\nup\n");
            assert_eq!(manager.status(id), "running");
        }
        ask(&["stop"], 1);
        let logs = ask(&["logs", "--tail", "2"], 1).stdout;
        assert_eq!(logs, "a | up\na | TERM\nb | up\nb | TERM\n");
        ask(&["rm"], 1);
        assert!(manager.json(&["ls"]).is_empty());
    });
}

/// All stop at the same time: three of them that must be killed take no longer than one.
#[test]
fn several_are_stopped_together() {
    manager::on(|manager| {
        let deaf = [
            "sh",
            "-c",
            "trap '' TERM; echo up; while :; do sleep 0.02; done",
        ];
        for id in ["a", "b", "c"] {
            manager.run(&["-d", "--stop-timeout", "3"], id, &deaf).ok();
            said(manager, id, "up\n");
        }
        let began = std::time::Instant::now();
        manager.dunnage(&["stop", "a", "b", "c"]).ok();
        let took = began.elapsed();
        assert!(
            (Duration::from_secs(3)..Duration::from_secs(9)).contains(&took),
            "{took:?}"
        );
        manager
            .dunnage(&["wait", "a", "b", "c"])
            .ok()
            .prints("137\n137\n137\n");
    });
}

/// What was set of how a container is stopped is kept, also by another daemon.
#[test]
fn a_container_is_stopped_as_was_set() {
    manager::on(|manager| {
        up(
            manager,
            &["--stop-signal", "SIGQUIT", "--stop-timeout", "1m"],
            "x",
        );
        manager.kill();
        manager.restart();
        manager.dunnage(&["restart", "x"]).ok();
        said(manager, "x", "up\nQUIT\nup\n");
        manager.dunnage(&["stop", "x"]).ok();
        manager.dunnage(&["wait", "x"]).ok().prints("6\n");
        manager.dunnage(&["start", "x"]).ok();
        said(manager, "x", "up\nQUIT\nup\nQUIT\nup\n");
        manager
            .dunnage(&["stop", "--signal", "TERM", "-t", "60", "x"])
            .ok();
        manager.dunnage(&["wait", "x"]).ok().prints("5\n");
        // Of what does not run it is a start.
        manager.dunnage(&["restart", "x"]).ok();
        assert_eq!(manager.status("x"), "running");
        let inspected = manager.json(&["inspect", "x"]);
        let signal = &inspected[0]["labels"]["io.containerd.image.config.stop-signal"];
        assert_eq!(signal, "SIGQUIT");
        // One that goes when it ends does not go now.
        up(manager, &["--rm"], "once");
        manager.dunnage(&["restart", "once"]).ok();
        said(manager, "once", "up\nTERM\nup\n");
        manager.dunnage(&["stop", "once"]).ok();
        manager.until("gone", |it| (it.status("once") == "none").then_some(()));
    });
}

/// A policy does not start again what a `restart` has stopped, nor is it forgotten.
#[test]
fn a_restart_goes_with_a_restart_policy() {
    manager::on(|manager| {
        up(manager, &["--restart", "always"], "x");
        let pid = manager.pid_of("x");
        manager.dunnage(&["restart", "x"]).ok();
        said(manager, "x", "up\nTERM\nup\n");
        let next = manager.pid_of("x");
        assert_ne!(pid, next);
        manager.dunnage(&["kill", "-s", "SIGKILL", "x"]).ok();
        said(manager, "x", "up\nTERM\nup\nup\n");
    });
}

#[test]
fn signals_are_named_as_kill_knows_them() {
    manager::on(|manager| {
        up(manager, &[], "x");
        for text in ["KILLL", "0", "65", "-1", "RTMIN+31", ""] {
            let value = format!("--signal={text}");
            let refused = manager.dunnage(&["kill", &value, "x"]).exits(125);
            assert!(refused.stderr.contains(&format!("'{text}'")), "{refused}");
            let value = format!("--stop-signal={text}");
            let refused = manager.run(&["-d", &value], "y", &["true"]).exits(125);
            assert!(refused.stderr.contains("--stop-signal"), "{refused}");
        }
        for signal in ["continue", "cont", "SigCont", "18"] {
            let code = if signal == "continue" { 125 } else { 0 };
            manager.dunnage(&["kill", "-s", signal, "x"]).exits(code);
        }
        assert_eq!(manager.status("x"), "running");
        let handles = [
            "sh",
            "-c",
            "trap 'exit 7' 37; echo up; while :; do sleep 0.02; done",
        ];
        manager.run(&["-d"], "y", &handles).ok();
        said(manager, "y", "up\n");
        manager.dunnage(&["kill", "-s", "rtmin+3", "y"]).ok();
        manager.dunnage(&["wait", "y"]).ok().prints("7\n");
    });
}

#[test]
fn the_last_lines_of_a_log() {
    manager::on(|manager| {
        let go = manager.fifo("go");
        let script =
            "for n in 1 2 3 4 5; do echo $n; done; read go </mnt/go; echo $go; exec sleep 1000";
        manager.run(&["-d"], "x", &["sh", "-c", script]).ok();
        said(manager, "x", "1\n2\n3\n4\n5\n");
        for (tail, shown) in [
            ("0", ""),
            ("2", "4\n5\n"),
            ("9", "1\n2\n3\n4\n5\n"),
            ("all", "1\n2\n3\n4\n5\n"),
        ] {
            manager
                .dunnage(&["logs", "--tail", tail, "x"])
                .ok()
                .prints(shown);
        }
        for tail in ["-1", "x", "1.5", ""] {
            let value = format!("--tail={tail}");
            let refused = manager.dunnage(&["logs", &value, "x"]).exits(125);
            assert!(refused.stderr.contains("--tail"), "{refused}");
        }
        let follow = manager.spawn_dunnage(&["logs", "-f", "--tail", "1", "x"]);
        follow
            .stdout
            .wait_for("the last line", |out| (out == "5\n").then_some(()));
        go.send("more");
        follow
            .stdout
            .wait_for("what comes", |out| (out == "5\nmore\n").then_some(()));
    });
}

#[test]
fn a_name_can_be_another() {
    manager::on(|manager| {
        up(manager, &["--stop-signal", "QUIT", "-l", "a=b"], "old");
        manager
            .dunnage(&["rename", "old", "new"])
            .exits(1)
            .fails_with("stop it first");
        manager.dunnage(&["stop", "old"]).ok();
        manager.run(&["-d"], "taken", &["true"]).ok();
        manager
            .dunnage(&["rename", "old", "taken"])
            .exits(1)
            .fails_with("already exists");
        manager
            .dunnage(&["rename", "old", "../x"])
            .exits(1)
            .fails_with("../x");
        manager
            .dunnage(&["rename", "nobody", "x"])
            .exits(1)
            .fails_with("nobody");
        said(manager, "old", "up\nQUIT\n");
        manager.dunnage(&["rename", "old", "new"]).ok();
        assert_eq!(manager.status("old"), "none");
        said(manager, "new", "up\nQUIT\n");
        manager.dunnage(&["logs", "old"]).fails_with("No such file");
        manager.dunnage(&["start", "new"]).ok();
        said(manager, "new", "up\nQUIT\nup\n");
        let of = manager.json(&["inspect", "new"]);
        assert_eq!(
            (&of[0]["labels"]["a"], &of[0]["spec"]["hostname"]),
            (&"b".into(), &"new".into())
        );
        manager
            .dunnage(&["exec", "new", "hostname"])
            .ok()
            .prints("new\n");
        manager.dunnage(&["stop", "new"]).ok();
        said(manager, "new", "up\nQUIT\nup\nQUIT\n");
    });
}

#[test]
fn what_has_ended_is_pruned() {
    manager::on(|manager| {
        up(manager, &[], "runs");
        for id in ["a", "b"] {
            manager
                .run(&["-d", "-l", &format!("of={id}")], id, &["true"])
                .ok();
            manager.dunnage(&["wait", id]).ok();
        }
        manager
            .run(&["-d", "--restart", "always"], "again", &["true"])
            .ok();
        let rootfs = harness::peers::rootfs().display().to_string();
        manager
            .dunnage(&["create", "--rootfs", &rootfs, "made", "true"])
            .ok();
        manager
            .dunnage(&["prune", "--filter", "labels.of==a"])
            .ok()
            .prints("a\n");
        manager.dunnage(&["prune", "--filter", "("]).exits(1);
        manager.dunnage(&["prune"]).ok().prints("b\n");
        manager.dunnage(&["logs", "b"]).fails_with("No such file");
        manager.dunnage(&["prune"]).ok().prints("");
        for id in ["runs", "again", "made"] {
            assert_ne!(manager.status(id), "none", "{id}");
        }
    });
}

#[test]
fn processes_are_shown_as_ps_does() {
    manager::on(|manager| {
        manager
            .run(&["-d"], "x", &["sh", "-c", "sleep 777; true"])
            .ok();
        manager.run(&["-d"], "y", &["sleep", "888"]).ok();
        manager.until("two processes", |it| {
            let top = it.dunnage(&["top", "x"]).ok().stdout;
            let lines: Vec<&str> = top.lines().collect();
            let are_its =
                lines.len() == 3 && lines[0].contains("PPID") && lines[2].contains("sleep 777");
            are_its.then_some(())
        });
        let top = manager.dunnage(&["top", "x", "-o", "pid,args"]).ok().stdout;
        assert!(top.lines().any(|line| line.ends_with("sleep 777")), "{top}");
        assert!(!top.contains("888"), "{top}");
        manager
            .dunnage(&["top", "x", "-o", "args"])
            .exits(1)
            .fails_with("PID");
        manager
            .dunnage(&["top", "nobody"])
            .exits(1)
            .fails_with("nobody");
    });
}

/// As `events` and `wait` do.
#[test]
fn stats_go_on_with_the_next_daemon() {
    manager::on(|manager| {
        up(manager, &[], "x");
        let stats = manager.spawn_dunnage(&["--json", "stats", "x"]);
        let lines = |count: usize| move |out: &str| (out.lines().count() >= count).then_some(());
        stats.stdout.wait_for("figures", lines(1));
        manager.kill();
        manager.restart();
        let seen = stats.stdout.text().lines().count();
        stats
            .stdout
            .wait_for("figures of the next daemon", lines(seen + 2));
    });
}
