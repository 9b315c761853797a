// SPDX-License-Identifier: Apache-2.0
//! Health checks: what they find, what is told of it, and what follows.

use harness::manager::{self, Manager};
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;

/// What the container sees as /mnt/NAME.
fn share(manager: &Manager, name: &str) -> PathBuf {
    manager.dir().join("share").join(name)
}

fn up(manager: &Manager, options: &[&str], check: &str) {
    let often = ["-d", "--health-interval", "50ms", "--health-cmd", check];
    let options = [&often, options].concat();
    manager.run(&options, "x", &["sleep", "1000"]).ok();
}

/// Waits until `ls` says that it is so.
fn becomes(manager: &Manager, health: &str) {
    manager.until(health, |it| (of_ls(it) == health).then_some(()));
}

fn of_ls(manager: &Manager) -> Value {
    manager.json(&["ls"])[0]["health"].clone()
}

fn health(manager: &Manager) -> Value {
    manager.json(&["inspect", "x"])[0]["health"].clone()
}

/// The statuses that events tell.
fn told(manager: &Manager) -> Vec<String> {
    let events = [
        "events",
        "--no-follow",
        "--filter",
        "topic==/containers/health",
    ];
    let events = manager.json(&events);
    let status = |event: &Value| {
        let status = event["event"]["labels"]["io.dunnage.health.status"].as_str();
        status.expect("a status").to_owned()
    };
    events.iter().map(status).collect()
}

#[test]
fn a_check_decides_how_a_container_is() {
    manager::on(|manager| {
        let options = ["--health-retries", "2"];
        up(manager, &options, "echo looked; cat /mnt/well");
        becomes(manager, "unhealthy");
        let found = health(manager);
        assert_eq!(found["status"], "unhealthy");
        assert!(found["failing_streak"].as_u64() >= Some(2), "{found}");
        let latest = &found["log"][0];
        assert_eq!(latest["exit_status"], 1);
        assert!(
            latest["output"]
                .as_str()
                .expect("text")
                .starts_with("looked\ncat: "),
            "{found}"
        );
        std::fs::write(share(manager, "well"), "yes\n").expect("a file");
        becomes(manager, "healthy");
        assert_eq!(health(manager)["failing_streak"], 0);
        assert_eq!(told(manager), ["starting", "unhealthy", "healthy"]);
        // Its execs are nobody's news.
        let events = manager.json(&["events", "--no-follow"]);
        let of_execs = |event: &&Value| {
            event["topic"]
                .as_str()
                .is_some_and(|it| it.contains("exec"))
        };
        assert_eq!(events.iter().filter(of_execs).count(), 0);
        assert_eq!(manager.json(&["exits"]).len(), 0);
        manager.dunnage(&["stop", "-t", "0s", "x"]).ok();
        assert_eq!(of_ls(manager), Value::Null);
        manager.dunnage(&["start", "x"]).ok();
        becomes(manager, "healthy");
    });
}

/// The checks go on, with what was known.
#[test]
fn checks_outlive_the_daemon() {
    manager::on(|manager| {
        std::fs::write(share(manager, "well"), "yes\n").expect("a file");
        up(
            manager,
            &["--health-retries", "1"],
            "cat /mnt/well; sleep 0.1; cat /mnt/well",
        );
        becomes(manager, "healthy");
        manager.kill();
        manager.restart();
        assert_eq!(of_ls(manager), "healthy");
        std::fs::remove_file(share(manager, "well")).expect("the file");
        becomes(manager, "unhealthy");
        manager.renew();
        assert_eq!(of_ls(manager), "unhealthy");
        std::fs::write(share(manager, "well"), "yes\n").expect("a file");
        becomes(manager, "healthy");
    });
}

/// One that hangs is killed at its timeout; one that never stops talking is kept short; and meanwhile the
/// daemon does everything else.
#[test]
fn a_check_that_hangs_or_floods_is_nobodys_trouble() {
    manager::on(|manager| {
        let options = ["--health-retries", "1", "--health-timeout", "300ms"];
        up(manager, &options, "echo $$ >/mnt/pid; exec sleep 1000");
        becomes(manager, "unhealthy");
        let found = health(manager)["log"][0].clone();
        assert_eq!(found["exit_status"], Value::Null);
        assert!(
            found["output"].as_str().expect("text").contains("killed"),
            "{found}"
        );
        manager.until("at most one of them there", |it| {
            let ps = it.json(&["ps", "x"]);
            (ps.len() <= 2).then_some(())
        });
        manager.dunnage(&["rm", "-f", "x"]).ok();
        up(manager, &options, "exec yes");
        becomes(manager, "unhealthy");
        let began = std::time::Instant::now();
        manager.dunnage(&["ls"]).ok();
        assert!(began.elapsed() < Duration::from_secs(5));
        manager.dunnage(&["rm", "-f", "x"]).ok();
        up(manager, &["--health-retries", "1"], "yes | head -c 100000");
        becomes(manager, "healthy");
        let said = health(manager)["log"][0]["output"].clone();
        assert_eq!(said.as_str().expect("text").len(), 1024);
    });
}

#[test]
fn while_it_starts_failures_do_not_count() {
    manager::on(|manager| {
        let options = ["--health-retries", "1", "--health-start-period", "1h"];
        up(manager, &options, "cat /mnt/well");
        manager.until("some that failed", |it| {
            let log = health(it)["log"].as_array().map_or(0, Vec::len);
            (log >= 3).then_some(())
        });
        assert_eq!(of_ls(manager), "starting");
        std::fs::write(share(manager, "well"), "yes\n").expect("a file");
        becomes(manager, "healthy");
        std::fs::remove_file(share(manager, "well")).expect("the file");
        becomes(manager, "unhealthy");
        // A command that is not there has failed, too; and a paused one is not asked.
        manager.dunnage(&["pause", "x"]).ok();
        manager.dunnage(&["resume", "x"]).ok();
    });
}

/// By its stop signal, also when it then ends with 0; and as often as the policy says.
#[test]
fn what_is_unhealthy_is_restarted_if_asked() {
    let config = "[restart]\nbackoff_min = \"10ms\"\nbackoff_max = \"50ms\"\n";
    manager::with(config, |manager| {
        let script = "trap 'echo QUIT; exit 0' QUIT; echo up; while :; do sleep 0.02; done";
        let options = [
            "-d",
            "--restart",
            "on-unhealthy:2",
            "--stop-signal",
            "QUIT",
            "--health-cmd",
            "false",
            "--health-interval",
            "100ms",
            "--health-retries",
            "1",
        ];
        manager.run(&options, "x", &["sh", "-c", script]).ok();
        let said = "up\nQUIT\nup\nQUIT\nup\n";
        manager.until("two restarts", |it| {
            (it.dunnage(&["logs", "x"]).stdout == said).then_some(())
        });
        becomes(manager, "unhealthy");
        // That was the last one.
        assert!(manager.alive_for(Duration::from_millis(400)));
        assert_eq!(manager.status("x"), "running");
        assert_eq!(manager.dunnage(&["logs", "x"]).stdout, said);
    });
}

#[test]
fn flags_of_checks_are_looked_at() {
    manager::on(|manager| {
        for (option, value) in [
            ("--health-interval", "0s"),
            ("--health-interval", "soon"),
            ("--health-timeout", "5"),
            ("--health-start-period", "-1s"),
            ("--health-retries", "0"),
            ("--health-retries", "x"),
            ("--health-cmd", " "),
        ] {
            let value = format!("{option}={value}");
            let refused = manager.run(&["-d", "--health-cmd=true", &value], "x", &["true"]);
            let refused = refused.exits(125);
            assert!(refused.stderr.contains(option), "{refused}");
        }
        for options in [
            &["--health-retries", "5"][..],
            &["--restart", "on-unhealthy"],
        ] {
            let options = [&["-d"], options].concat();
            let refused = manager.run(&options, "x", &["true"]).exits(125);
            assert!(refused.stderr.contains("needs --health-cmd"), "{refused}");
        }
        manager
            .run(&["-d", "--restart", "on-unhealthy:x"], "x", &["true"])
            .exits(125);
        assert!(manager.json(&["ls"]).is_empty());
    });
}
