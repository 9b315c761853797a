// SPDX-License-Identifier: Apache-2.0
//! Clients that wait for something, and a daemon that goes away and comes again.

use harness::containerd::ctr::Ctr;
use harness::manager::{self, Manager};

/// Another image of the daemon, or another daemon.
type Change = fn(&mut Manager);

const CHANGES: [Change; 2] = [
    |manager| manager.renew(),
    |manager| {
        manager.kill();
        manager.restart();
    },
];

/// A log with a line for each request.
const CONFIG: &str = "[log]\nlevel = \"debug\"\n";

/// Waits until that was asked so often.
#[track_caller]
fn is_asked(manager: &Manager, method: &str, times: usize) {
    manager.until(method, |it| {
        (it.log().matches(method).count() >= times).then_some(())
    });
}

fn says(client: &Ctr, text: &str) {
    let said = |out: &str| out.contains(text).then_some(());
    client.stdout.wait_for(text, said);
}

/// They end with the status of what they wait for.
#[test]
fn who_waits_for_an_end_is_told_of_it_by_the_next_daemon() {
    for change in CHANGES {
        manager::with(CONFIG, |manager| {
            let (run_gate, exec_gate) = (manager.fifo("run"), manager.fifo("exec"));
            let script = "echo up; read x </mnt/run; echo down; exit 7";
            let run = manager.spawn_run(&["--rm"], "c", &["sh", "-c", script]);
            says(&run, "up\n");
            let script = "echo up; read x </mnt/exec; exit 5";
            let exec = manager.spawn_dunnage(&["exec", "c", "sh", "-c", script]);
            says(&exec, "up\n");
            let wait = manager.spawn_dunnage(&["wait", "c"]);
            is_asked(manager, "Tasks/Wait", 3);
            change(manager);
            exec_gate.send("go");
            exec.finish().exits(5).prints("up\n");
            run_gate.send("go");
            let ended = run.finish().exits(7).prints("up\ndown\n");
            assert_eq!(ended.stderr, "");
            wait.finish().ok().prints("7\n");
            assert_eq!(manager.status("c"), "none");
        });
    }
}

/// Nothing is missing in between, also if there was nothing before.
#[test]
fn who_watches_goes_on_with_the_next_daemon() {
    for change in CHANGES {
        manager::with(CONFIG, |manager| {
            let gate = manager.fifo("gate");
            let script = "echo up; read x </mnt/gate; echo down";
            manager.run(&["-d"], "c", &["sh", "-c", script]).ok();
            let logs = manager.spawn_dunnage(&["logs", "-f", "c"]);
            says(&logs, "up\n");
            let all = manager.spawn_dunnage(&["--json", "events", "--since", "0"]);
            says(&all, "/tasks/start");
            let new = manager.spawn_dunnage(&["--json", "events"]);
            is_asked(manager, "Journal/Read", 2);
            change(manager);
            gate.send("go");
            logs.finish().ok().prints("up\ndown\n");
            for events in [&all, &new] {
                says(events, "\"exit_status\":0");
            }
            let told = new.stdout.text();
            assert!(!told.contains("/tasks/start"), "{told}");
            let told = all.stdout.text();
            assert_eq!(told.matches("/tasks/start").count(), 1, "{told}");
        });
    }
}

/// A task without a record could not be reached by anybody.
#[test]
fn nobody_removes_the_record_of_a_task() {
    use harness::manager::api::Api;
    use protos::services::containers::v1::DeleteContainerRequest;

    manager::on(|manager| {
        manager.run(&["-d"], "c", &["sleep", "1000"]).ok();
        let delete = DeleteContainerRequest { id: "c".into() };
        let api = Api::new(manager);
        let refused = api.call::<()>("containers.v1.Containers/Delete", delete);
        let refused = refused.expect_err("a refusal");
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
        assert!(refused.message().contains("\"c\""), "{refused}");
        assert_eq!(manager.status("c"), "running");
    });
}

/// As when somebody has removed it from the disk.
#[test]
fn doctor_finds_a_task_without_a_record_and_makes_it_one() {
    manager::on(|manager| {
        manager.run(&["-d"], "c", &["sleep", "1000"]).ok();
        manager.kill();
        let records = manager.dir().join("r/containers").join(manager.namespace());
        std::fs::remove_file(records.join("c.pb")).expect("the record");
        manager.restart();
        assert_eq!(manager.status("c"), "none");
        let found = manager.dunnage(&["doctor"]).exits(1);
        assert!(found.stdout.contains("task without a record"), "{found}");
        manager.dunnage(&["doctor", "--fix"]).ok();
        assert_eq!(manager.status("c"), "running");
        manager.dunnage(&["exec", "c", "true"]).ok();
        manager.dunnage(&["stop", "-t", "0s", "c"]).ok();
        manager.dunnage(&["start", "c"]).ok();
    });
}

/// Who may not look has not seen that all is well.
#[test]
fn doctor_says_when_it_may_not_look() {
    manager::with("[grpc]\ngid = 65531\n", |manager| {
        let mut doctor = std::process::Command::new("setpriv");
        doctor.args(["--reuid=65534", "--regid=65531", "--clear-groups"]);
        doctor.arg(manager::binary()).arg("--config");
        doctor.arg(manager.dir().join("config.toml")).arg("doctor");
        let output = doctor.output().expect("setpriv");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let names_it = said.contains(&*manager.state().join("task").to_string_lossy());
        assert!(names_it && said.contains("ermission denied"), "{output:?}");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
    });
}
