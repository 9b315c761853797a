// SPDX-License-Identifier: Apache-2.0
//! R1 to R4: what a daemon that was killed finds and tells.

use harness::manager::{self, Manager};
use harness::{peers, wait};

fn exits_with(manager: &Manager, id: &str, code: u32) {
    let gate = format!("read x < /mnt/{id}; exit {code}");
    manager.run(&["-d"], id, &["sh", "-c", &gate]).ok();
}

fn open(manager: &Manager, id: &str) {
    std::fs::write(manager.dir().join("share").join(id), "go\n").expect("the gate");
}

#[test]
fn a_container_that_exits_while_the_daemon_is_away_keeps_its_status() {
    manager::on(|manager| {
        let _gate = manager.fifo("c");
        exits_with(manager, "c", 7);
        let pid = manager.pid_of("c");
        manager.kill();
        open(manager, "c");
        assert!(harness::containerd::ctr::ends_within(
            pid,
            harness::containerd::DEADLINE
        ));
        manager.restart();
        manager.until("its exit known", |it| {
            (it.exits("c").len() == 1).then_some(())
        });
        assert_eq!(manager.exits("c")[0].0, 7);
        assert_eq!(manager.status("c"), "stopped");
        manager.dunnage(&["wait", "c"]).ok().prints("7\n");
    });
}

#[test]
fn a_new_subscriber_is_told_of_the_exit_that_nobody_was_told_of() {
    manager::on(|manager| {
        let Some(ctr) = harness::containerd::release::Release::find("1.6") else {
            return;
        };
        manager.run(&["-d"], "c", &["sh", "-c", "exit 7"]).ok();
        manager.until("its exit", |it| (it.exits("c").len() == 1).then_some(()));
        manager.kill();
        manager.restart();
        let filter = "topic==/tasks/exit";
        let events = manager.spawn_ctr(&ctr, &["events", filter]);
        events.stdout.wait_for("the exit", |text| {
            text.contains("\"exit_status\":7").then_some(())
        });
        // Not to somebody who asks the same again, as a client that reconnects does.
        drop(events);
        manager.dunnage(&["delete", "c"]).ok();
    });
}

#[test]
fn running_containers_are_untouched_by_kill_restart_and_renewal() {
    manager::on(|manager| {
        manager.run(&["-d"], "web", &["sleep", "1000"]).ok();
        let pid = manager.pid_of("web");
        manager.kill();
        manager.restart();
        assert_eq!(
            (manager.status("web").as_str(), manager.pid_of("web")),
            ("running", pid)
        );
        let daemon = manager.pid();
        manager.renew();
        assert_eq!(manager.pid(), daemon);
        assert_eq!(
            (manager.status("web").as_str(), manager.pid_of("web")),
            ("running", pid)
        );
        manager.dunnage(&["exec", "web", "true"]).ok();
    });
}

#[test]
fn manager_and_shim_killed_after_the_exit_the_record_tells() {
    if peers::is_go() {
        return;
    }
    manager::on(|manager| {
        let _gate = manager.fifo("c");
        exits_with(manager, "c", 7);
        let (pid, shim) = (manager.pid_of("c"), manager.shim_of("c"));
        manager.kill();
        open(manager, "c");
        assert!(harness::containerd::ctr::ends_within(
            pid,
            harness::containerd::DEADLINE
        ));
        let record = manager
            .state()
            .join("task")
            .join(manager.namespace())
            .join("c/exits/init.json");
        // The daemon is away: only the shim writes it.
        let there = || record.exists().then_some(()).ok_or("not there".to_owned());
        wait::until_within(harness::containerd::DEADLINE, "the record", there);
        wait::signal(shim, libc::SIGKILL).expect("kill");
        manager.restart();
        assert_eq!(manager.exits("c"), [(7, "record".to_owned())]);
        manager.dunnage(&["wait", "c"]).ok().prints("7\n");
    });
}

#[test]
fn manager_and_shim_killed_before_the_exit_the_status_is_unknown_or_killed() {
    manager::on(|manager| {
        manager.run(&["-d"], "c", &["sleep", "1000"]).ok();
        let shim = manager.shim_of("c");
        manager.kill();
        wait::signal(shim, libc::SIGKILL).expect("kill");
        manager.restart();
        let exits = manager.exits("c");
        assert!(matches!(exits[..], [(137 | 255, _)]), "{exits:?}");
        assert_eq!(manager.status("c"), "stopped");
    });
}

#[test]
fn a_created_task_can_be_started_by_the_next_daemon() {
    manager::on(|manager| {
        let rootfs = peers::rootfs().display().to_string();
        let create = ["create", "--rootfs", &rootfs, "c", "sh", "-c", "exit 6"];
        manager.dunnage(&create).ok();
        manager.kill();
        manager.restart();
        assert_eq!(manager.status("c"), "created");
        manager.dunnage(&["start", "c"]).ok();
        manager.dunnage(&["wait", "c"]).ok().prints("6\n");
    });
}

#[test]
fn an_exec_that_ends_while_the_daemon_is_away_is_told() {
    manager::on(|manager| {
        let gate = manager.fifo("gate");
        manager.run(&["-d"], "c", &["sleep", "1000"]).ok();
        manager
            .dunnage(&["exec", "-d", "c", "sh", "-c", "read x < /mnt/gate; exit 5"])
            .ok();
        manager.kill();
        open(manager, "gate");
        manager.restart();
        let told = manager.until("its exit", |it| it.json(&["exits", "c"]).pop());
        assert_eq!(told["status"], 5);
        drop(gate);
    });
}
