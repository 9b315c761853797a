// SPDX-License-Identifier: Apache-2.0
//! What a container may do unless it is told otherwise, and what it may when it is.

use crate::exec::bundle;
use harness::manager::{self, Manager};
use std::fs;

/// What the kernel says of a process, and what only a filter of system calls keeps it from: a user
/// namespace is everybody's.
const ABOUT: &str = "grep -e NoNewPrivs: -e Seccomp: /proc/self/status | tr -d '\\t'; \
                     unshare -U true 2>/dev/null && echo unshared";

fn about(manager: &Manager, options: &[&str]) -> String {
    let options = [&["--rm"], options].concat();
    let script = ["sh", "-c", &format!("{ABOUT}; true")];
    manager.run(&options, "x", &script).ok().stdout
}

const CONFINED: &str = "NoNewPrivs:1\nSeccomp:2\n";

#[test]
fn system_calls_are_filtered_as_docker_does() {
    manager::on(|manager| {
        assert_eq!(about(manager, &[]), CONFINED);
        // Docker's profile has conditions: who may administrate may make namespaces.
        let able = about(manager, &["--cap-add", "SYS_ADMIN"]);
        assert_eq!(able, "NoNewPrivs:1\nSeccomp:2\nunshared\n");
        let free = about(manager, &["--security-opt", "seccomp=unconfined"]);
        assert_eq!(free, "NoNewPrivs:1\nSeccomp:0\nunshared\n");
        let gaining = about(manager, &["--security-opt", "no-new-privileges=false"]);
        assert_eq!(gaining, "NoNewPrivs:0\nSeccomp:2\n");
        let profile = manager.dir().join("profile.json");
        let json = r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}"#;
        fs::write(&profile, json).expect("a profile");
        let option = format!("seccomp={}", profile.display());
        let options = ["--rm", "--security-opt", &option];
        let refused = manager.run(&options, "x", &["mkdir", "/tmp/y"]).exits(1);
        assert!(refused.stderr.contains("No space left"), "{refused}");
    });
}

#[test]
fn an_exec_has_the_containers_filter() {
    manager::on(|manager| {
        manager.run(&["-d"], "x", &["sleep", "1000"]).ok();
        let exec = |options: &[&str]| {
            let words = [&["exec"], options, &["x", "sh", "-c", ABOUT]].concat();
            manager.dunnage(&words).stdout
        };
        assert_eq!(exec(&[]), CONFINED);
        assert_eq!(exec(&["--cap-add", "SYS_ADMIN"]), CONFINED);
    });
}

#[test]
fn what_tells_of_the_machine_is_masked() {
    manager::on(|manager| {
        let script = "cat /proc/interrupts /proc/keys; touch /proc/sys/kernel/domainname 2>&1; \
                      ls /sys/firmware /sys/devices/virtual/powercap 2>/dev/null | grep -v :; \
                      ls /sys/devices/system/cpu/cpu*/thermal_throttle 2>/dev/null | grep -v :; true";
        let said = manager
            .run(&["--rm"], "x", &["sh", "-c", script])
            .ok()
            .stdout;
        let refused = "touch: /proc/sys/kernel/domainname: Read-only file system";
        let lines: Vec<&str> = said.lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(lines, [refused]);
    });
}

/// Docker's meaning of the word, and nothing else gives as much.
#[test]
fn only_a_privileged_container_has_all() {
    manager::on(|manager| {
        let script = "grep -e CapEff -e NoNewPrivs: -e Seccomp: /proc/self/status | tr -d '\\t'; \
                      grep -c . /proc/interrupts; grep -c ' /sys sysfs rw' /proc/mounts; \
                      mkdir /sys/fs/cgroup/x 2>/dev/null; ls -d /dev/kmsg; head -c 1 /dev/kmsg | wc -c";
        let words = ["sh", "-c", script];
        let said = manager
            .run(&["--rm", "--privileged"], "x", &words)
            .ok()
            .stdout;
        let lines: Vec<&str> = said.lines().collect();
        let own = fs::read_to_string("/proc/self/status").expect("status");
        let bounding = own.lines().find_map(|line| line.strip_prefix("CapBnd:\t"));
        assert_eq!(lines[0], format!("CapEff:{}", bounding.expect("CapBnd")));
        assert_eq!(lines[1..3], ["NoNewPrivs:0", "Seccomp:0"]);
        assert_ne!(lines[3], "0");
        assert_eq!(lines[4..], ["1", "/dev/kmsg", "1"]);
        let usual = manager.run(&["--rm"], "x", &words).stdout;
        assert!(usual.contains("NoNewPrivs:1\nSeccomp:2\n0\n0\n"), "{usual}");
        let all = ["--rm", "--cap-add", "ALL", "--cap-drop", "SYS_RESOURCE"];
        let devices = manager.run(&all, "x", &["ls", "/dev/kmsg"]);
        devices.fails_with("No such file");
    });
}

/// What a bundle says stays so, unless an option says otherwise.
#[test]
fn a_bundle_is_confined_as_it_says() {
    manager::on(|manager| {
        let bundle = bundle(manager, |spec| {
            spec["process"]["noNewPrivileges"] = false.into();
        });
        let run = |options: &[&str]| {
            let words = [
                &["run", "--rm", "-b", &bundle],
                options,
                &["x", "sh", "-c", ABOUT],
            ];
            manager.dunnage(&words.concat()).stdout
        };
        assert_eq!(run(&[]), "NoNewPrivs:0\nSeccomp:0\nunshared\n");
        let both = [
            "--security-opt",
            "seccomp=builtin",
            "--security-opt",
            "no-new-privileges",
        ];
        assert_eq!(run(&both), CONFINED);
        assert_eq!(
            run(&["--privileged"]),
            "NoNewPrivs:0\nSeccomp:0\nunshared\n"
        );
    });
}

#[test]
fn what_confines_nothing_is_refused_by_name() {
    manager::on(|manager| {
        let torn = manager.dir().join("torn.json");
        fs::write(&torn, r#"{"defaultAction": "SCMP_ACT_ALOW"}"#).expect("a profile");
        let torn = format!("seccomp={}", torn.display());
        for (value, word) in [
            ("seccomp=/none.json", "No such file"),
            (torn.as_str(), "SCMP_ACT_ALOW"),
            ("seccomp=/dev/zero", "bytes"),
            ("seccomp", "seccomp=FILE"),
            ("no-new-privileges=perhaps", "true|false"),
            ("apparmor=unconfined", "seccomp=FILE"),
        ] {
            let options = ["-d", "--security-opt", value];
            let refused = manager.run(&options, "x", &["true"]).exits(125);
            let names = ["--security-opt", value, word];
            assert!(
                names.iter().all(|it| refused.stderr.contains(it)),
                "{refused}"
            );
        }
        let both = ["-d", "--privileged", "--cap-drop", "ALL"];
        let refused = manager.run(&both, "x", &["true"]).exits(125);
        assert!(refused.stderr.contains("--cap-drop"), "{refused}");
        assert!(manager.json(&["ls"]).is_empty());
    });
}
