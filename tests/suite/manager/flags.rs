// SPDX-License-Identifier: Apache-2.0
//! Options that change what they say, or are refused by name.

use crate::exec::bundle;
use harness::manager;
use serde_json::json;

/// A bundle's spec is changed as the command line says, and no further.
#[test]
fn options_change_a_bundle() {
    manager::on(|manager| {
        let bundle = bundle(manager, |spec| {
            spec["process"]["args"] = json!(["false"]);
            spec["linux"]["resources"]["pids"] = json!({"limit": 99});
        });
        let options = "--user 5:6 --hostname other -e A=b -w /tmp --read-only --memory 64m --cpus 0.5 \
                       --cap-drop ALL --cap-add kill --net host -v /usr:/mnt:ro";
        let mut words = vec!["run", "-d", "-b", &bundle];
        words.extend(options.split_whitespace());
        let script = "id -u; id -g; hostname; echo $A; pwd; grep CapBnd /proc/self/status; \
                      touch /x || touch /mnt/x || sleep 1000";
        words.extend(["x", "sh", "-c", script]);
        manager.dunnage(&words).ok();
        let said = "5\n6\nother\nb\n/tmp\nCapBnd:\t0000000000000020\n";
        manager.until("what it says", |it| {
            let logs = it.dunnage(&["logs", "x"]).stdout;
            (logs == said).then_some(())
        });
        assert_eq!(manager.status("x"), "running");
        let inspected = manager.dunnage(&["inspect", "x"]).ok().stdout;
        let inspected: serde_json::Value = serde_json::from_str(&inspected).expect("JSON");
        let linux = &inspected["spec"]["linux"];
        let resources = &linux["resources"];
        assert_eq!(resources["memory"]["limit"], 64 << 20);
        assert_eq!(resources["cpu"]["quota"], 50_000);
        assert_eq!(resources["pids"]["limit"], 99);
        let namespaces = linux["namespaces"].as_array().expect("namespaces");
        assert!(namespaces.iter().all(|it| it["type"] != "network"));
    });
}

/// Docker's exit code for it; and nothing is made.
#[test]
fn values_that_mean_nothing_are_refused_by_name() {
    manager::on(|manager| {
        for (option, value) in [
            ("--cap-drop", "NET_RAWW"),
            ("--cap-add", "CAP_SYS_ADMINN"),
            ("--cpus", "nan"),
            ("--cpus", "inf"),
            ("--cpus", "-1"),
            ("--cpus", "0"),
            ("--memory", "0"),
            ("--memory", "-5"),
            ("--memory", "1x"),
            ("--pids-limit", "0"),
            ("--user", "no body"),
            ("--user", "1:2:3"),
            ("--workdir", "tmp"),
            ("--env", "A"),
            ("--env", "=b"),
            ("--volume", "/a"),
            ("--volume", "/a:/b:rx"),
            ("--volume", "/a:/b:ro:rw"),
            ("--hostname", ""),
            ("--net", "hosts"),
            ("--log-uri", "/var/log/x"),
            ("--restart", "sometimes"),
        ] {
            let refused = manager
                .run(&["-d", option, value], "x", &["true"])
                .exits(125);
            let names = refused.stderr.contains(option) && refused.stderr.contains(value);
            assert!(names, "{refused}");
        }
        manager
            .run(&["-d", "--rm", "--restart", "always"], "x", &["true"])
            .exits(125);
        assert!(manager.json(&["ls"]).is_empty());
        manager.run(&["-d"], "x", &["sleep", "1000"]).ok();
        for (option, value) in [("--cpus", "nan"), ("--memory", "-5")] {
            let refused = manager.dunnage(&["update", option, value, "x"]).exits(125);
            assert!(refused.stderr.contains(option), "{refused}");
        }
    });
}

/// What was set stays set.
#[test]
fn an_update_outlives_the_task() {
    manager::on(|manager| {
        manager.run(&["-d"], "x", &["sleep", "1000"]).ok();
        manager.dunnage(&["update", "--memory", "64m", "x"]).ok();
        let limit = || manager.json(&["stats", "--no-stream"])[0]["limit_bytes"].clone();
        assert_eq!(limit(), 64 << 20);
        manager.dunnage(&["stop", "-t", "0s", "x"]).ok();
        manager.dunnage(&["start", "x"]).ok();
        assert_eq!(limit(), 64 << 20);
        manager.dunnage(&["stop", "-t", "0s", "x"]).ok();
        manager.dunnage(&["update", "--memory", "32m", "x"]).ok();
        manager.dunnage(&["start", "x"]).ok();
        assert_eq!(limit(), 32 << 20);
    });
}

/// As docker and podman have them.
#[test]
fn exit_codes_tell_whose_they_are() {
    manager::on(|manager| {
        for args in [
            &["run", "--nonsense"][..],
            &["run"],
            &["exec", "x"],
            &["exec", "--no", "x"],
        ] {
            manager.dunnage(args).exits(125);
        }
        // A name that speaks of a command as OCI runtimes do.
        let absent = manager.dir().join("executable").display().to_string();
        for args in [
            &["run", "-b", "/b", "x"][..],
            &["exec", "x", "true"],
            &["start", "x"],
        ] {
            let args = [&["-a", &absent], args].concat();
            let output = manager.plain(&args).exits(125);
            assert!(output.stderr.contains(&absent), "{output}");
        }
        manager
            .plain(&["--config", &absent, "run", "-b", "/b", "x"])
            .exits(125);
        manager.plain(&["--version"]).ok();
        manager.plain(&["help", "run"]).ok();
        manager.run(&["-d"], "x", &["sh", "-c", "exit 7"]).ok();
        manager.dunnage(&["wait", "x"]).ok().prints("7\n");
        manager.dunnage(&["wait", "nobody"]).exits(1);
    });
}

/// moby's `run -d --rm`: the daemon removes what has ended, also what ended while it was away.
#[test]
fn a_detached_container_is_removed_when_it_has_ended() {
    manager::on(|manager| {
        let go = manager.fifo("go");
        let words = ["sh", "-c", "echo said; read go </mnt/go; exit 3"];
        for restarts in [false, true] {
            manager.run(&["-d", "--rm"], "x", &words).ok();
            assert_eq!(manager.status("x"), "running");
            let pid = manager.pid_of("x");
            if restarts {
                manager.kill();
            }
            go.send("go");
            if restarts {
                assert!(harness::containerd::ctr::ends_within(
                    pid,
                    std::time::Duration::from_secs(40)
                ));
                manager.restart();
            }
            manager.until("removed", |it| (it.status("x") == "none").then_some(()));
            manager.dunnage(&["wait", "x"]).ok().prints("3\n");
            manager.dunnage(&["logs", "x"]).fails_with("No such file");
        }
    });
}
