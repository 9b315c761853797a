// SPDX-License-Identifier: Apache-2.0
//! The client of our own: output, input, exit codes, logs, restarts.

use harness::manager;
use std::time::Duration;

#[test]
fn run_exits_with_the_exit_code_and_prints_what_the_container_says() {
    manager::on(|manager| {
        for code in [0, 1, 7, 137, 255] {
            manager
                .run(&["--rm"], "code", &["sh", "-c", &format!("exit {code}")])
                .exits(code);
        }
        let output = manager.run(&["--rm"], "talk", &["sh", "-c", "echo out; echo err >&2"]);
        assert_eq!(output.clone().ok().prints("out\n").stderr, "err\n");
        assert!(manager.json(&["ls"]).is_empty());
    });
}

/// As docker and podman have it.
#[test]
fn a_command_that_cannot_be_run_is_told_by_the_exit_code() {
    manager::on(|manager| {
        manager.run(&["-d"], "up", &["sleep", "1000"]).ok();
        let cases = [
            ("no-such-program", 127),
            ("/no/such/program", 127),
            ("/etc", 126),
            ("/etc/passwd", 126),
        ];
        for (command, code) in cases {
            manager.run(&["--rm"], "none", &[command]).exits(code);
            manager.run(&["-d"], "none", &[command]).exits(code);
            manager.dunnage(&["exec", "up", command]).exits(code);
        }
        let volume = ["--rm", "-v", "/no/such/volume:/v"];
        manager.run(&volume, "none", &["true"]).exits(125);
        manager.run(&["--rm"], "up", &["true"]).exits(125);
        manager.dunnage(&["exec", "nobody", "true"]).exits(125);
        assert_eq!(manager.json(&["ls"]).len(), 1);
        manager.dunnage(&["delete", "--force", "up"]).ok();
    });
}

/// As docs/dunnage.md has it: `runc spec` writes one with a terminal.
#[test]
fn a_bundle_is_run_as_its_spec_says() {
    manager::on(|manager| {
        let bundle = manager.dir().join("bundle");
        std::fs::create_dir(&bundle).expect("a bundle");
        let spec = std::process::Command::new("runc")
            .arg("spec")
            .arg("-b")
            .arg(&bundle)
            .status();
        assert!(spec.expect("runc spec").success());
        let path = bundle.join("config.json");
        let json = std::fs::read(&path).expect("config.json");
        let mut spec: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
        assert_eq!(spec["process"]["terminal"], true);
        // Where a root filesystem would be beside config.json, as `runc spec` expects it.
        spec["root"]["path"] = harness::peers::rootfs().display().to_string().into();
        spec["process"]["args"] = serde_json::json!(["sh", "-c", "test -t 1 && echo yes; exit 4"]);
        std::fs::write(&path, spec.to_string()).expect("config.json");
        let bundle = bundle.display().to_string();
        let run = ["run", "--rm", "--bundle", &bundle, "b"];
        let began = std::time::Instant::now();
        manager.dunnage(&run).exits(4).prints("yes\r\n");
        // Nobody waits for a stream that a terminal has not.
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{:?}",
            began.elapsed()
        );
    });
}

#[test]
fn run_passes_stdin_and_its_end() {
    manager::on(|manager| {
        let words = ["sh", "-c", "cat; echo end; exit 3"];
        let mut run = manager.spawn_run(&["--rm", "-i"], "cat", &words);
        run.write("one\n");
        run.stdout
            .wait_for("the first line", |out| (out == "one\n").then_some(()));
        run.write("two\n");
        run.close_stdin();
        run.finish().exits(3).prints("one\ntwo\nend\n");
    });
}

#[test]
fn a_signal_to_run_reaches_the_container() {
    manager::on(|manager| {
        let up = manager.fifo("up");
        let script = "trap 'exit 5' TERM; echo up > /mnt/up; while :; do sleep 0.05; done";
        let run = manager.spawn_run(&["--rm"], "trap", &["sh", "-c", script]);
        assert_eq!(up.line(), "up");
        harness::wait::signal(run.pid(), libc::SIGTERM).expect("signal");
        run.finish().exits(5);
    });
}

#[test]
fn the_life_of_a_service() {
    manager::on(|manager| {
        let script = "echo one; echo two >&2; while :; do sleep 0.05; done";
        manager
            .run(&["-d", "-l", "a=b"], "web", &["sh", "-c", script])
            .ok()
            .prints("web\n");
        assert_eq!(manager.status("web"), "running");
        manager
            .dunnage(&["exec", "web", "sh", "-c", "exit 6"])
            .exits(6);
        assert_eq!(manager.json(&["ps", "web"])[0]["exec"], "");
        manager.dunnage(&["pause", "web"]).ok();
        assert_eq!(manager.status("web"), "paused");
        manager.dunnage(&["resume", "web"]).ok();
        manager.dunnage(&["update", "--memory", "64m", "web"]).ok();
        let stats = manager.json(&["stats", "--no-stream"]);
        assert_eq!(
            (&stats[0]["id"], &stats[0]["limit_bytes"]),
            (&"web".into(), &(64 << 20).into())
        );
        manager.until("both lines in the log", |it| {
            let logs = it.dunnage(&["logs", "web"]).ok();
            (logs.stdout == "one\n" && logs.stderr == "two\n").then_some(())
        });
        assert!(
            manager
                .dunnage(&["inspect", "web"])
                .ok()
                .stdout
                .contains("\"a\": \"b\"")
        );
        manager.dunnage(&["delete", "web"]).fails_with("running");
        manager.dunnage(&["stop", "-t", "100ms", "web"]).ok();
        assert_eq!(manager.status("web"), "stopped");
        manager.dunnage(&["start", "web"]).ok();
        assert_eq!(manager.status("web"), "running");
        manager.dunnage(&["kill", "-s", "KILL", "web"]).ok();
        manager.dunnage(&["wait", "web"]).ok().prints("137\n");
        manager.dunnage(&["rm", "web"]).ok();
        manager.dunnage(&["wait", "web"]).ok().prints("137\n");
    });
}

#[test]
fn a_container_is_restarted_as_its_policy_says() {
    let config = "[restart]\nbackoff_min = \"10ms\"\nbackoff_max = \"50ms\"\n";
    manager::with(config, |manager| {
        let options = ["-d", "--restart", "on-failure:2"];
        manager.run(&options, "fails", &["sh", "-c", "exit 4"]).ok();
        manager.until("three exits", |it| {
            (it.exits("fails").len() == 3).then_some(())
        });
        manager
            .run(&["-d", "--restart", "always"], "again", &["true"])
            .ok();
        manager.until("five exits", |it| {
            (it.exits("again").len() >= 5).then_some(())
        });
        manager.dunnage(&["stop", "again"]);
        manager.until("stopped for good", |it| {
            let before = it.exits("again").len();
            assert!(it.alive_for(Duration::from_millis(300)));
            (it.exits("again").len() == before).then_some(())
        });
        assert_eq!(manager.exits("fails").len(), 3);
    });
}

#[test]
fn a_restart_policy_outlives_the_daemon() {
    manager::on(|manager| {
        let up = manager.fifo("up");
        let script = "echo up > /mnt/up; while :; do sleep 0.05; done";
        manager
            .run(&["-d", "--restart", "always"], "web", &["sh", "-c", script])
            .ok();
        assert_eq!(up.line(), "up");
        let pid = manager.pid_of("web");
        manager.kill();
        harness::wait::signal(pid, libc::SIGKILL).expect("kill");
        manager.restart();
        assert_eq!(up.line(), "up");
        manager.until("a new process", |it| {
            (it.status("web") == "running" && it.pid_of("web") != pid).then_some(())
        });
    });
}

#[test]
fn a_wrong_configuration_is_refused_by_name() {
    manager::on(|manager| {
        let path = manager.dir().join("wrong.toml");
        std::fs::write(&path, "[shim]\nsockets = 1\n").expect("a file");
        let path = path.to_string_lossy();
        manager
            .plain(&["--config", &path, "ls"])
            .fails_with("sockets");
    });
}

/// It has the daemon's own reader.
#[test]
fn check_names_what_the_daemon_could_not_go_on_with() {
    manager::on(|manager| {
        let path = manager.dir().join("wrong.toml");
        let long = format!("[grpc]\naddress = \"/{}\"\n", "x".repeat(110));
        for (text, key) in [
            (
                "[restart]\nbackoff_min = \"5s\"\nbackoff_max = \"1s\"\n",
                "restart.backoff_min",
            ),
            ("[metrics]\naddress = \"localhost\"\n", "metrics.address"),
            (&long, "grpc.address"),
            ("[grpc]\nmode = \"1777\"\n", "grpc.mode"),
            ("[runtime.paths]\nx = \"here\"\n", "runtime.paths"),
            ("[shim]\nstart_timeout = \"0s\"\n", "shim.start_timeout"),
            ("[shim]\nsockets = 1\n", "sockets"),
        ] {
            std::fs::write(&path, text).expect("a file");
            let check = ["--config", &path.to_string_lossy(), "check"];
            let refused = manager.plain(&check).exits(1).fails_with(key);
            assert!(
                refused.stderr.contains(&*path.to_string_lossy()),
                "{refused}"
            );
        }
        // Of a file beside it that one is named; and a shim that is not there is.
        std::fs::write(&path, "").expect("a file");
        let beside = path.with_file_name("config.d");
        std::fs::create_dir(&beside).expect("a directory");
        let more = beside.join("10.toml");
        let check = ["--config", &path.to_string_lossy(), "check"];
        for (text, key) in [
            ("[grpc]\nmode = \"1777\"\n", "grpc.mode"),
            ("root = \"here\"\n", "root"),
        ] {
            std::fs::write(&more, text).expect("a file");
            let said = format!("{}: {key}: ", more.display());
            manager.plain(&check).exits(1).fails_with(&said);
        }
        std::fs::write(&more, "[runtime.paths]\nx = \"/no/shim\"\n").expect("a file");
        manager
            .plain(&check)
            .exits(1)
            .fails_with("runtime.paths.\"x\": \"/no/shim\"");
        std::fs::write(&more, "[runtime.paths]\nx = \"/bin/true\"\n").expect("a file");
        manager.plain(&check).ok();
        std::fs::remove_dir_all(&beside).expect("the directory");
    });
}

/// signal(7): real-time signals have numbers only; they are named by how far they are from the
/// first or the last.
#[test]
fn real_time_signals_have_the_names_that_kill_knows() {
    manager::on(|manager| {
        let up = manager.fifo("up");
        for (id, signal, name) in [("first", 37, "RTMIN+3"), ("last", 63, "sigrtmax-1")] {
            let script =
                format!("trap 'exit 9' {signal}; echo up > /mnt/up; while :; do sleep 0.05; done");
            manager.run(&["-d"], id, &["sh", "-c", &script]).ok();
            assert_eq!(up.line(), "up");
            manager.dunnage(&["kill", "-s", name, id]).ok();
            manager.dunnage(&["wait", id]).ok().prints("9\n");
            manager.dunnage(&["delete", id]).ok();
        }
        for name in ["RTMIN+31", "RTMAX-31", "RTMIN-1", "RT", "NONE"] {
            manager
                .dunnage(&["kill", "-s", name, "x"])
                .fails_with("no signal");
        }
    });
}
