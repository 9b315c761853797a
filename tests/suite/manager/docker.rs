// SPDX-License-Identifier: Apache-2.0
//! dockerd, with our socket for containerd's.

use harness::containerd::release::Release;
use harness::docker::{Bridge, Dockerd, Programs};
use harness::manager::{self, Manager};
use std::fs;

/// What of Docker goes through us.
fn the_scenario(manager: &mut Manager, programs: &Programs) {
    let dockerd = Dockerd::start(programs, manager, Bridge::None);
    let ok = |args: &[&str]| dockerd.docker(args).ok();
    let run = [
        "run",
        "--rm",
        "--network=none",
        "busybox:test",
        "sh",
        "-c",
        "echo hi; exit 3",
    ];
    dockerd.docker(&run).exits(3).prints("hi\n");

    let service = "echo up; while :; do sleep 0.1; done";
    let run = [
        "run",
        "-d",
        "--name=web",
        "--network=none",
        "busybox:test",
        "sh",
        "-c",
        service,
    ];
    ok(&run);
    dockerd
        .docker(&["exec", "web", "sh", "-c", "exit 4"])
        .exits(4);
    assert!(ok(&["top", "web"]).stdout.contains("sleep"));
    ok(&["pause", "web"]);
    assert!(ok(&["ps"]).stdout.contains("(Paused)"));
    ok(&["unpause", "web"]);
    assert!(ok(&["stats", "--no-stream", "web"]).stdout.contains("web"));
    ok(&["update", "--memory=100m", "--memory-swap=200m", "web"]);
    assert_eq!(ok(&["logs", "web"]).stdout, "up\n");
    ok(&["kill", "web"]);
    ok(&["wait", "web"]).prints("137\n");
    ok(&["rm", "web"]);

    let up = "echo up; read x < /mnt/gate; exit 7";
    let share = format!("{}:/mnt", manager.dir().join("share").display());
    let gate = manager.fifo("gate");
    let run = [
        "run",
        "-d",
        "--name=brief",
        "--network=none",
        "-v",
        &share,
        "busybox:test",
        "sh",
        "-c",
        up,
    ];
    ok(&run);
    let run = [
        "run",
        "-d",
        "--name=stays",
        "--network=none",
        "busybox:test",
        "sleep",
        "1000",
    ];
    ok(&run);
    let pid = ok(&["inspect", "-f", "{{.State.Pid}}", "brief"])
        .stdout
        .trim()
        .parse();
    let pid: i32 = pid.expect("a pid");
    manager.kill();
    fs::write(manager.dir().join("share/gate"), "go\n").expect("the gate");
    assert!(harness::containerd::ctr::ends_within(
        pid,
        harness::containerd::DEADLINE
    ));
    manager.restart();
    ok(&["wait", "brief"]).prints("7\n");
    assert!(ok(&["ps", "-a"]).stdout.contains("Exited (7)"));
    dockerd
        .docker(&["exec", "stays", "sh", "-c", "exit 5"])
        .exits(5);
    ok(&["rm", "-f", "stays", "brief"]);
    drop(gate);
}

#[test]
fn docker_runs_over_it_and_learns_of_what_it_missed() {
    if let Some(programs) = Programs::of_the_system() {
        manager::on(|manager| the_scenario(manager, &programs));
    }
}

#[test]
fn the_newest_docker_does_too() {
    if let Some(programs) = Programs::newest() {
        manager::on(|manager| the_scenario(manager, &programs));
    }
}

/// Each Docker with the shim of a containerd of its time.
#[test]
fn docker_runs_over_gos_shims_too() {
    for (programs, release) in [
        (Programs::of_the_system(), "1.6"),
        (Programs::newest(), "2.1"),
    ] {
        let (Some(programs), Some(release)) = (programs, Release::find(release)) else {
            continue;
        };
        manager::under(&release.go_shim(), |manager| {
            the_scenario(manager, &programs)
        });
    }
}

#[test]
fn docker_restarts_what_its_policy_says_and_outlives_our_restarts() {
    let Some(programs) = Programs::newest().or_else(Programs::of_the_system) else {
        return;
    };
    manager::on(|manager| {
        let dockerd = Dockerd::start(&programs, manager, Bridge::None);
        let ok = |args: &[&str]| dockerd.docker(args).ok();
        let run = ["run", "-d", "--network=none"];
        let with = |more: &[&str]| ok(&[&run[..], more].concat());
        let words = ["busybox:test", "sh", "-c", "exit 4"];
        with(&[&["--name=fails", "--restart=on-failure:2"][..], &words].concat());
        ok(&["wait", "fails"]);
        let count = [
            "inspect",
            "-f",
            "{{.RestartCount}} {{.State.ExitCode}}",
            "fails",
        ];
        manager.until("all its restarts", |_| {
            (ok(&count).stdout.trim() == "2 4").then_some(())
        });
        let service = ["busybox:test", "sh", "-c", "echo up; exec sleep 1000"];
        with(&[&["--name=web", "--restart=always"][..], &service].concat());
        let pid = || {
            let pid = ok(&["inspect", "-f", "{{.State.Pid}}", "web"]).stdout;
            pid.trim().parse::<i32>().expect("a pid")
        };
        let first = pid();
        manager.kill();
        manager.restart();
        // Docker has noticed, and is there again.
        manager.until("docker to be connected", |_| {
            (dockerd.docker(&["exec", "web", "true"]).code == 0).then_some(())
        });
        assert_eq!(pid(), first);
        harness::wait::signal(first, libc::SIGKILL).expect("kill");
        manager.until("another process", |_| {
            Some(pid()).filter(|&pid| pid != 0 && pid != first)
        });
        manager.until("its second line", |_| {
            (ok(&["logs", "web"]).stdout == "up\nup\n").then_some(())
        });
        ok(&["stop", "-t", "0", "web"]);
        ok(&["rm", "web", "fails"]);
    });
}
