// SPDX-License-Identifier: Apache-2.0
//! A shim is killed while the daemon lives.

use harness::manager::{self, Manager};
use harness::wait;

const KEEP: &str = "[shim]\non_death = \"keep\"\n";

fn kill_shim(manager: &Manager, id: &str) {
    wait::signal(manager.shim_of(id), libc::SIGKILL).expect("kill");
}

#[test]
fn its_running_container_is_killed_and_told_of_once() {
    manager::on(|manager| {
        manager.run(&["-d"], "c", &["sleep", "1000"]).ok();
        let pid = manager.pid_of("c");
        kill_shim(manager, "c");
        manager.until("its exit", |it| (it.exits("c").len() == 1).then_some(()));
        assert_eq!(manager.exits("c"), [(137, "reaped".to_owned())]);
        assert!(!harness::proc::alive(pid));
        let deletes = ["events", "--no-follow", "--filter", "topic==/tasks/delete"];
        let events = manager.until("its deletion", |it| {
            Some(it.json(&deletes)).filter(|events| !events.is_empty())
        });
        assert_eq!(events.len(), 1);
        assert_eq!(events[0]["event"]["exit_status"], 137);
    });
}

#[test]
fn an_exit_that_is_known_is_not_contradicted() {
    manager::on(|manager| {
        manager.run(&["-d"], "c", &["sh", "-c", "exit 7"]).ok();
        manager.until("its exit", |it| (it.exits("c").len() == 1).then_some(()));
        for shim in manager.shims() {
            wait::signal(shim, libc::SIGKILL).expect("kill");
        }
        manager.until("it buried", |it| (it.status("c") == "-").then_some(()));
        assert_eq!(manager.exits("c"), [(7, "shim".to_owned())]);
        let deletes = ["events", "--no-follow", "--filter", "topic==/tasks/delete"];
        let events = manager.until("its deletion", |it| {
            Some(it.json(&deletes)).filter(|events| !events.is_empty())
        });
        assert_eq!(events[0]["event"]["exit_status"], 7);
    });
}

#[test]
fn a_container_that_is_kept_has_its_true_status() {
    manager::with(KEEP, |manager| {
        let gate = manager.fifo("gate");
        manager
            .run(&["-d"], "c", &["sh", "-c", "read x < /mnt/gate; exit 9"])
            .ok();
        kill_shim(manager, "c");
        manager.until("the loss noticed", |it| {
            it.log().contains("goes on without a shim").then_some(())
        });
        assert_eq!(manager.status("c"), "running");
        let waiting = manager.spawn_dunnage(&["wait", "c"]);
        std::fs::write(manager.dir().join("share/gate"), "go\n").expect("the gate");
        waiting.finish().ok().prints("9\n");
        assert_eq!(manager.exits("c"), [(9, "reaped".to_owned())]);
        manager.dunnage(&["delete", "c"]).ok();
        drop(gate);
    });
}

#[test]
fn a_container_that_is_kept_stays_ours_through_a_renewal() {
    manager::with(KEEP, |manager| {
        let gate = manager.fifo("gate");
        manager
            .run(&["-d"], "c", &["sh", "-c", "read x < /mnt/gate; exit 9"])
            .ok();
        kill_shim(manager, "c");
        manager.until("the loss noticed", |it| {
            it.log().contains("goes on without a shim").then_some(())
        });
        manager.renew();
        std::fs::write(manager.dir().join("share/gate"), "go\n").expect("the gate");
        manager.until("its exit", |it| (it.exits("c").len() == 1).then_some(()));
        assert_eq!(manager.exits("c"), [(9, "reaped".to_owned())]);
        drop(gate);
    });
}

#[test]
fn a_container_that_is_kept_can_be_killed() {
    manager::with(KEEP, |manager| {
        manager.run(&["-d"], "c", &["sleep", "1000"]).ok();
        kill_shim(manager, "c");
        manager.until("the loss noticed", |it| {
            it.log().contains("goes on without a shim").then_some(())
        });
        manager.dunnage(&["kill", "-s", "KILL", "c"]).ok();
        manager.dunnage(&["wait", "c"]).ok().prints("137\n");
    });
}

/// The next daemon is no parent of what an earlier one started.
#[test]
fn a_container_that_is_kept_and_nobodys_child_ends_unknown_and_not_never() {
    manager::with(KEEP, |manager| {
        let gate = manager.fifo("gate");
        let words = ["sh", "-c", "read x < /mnt/gate; exit 9"];
        manager.run(&["-d"], "c", &words).ok();
        manager.kill();
        manager.restart();
        kill_shim(manager, "c");
        manager.until("the loss noticed", |it| {
            it.log().contains("goes on without a shim").then_some(())
        });
        // The one after that finds it without a shim.
        manager.kill();
        manager.restart();
        assert_eq!(manager.status("c"), "running");
        let waiting = manager.spawn_dunnage(&["wait", "c"]);
        gate.send("go");
        waiting.finish().ok().prints("255\n");
        assert_eq!(manager.exits("c"), [(255, "unknown".to_owned())]);
        assert_eq!(manager.status("c"), "stopped");
        manager.dunnage(&["delete", "c"]).ok();
    });
}

#[test]
fn a_process_that_was_never_started_is_not_waited_for() {
    manager::with(KEEP, |manager| {
        use harness::manager::api::Api;
        use protos::services::tasks::v1::{WaitRequest, WaitResponse};
        manager.run(&["-d"], "c", &["sleep", "1000"]).ok();
        kill_shim(manager, "c");
        manager.until("the loss noticed", |it| {
            it.log().contains("goes on without a shim").then_some(())
        });
        let wait = WaitRequest {
            container_id: "c".into(),
            exec_id: "none".into(),
        };
        let answer = Api::new(manager).call::<WaitResponse>("tasks.v1.Tasks/Wait", wait);
        assert_eq!(
            answer.expect_err("no such exec").code(),
            tonic::Code::NotFound
        );
    });
}
