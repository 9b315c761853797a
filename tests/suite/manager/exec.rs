// SPDX-License-Identifier: Apache-2.0
//! Execs run as the container's own spec says, but for what the command line changes.

use harness::manager::{self, Manager};
use harness::peers;
use serde_json::{Value, json};

/// What a process tells of itself.
const ABOUT: &str = "id -u; id -g; id -G; echo \"$FOO $A\"; pwd; ulimit -n; \
                     grep -e CapBnd -e CapEff -e NoNewPrivs /proc/self/status | tr -d '\\t'; \
                     cat /proc/self/oom_score_adj";

/// A bundle in the manager's directory; its path.
pub fn bundle(manager: &Manager, change: impl FnOnce(&mut Value)) -> String {
    let dir = manager.dir().join("bundle");
    std::fs::create_dir(&dir).expect("a bundle");
    let made = std::process::Command::new("runc")
        .args(["spec", "-b"])
        .arg(&dir)
        .status();
    assert!(made.expect("runc spec").success());
    let path = dir.join("config.json");
    let json = std::fs::read(&path).expect("config.json");
    let mut spec: Value = serde_json::from_slice(&json).expect("JSON");
    spec["process"]["terminal"] = false.into();
    spec["root"] = json!({"path": peers::rootfs(), "readonly": false});
    change(&mut spec);
    std::fs::write(&path, spec.to_string()).expect("config.json");
    dir.display().to_string()
}

/// podman#3838: rights that a container was not given, no exec may have.
#[test]
fn an_exec_has_the_containers_own_rights() {
    manager::on(|manager| {
        let bundle = bundle(manager, |spec| {
            let process = &mut spec["process"];
            process["args"] = json!(["sleep", "1000"]);
            process["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [7]});
            process["env"] = json!(["PATH=/bin", "FOO=bar"]);
            process["cwd"] = "/tmp".into();
            process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "hard": 77, "soft": 77}]);
            process["capabilities"] = json!({"bounding": ["CAP_KILL"]});
            process["oomScoreAdj"] = 321.into();
            process["noNewPrivileges"] = false.into();
        });
        manager.dunnage(&["run", "-d", "-b", &bundle, "x"]).ok();
        let exec = |options: &[&str]| {
            let words = [&["exec"], options, &["x", "sh", "-c", ABOUT]].concat();
            manager.dunnage(&words).ok().stdout
        };
        let own = "1000\n1001\n1001 7\nbar \n/tmp\n77\nCapEff:0000000000000000\n\
                   CapBnd:0000000000000020\nNoNewPrivs:0\n321\n";
        assert_eq!(exec(&[]), own);
        let options = [
            "-u",
            "5",
            "-w",
            "/",
            "-e",
            "A=b",
            "-e",
            "FOO=x",
            "--cap-drop",
            "all",
        ];
        let changed = "5\n5\n5\nx b\n/\n77\nCapEff:0000000000000000\n\
                       CapBnd:0000000000000000\nNoNewPrivs:0\n321\n";
        assert_eq!(exec(&options), changed);
        // Root is one of the command line's wishes; it has no more capabilities than there are.
        let root = exec(&["-u", "0"]);
        assert!(root.starts_with("0\n0\n0\n"), "{root}");
        assert!(root.contains("CapEff:0000000000000020"), "{root}");
        assert!(root.contains("CapBnd:0000000000000020"), "{root}");
    });
}

#[test]
fn an_exec_has_what_run_was_told() {
    manager::on(|manager| {
        let options = "-d --user 1000:1001 --cap-drop ALL -e FOO=bar -w /tmp";
        let options: Vec<&str> = options.split(' ').collect();
        manager.run(&options, "x", &["sleep", "1000"]).ok();
        let own = "1000\n1001\n1001\nbar \n/tmp\n1024\nCapEff:0000000000000000\n\
                   CapBnd:0000000000000000\nNoNewPrivs:1\n";
        let exec = manager.dunnage(&["exec", "x", "sh", "-c", ABOUT]).ok();
        assert!(exec.stdout.starts_with(own), "{exec}");
    });
}

/// What an exec cannot have is refused, not ignored.
#[test]
fn an_exec_refuses_what_belongs_to_a_container() {
    manager::on(|manager| {
        manager.run(&["-d"], "x", &["sleep", "1000"]).ok();
        for option in [
            "--memory=1m",
            "--cpus=1",
            "--pids-limit=9",
            "--net=host",
            "--volume=/tmp:/t",
            "--read-only",
            "--hostname=h",
        ] {
            let refused = manager.dunnage(&["exec", option, "x", "true"]).exits(125);
            let name = option.split('=').next().unwrap_or(option);
            assert!(refused.stderr.contains(name), "{refused}");
        }
        manager.dunnage(&["exec", "--", "x", "true"]).ok();
    });
}
