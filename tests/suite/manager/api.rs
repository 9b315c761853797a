// SPDX-License-Identifier: Apache-2.0
//! R5: the commands of unmodified clients of three releases, over our shim and Go's.

use harness::containerd::release::Release;
use harness::containerd::report;
use harness::manager::{self, Manager};
use harness::peers;
use harness::pty::Pty;
use std::time::Duration;

const RELEASES: [&str; 3] = ["1.6", "1.7", "2.1"];

fn for_each_ctr(test: impl Fn(&mut Manager, &Release)) {
    for name in RELEASES {
        match Release::find(name) {
            Some(release) => manager::on(|manager| test(manager, &release)),
            None => report(&format!("ctr {name} is MISSING (run tests/setup.sh)")),
        }
    }
}

fn for_each_go_shim(test: impl Fn(&mut Manager, &Release)) {
    for name in RELEASES {
        match Release::find(name) {
            Some(release) => {
                let shim = release.go_shim();
                manager::under(&shim, |manager| test(manager, &release));
            }
            None => report(&format!("shim {name} is MISSING (run tests/setup.sh)")),
        }
    }
}

/// Every command of ctr that needs no images.
fn the_command_table(manager: &mut Manager, ctr: &Release) {
    let rootfs = peers::rootfs().display().to_string();
    let ok = |args: &[&str]| manager.ctr(ctr, args).ok();
    assert!(ok(&["version"]).stdout.contains("Server:"));
    ok(&["namespaces", "create", "other", "a=b"]);
    ok(&["namespaces", "label", "other", "c=d"]);
    assert!(ok(&["namespaces", "ls"]).stdout.contains("a=b,c=d"));
    ok(&["namespaces", "rm", "other"]);
    assert!(ok(&["plugins", "ls"]).stdout.contains("tasks"));

    let run = [
        "run",
        "--rm",
        "--rootfs",
        &rootfs,
        "brief",
        "/bin/sh",
        "-c",
        "echo hi; exit 7",
    ];
    manager.ctr(ctr, &run).exits(7).prints("hi\n");

    ok(&[
        "run",
        "-d",
        "--rootfs",
        &rootfs,
        "long",
        "/bin/sleep",
        "1000",
    ]);
    assert!(ok(&["tasks", "ls"]).stdout.contains("RUNNING"));
    assert!(ok(&["tasks", "ps", "long"]).stdout.contains("PID"));
    let exec = [
        "tasks",
        "exec",
        "--exec-id",
        "e",
        "long",
        "/bin/sh",
        "-c",
        "echo in; exit 3",
    ];
    manager.ctr(ctr, &exec).exits(3).prints("in\n");
    ok(&["tasks", "exec", "-d", "--exec-id", "f", "long", "/bin/true"]);
    ok(&["tasks", "pause", "long"]);
    assert!(ok(&["tasks", "ls"]).stdout.contains("PAUSED"));
    ok(&["tasks", "resume", "long"]);
    assert!(ok(&["tasks", "metrics", "long"]).stdout.contains("long"));
    ok(&["containers", "label", "long", "k=v"]);
    assert!(
        ok(&["containers", "info", "long"])
            .stdout
            .contains("\"k\": \"v\"")
    );
    assert!(ok(&["containers", "ls"]).stdout.contains("long"));
    assert!(
        ok(&["containers", "ls", "labels.k==v"])
            .stdout
            .contains("long")
    );
    assert!(
        !ok(&["containers", "ls", "labels.k==w"])
            .stdout
            .contains("long")
    );
    manager
        .ctr(ctr, &["containers", "rm", "long"])
        .fails_with("");
    let attached = manager.spawn_ctr(ctr, &["tasks", "attach", "long"]);
    ok(&["tasks", "kill", "-s", "SIGKILL", "long"]);
    attached.finish().exits(137);
    // `attach` has deleted it.
    manager
        .ctr(ctr, &["tasks", "delete", "long"])
        .fails_with("not found");
    ok(&["containers", "rm", "long"]);

    ok(&[
        "containers",
        "create",
        "--rootfs",
        &rootfs,
        "made",
        "/bin/false",
    ]);
    manager.ctr(ctr, &["tasks", "start", "made"]).exits(1);
    ok(&["containers", "rm", "made"]);
    ok(&["leases", "create", "--id", "l"]);
    assert!(ok(&["leases", "ls"]).stdout.contains('l'));
    ok(&["leases", "rm", "l"]);
    for refused in ["images", "content", "snapshots"] {
        manager
            .ctr(ctr, &[refused, "ls"])
            .fails_with("not implemented");
    }
    manager
        .ctr(ctr, &["tasks", "kill", "absent"])
        .fails_with("not found");
}

#[test]
fn every_ctr_runs_the_whole_command_table() {
    for_each_ctr(the_command_table);
}

#[test]
fn every_go_shim_runs_under_it() {
    for_each_go_shim(the_command_table);
}

#[test]
fn every_ctr_runs_a_terminal() {
    for_each_ctr(|manager, ctr| {
        let rootfs = peers::rootfs().display().to_string();
        let run = ["run", "--rm", "-t", "--rootfs", &rootfs, "tty", "/bin/sh"];
        let mut terminal = Pty::spawn(manager.ctr_command(ctr, &run), 24, 80);
        // What is typed before the terminal is raw is lost.
        terminal.expect("# ");
        terminal.type_in("exit 5\n");
        terminal.finish().exits(5);

        let sizes = "trap 'echo size $(stty size)' WINCH; while :; do sleep 0.05; done";
        let run = [&run[..], &["-c", sizes]].concat();
        let mut terminal = Pty::spawn(manager.ctr_command(ctr, &run), 31, 97);
        // ctr listens to SIGWINCH only some time after the start, and tells nobody: the window
        // is pulled until it follows. From then on each pull must arrive.
        let follows = (101..140).any(|columns| {
            terminal.resize(31, columns);
            terminal.shows(&format!("size 31 {columns}"), Duration::from_millis(500))
        });
        assert!(follows, "ctr does not listen to SIGWINCH");
        terminal.resize(43, 143);
        terminal.expect("size 43 143");
        manager.dunnage(&["kill", "-s", "KILL", "tty"]).ok();
        terminal.finish().exits(137);
    });
}

/// CRIU may or may not work on this machine: either there is a checkpoint, or a clear answer.
#[test]
fn a_checkpoint_is_made_or_clearly_refused() {
    for_each_ctr(|manager, ctr| {
        let rootfs = peers::rootfs().display().to_string();
        let run = ["run", "-d", "--rootfs", &rootfs, "c", "/bin/sleep", "1000"];
        manager.ctr(ctr, &run).ok();
        let images = manager.dir().join("images");
        std::fs::create_dir(&images).expect("a directory");
        let path = images.display().to_string();
        let checkpoint = ["tasks", "checkpoint", "--image-path", &path, "c"];
        let output = manager.ctr(ctr, &checkpoint);
        if output.code == 0 {
            assert!(images.join("inventory.img").exists(), "{output}");
        } else {
            assert!(output.stderr.to_lowercase().contains("criu"), "{output}");
            assert_eq!(manager.status("c"), "running");
        }
        // Into the content store, which is not here.
        let output = manager.ctr(ctr, &["tasks", "checkpoint", "c"]);
        output.fails_with("not implemented");
        assert_ne!(manager.status("c"), "paused");
    });
}

#[test]
fn a_terminal_has_its_size_and_its_end() {
    for_each_ctr(|manager, ctr| {
        let rootfs = peers::rootfs().display().to_string();
        manager
            .ctr(
                ctr,
                &["run", "-d", "--rootfs", &rootfs, "c", "/bin/sleep", "1000"],
            )
            .ok();
        let run = manager.dunnage(&["exec", "-t", "c", "sh", "-c", "test -t 1 && exit 9"]);
        run.exits(9);
    });
}
