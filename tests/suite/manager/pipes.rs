// SPDX-License-Identifier: Apache-2.0
//! Readers of the client's output that go away, and signals that come too late.

use harness::containerd::ctr;
use harness::manager::{self, Manager};
use harness::wait;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

/// What a shell says of a program that died of SIGPIPE.
const SIGPIPE: i32 = 128 + libc::SIGPIPE;
/// Shorter than what waits for output that nobody takes.
const SOON: Duration = Duration::from_secs(9);

/// Runs `command | head -LINES`; what it exits with, and that it says nothing of it.
#[track_caller]
fn head(mut command: Command, lines: usize) -> i32 {
    let words = ctr::words(&command);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command.stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{words}: {e}"));
    let mut reader = BufReader::with_capacity(1, child.stdout.take().expect("piped"));
    for _ in 0..lines {
        let mut line = String::new();
        let read = reader.read_line(&mut line).expect("its output");
        assert!(read > 0, "{words} ended");
    }
    drop(reader);
    let ended = ctr::ends_within(child.id() as i32, SOON);
    let _ = child.kill();
    let output = child.wait_with_output().expect("its end");
    assert!(ended, "{words} did not end");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{words}");
    ctr::code(output.status)
}

fn pids(manager: &Manager, id: &str) -> usize {
    manager.json(&["ps", id]).len()
}

/// moby#38769.
#[test]
fn run_ends_when_nobody_reads_on() {
    manager::on(|manager| {
        // As a container's first process it does not die of SIGPIPE itself.
        let endless = ["sh", "-c", "while :; do echo y; done"];
        for words in [&["seq", "1", "1000000"][..], &endless] {
            let run = manager.run_command(&["--rm"], "p", words);
            assert_eq!(head(run, 1), SIGPIPE);
            assert_eq!(manager.status("p"), "none");
        }
        // Who wants it gone says so; else it stays, as with ctr, docker and podman.
        assert_eq!(head(manager.run_command(&[], "q", &endless), 1), SIGPIPE);
        assert_eq!(manager.status("q"), "running");
    });
}

#[test]
fn exec_ends_when_nobody_reads_on() {
    manager::on(|manager| {
        manager.run(&["-d"], "up", &["sleep", "1000"]).ok();
        let deaf = "trap '' PIPE TERM; while :; do echo y; done";
        for words in [&["seq", "1", "1000000"][..], &["sh", "-c", deaf]] {
            let exec = [&["exec", "up"], words].concat();
            assert_eq!(head(manager.client(&exec), 1), SIGPIPE);
            assert_eq!(pids(manager, "up"), 1, "{words:?}");
        }
    });
}

/// Also when there is nothing more to write, as tail(1) does.
#[test]
fn who_watches_ends_when_nobody_reads_on() {
    manager::on(|manager| {
        let words = ["sh", "-c", "echo one; sleep 1000"];
        manager.run(&["-d"], "x", &words).ok();
        manager.until("the line in the log", |it| {
            let logs = it.dunnage(&["logs", "x"]).stdout;
            (logs == "one\n").then_some(())
        });
        for (args, lines) in [
            (&["logs", "-f", "x"][..], 1),
            (&["events", "--since", "1"], 1),
            (&["stats"], 1),
            (&["--json", "stats"], 1),
            (&["wait", "x"], 0),
            (&["completion", "bash"], 1),
            (&["man"], 1),
            (&["inspect", "x"], 0),
        ] {
            let code = head(manager.client(args), lines);
            // What is short may be with its reader already, as any program's.
            let is_short = ["man", "inspect"].contains(&args[0]);
            assert!(code == SIGPIPE || is_short && code == 0, "{args:?}: {code}");
        }
    });
}

/// Output that cannot be written for another reason is told of, and ends the client, too.
#[test]
fn a_full_disk_under_the_clients_output_is_told() {
    manager::on(|manager| {
        let mut run = manager.run_command(&["--rm"], "p", &["seq", "1", "1000000"]);
        let full = std::fs::File::options().write(true).open("/dev/full");
        run.stdin(Stdio::null()).stdout(full.expect("/dev/full"));
        let output = run.stderr(Stdio::piped()).output().expect("run");
        assert_eq!(output.status.code(), Some(125));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("No space left"), "{said}");
        assert_eq!(manager.status("p"), "none");
    });
}

/// podman#8086, podman#14533: ^C twice.
#[test]
fn a_signal_that_comes_too_late_changes_nothing() {
    manager::on(|manager| {
        let script = "trap 'exit 5' INT; echo ready; while :; do sleep 0.01; done";
        for n in 0..10 {
            let run = manager.spawn_run(&["--rm"], &format!("c{n}"), &["sh", "-c", script]);
            let is_up = |out: &str| out.contains("ready").then_some(());
            run.stdout.wait_for("the container", is_up);
            loop {
                let _ = wait::signal(run.pid(), libc::SIGINT);
                if ctr::ends_within(run.pid(), Duration::from_millis(1)) {
                    break;
                }
            }
            let output = run.finish().exits(5);
            assert_eq!(output.stderr, "");
        }
    });
}
