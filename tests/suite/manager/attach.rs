// SPDX-License-Identifier: Apache-2.0
//! Clients that come to a container that runs, hear it and type to it, and go again.

use harness::manager::{self, Manager};
use harness::pty::Pty;

/// A shell's loop that repeats what it is told.
const ECHO: [&str; 3] = [
    "sh",
    "-c",
    "echo up; while read line; do echo got $line; done; echo end",
];

fn said(manager: &Manager, id: &str, text: &str) {
    manager.until(text, |it| {
        (it.dunnage(&["logs", id]).stdout.replace('\r', "") == text).then_some(())
    });
}

/// As a detached one has: what it said, and how it ended.
#[test]
fn a_foreground_run_has_a_log_and_a_status() {
    manager::on(|manager| {
        let words = ["sh", "-c", "echo out; echo err >&2; printf part; exit 3"];
        let run = manager.run(&[], "x", &words).exits(3).prints("out\npart");
        assert_eq!(run.stderr, "err\n");
        let logs = manager.dunnage(&["logs", "x"]).ok().prints("out\npart");
        assert_eq!(logs.stderr, "err\n");
        assert_eq!(manager.status("x"), "stopped");
        assert_eq!(manager.json(&["ls"])[0]["exit"], 3);
        manager.dunnage(&["start", "x"]).ok();
        manager.until("a second time", |it| {
            (it.dunnage(&["logs", "x"]).stdout == "out\npartout\npart").then_some(())
        });
        // Bytes that are no text come as they are.
        let bytes = manager
            .run_command(&["--rm"], "y", &["printf", "\\377\\000\\n\\200"])
            .output();
        assert_eq!(bytes.expect("run").stdout, b"\xff\0\n\x80");
        assert!(
            !manager
                .dir()
                .join("r/logs")
                .join(manager.namespace())
                .join("y.json")
                .exists()
        );
        let refused = manager
            .run(&["--log-uri", "file:///tmp/x"], "z", &["true"])
            .exits(125);
        assert!(
            refused.stderr.contains("--log-uri file:///tmp/x"),
            "{refused}"
        );
        assert_eq!(manager.status("z"), "none");
    });
}

/// All that there are hear it, from when they came; the container cares for none.
#[test]
fn who_attaches_hears_and_types() {
    manager::on(|manager| {
        manager.run(&["-d", "-i"], "x", &ECHO).ok();
        said(manager, "x", "up\n");
        let mut one = manager.spawn_dunnage(&["attach", "x"]);
        let two = manager.spawn_dunnage(&["attach", "--no-stdin", "x"]);
        // Each is there when it has heard something.
        let heard = |client: &harness::containerd::ctr::Ctr, text: &str| {
            client
                .stdout
                .wait_for(text, |out| out.contains(text).then_some(()));
        };
        let mut typist = manager.spawn_dunnage(&["attach", "x"]);
        manager.until("all there", |it| {
            typist.write("more\n");
            let all = [&one, &two]
                .iter()
                .all(|client| client.stdout.text().contains("got more"));
            assert_eq!(it.status("x"), "running");
            all.then_some(())
        });
        one.write("from one\n");
        heard(&two, "got from one");
        // The end of one's input is not the container's; nor is one's end.
        one.close_stdin();
        drop(typist);
        drop(one);
        let mut next = manager.spawn_dunnage(&["attach", "x"]);
        next.write("again\n");
        heard(&two, "got again");
        manager.dunnage(&["kill", "-s", "KILL", "x"]).ok();
        two.finish().exits(137);
        next.finish().exits(137);
        manager
            .dunnage(&["attach", "x"])
            .exits(125)
            .fails_with("has ended");
    });
}

#[test]
fn what_cannot_be_attached_to_says_so() {
    manager::on(|manager| {
        let log = format!("file://{}/x.log", manager.dir().display());
        manager
            .run(&["-d", "--log-uri", &log], "x", &["sleep", "1000"])
            .ok();
        manager
            .dunnage(&["attach", "x"])
            .exits(125)
            .fails_with(&log);
        manager
            .dunnage(&["attach", "nobody"])
            .exits(125)
            .fails_with("nobody");
        for keys in ["ctrl-", "ctrl-1", "ab"] {
            let refused = manager
                .dunnage(&["attach", "--detach-keys", keys, "x"])
                .exits(125);
            assert!(
                refused.stderr.contains("--detach-keys") && refused.stderr.contains(keys),
                "{refused}"
            );
            let refused = manager
                .run(&["--detach-keys", keys], "y", &["true"])
                .exits(125);
            assert!(refused.stderr.contains("--detach-keys"), "{refused}");
        }
    });
}

/// Docker's keys, or others; the container goes on, and is reached again.
#[test]
fn keys_part_a_client_from_its_container() {
    manager::on(|manager| {
        let mut run = Pty::spawn(manager.run_command(&["-it"], "x", &ECHO), 24, 80);
        run.expect("up");
        run.type_in("one\n");
        run.expect("got one");
        run.type_in("\x10\x11");
        run.finish().exits(0);
        assert_eq!(manager.status("x"), "running");
        for (options, keys) in [
            (&[][..], "\x10\x11"),
            (&["--detach-keys", "ctrl-a,x"], "\x01x"),
        ] {
            let attach = [&["attach"], options, &["x"]].concat();
            let mut attach = Pty::spawn(manager.client(&attach), 24, 80);
            attach.type_until("two\n", "got two");
            attach.type_in(keys);
            attach.finish().exits(0);
            assert_eq!(manager.status("x"), "running");
        }
        let mut last = Pty::spawn(manager.client(&["attach", "x"]), 24, 80);
        last.type_until("\x04", "end");
        last.finish().exits(0);
        assert_eq!(manager.status("x"), "stopped");
        assert!(manager.dunnage(&["logs", "x"]).stdout.contains("got one"));
        // One that was to go when it ends does so.
        let mut run = Pty::spawn(manager.run_command(&["-it", "--rm"], "y", &ECHO), 24, 80);
        run.expect("up");
        run.type_in("\x10\x11");
        run.finish().exits(0);
        assert_eq!(manager.status("y"), "running");
        manager.dunnage(&["kill", "-s", "KILL", "y"]).ok();
        manager.until("gone", |it| (it.status("y") == "none").then_some(()));
    });
}

/// A client that does not read is cut off, and told so; its container does not wait for it.
#[test]
fn who_does_not_read_holds_nobody_up() {
    manager::on(|manager| {
        let go = manager.fifo("go");
        let script = "echo up; read x </mnt/go; seq 1 200000; echo done; sleep 1000";
        manager.run(&["-d"], "x", &["sh", "-c", script]).ok();
        said(manager, "x", "up\n");
        let mut command = manager.client(&["attach", "x"]);
        let (reader, writer) = std::io::pipe().expect("a pipe");
        command
            .stdout(writer)
            .stderr(std::process::Stdio::piped())
            .stdin(std::process::Stdio::null());
        let attach = command.spawn().expect("attach");
        drop(command);
        let socket = manager
            .dir()
            .join("r/logs")
            .join(manager.namespace())
            .join("x.json.attach");
        assert!(socket.exists());
        manager.until("it is there", |_| {
            let fds = format!("/proc/{}/task", attach.id());
            // The thread that hears is there, too.
            let threads = std::fs::read_dir(fds).map_or(0, |dir| dir.count());
            (threads >= 2).then_some(())
        });
        go.send("go");
        manager.until("all in the log", |it| {
            let logs = it.dunnage(&["logs", "--tail", "1", "x"]).stdout;
            (logs == "done\n").then_some(())
        });
        let reading =
            std::thread::spawn(move || std::io::copy(&mut { reader }, &mut std::io::sink()));
        let output = attach.wait_with_output().expect("its end");
        assert_eq!(output.status.code(), Some(125));
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(why.contains("read too slowly"), "{why}");
        reading.join().expect("a thread").expect("its output");
        assert_eq!(manager.status("x"), "running");
    });
}
