// SPDX-License-Identifier: Apache-2.0
//! SIGKILL and restart of containerd: what runs goes on, and what ended meanwhile is not left.

use crate::shim_death::{assert_cleaned_up, assert_runs_again};
use harness::containerd::ctr::ends_within;
use harness::containerd::{Containerd, DEADLINE, outage, report};
use harness::wait;
use std::time::Duration;

for_each_containerd!(
    a_running_container_survives_a_restart_of_containerd,
    a_group_survives_a_restart_of_containerd,
    an_exec_survives_a_restart_of_containerd,
    a_container_that_exited_while_containerd_was_away_leaves_nothing,
    an_exit_outlives_five_seconds_without_containerd,
    a_shim_that_died_while_containerd_was_away_is_cleaned_up_after,
    output_written_while_containerd_was_away_is_not_lost,
);

fn a_running_container_survives_a_restart_of_containerd(containerd: &mut Containerd) {
    let task = containerd.run_service(&[], "web");
    let shim = containerd.shim_of(&task);
    containerd.kill();
    containerd.restart();
    assert_eq!(containerd.task("web").as_ref(), Some(&task));
    assert_eq!(containerd.shim_of(&task), shim);
    let events = containerd.events();
    containerd
        .exec("web", "e", &["sh", "-c", "echo after; exit 5"])
        .exits(5)
        .prints("after\n");
    let attach = containerd.spawn(&["task", "attach", "web"]);
    containerd.kill_task("SIGTERM", "web");
    attach.finish().exits(6);
    let seen = harness::containerd::events::of(&events.until_seen("exit web 6"), "web");
    let expected = [
        "exec-added web/e",
        "exec-started web/e",
        "exit web/e 5",
        "exit web 6",
    ];
    assert_eq!(seen[..4], expected);
}

fn a_group_survives_a_restart_of_containerd(containerd: &mut Containerd) {
    containerd.note("pod");
    let options = ["--annotation", "io.containerd.runc.v2.group=pod"];
    let tasks = ["a", "b"].map(|id| containerd.run_service(&options, id));
    let shim = containerd.shim_of(&tasks[0]);
    containerd.kill();
    containerd.restart();
    for task in &tasks {
        assert_eq!(containerd.task(&task.id).as_ref(), Some(task));
        containerd
            .exec(&task.id, "e", &["echo", "after"])
            .ok()
            .prints("after\n");
    }
    // Others can still join.
    let late = containerd.run_service(&options, "late");
    assert_eq!(containerd.shim_of(&late), shim);
    containerd.ctr(&["task", "delete", "--force", "a"]).ok();
    containerd
        .exec("b", "e", &["echo", "still here"])
        .ok()
        .prints("still here\n");
}

fn an_exec_survives_a_restart_of_containerd(containerd: &mut Containerd) {
    containerd.run_service(&[], "web");
    let up = containerd.fifo("up");
    let script = "trap 'exit 8' TERM; echo up > /share/up; while :; do sleep 1000 & wait $!; done";
    containerd.exec_detached("web", "worker", &["sh", "-c", script]);
    assert_eq!(up.line(), "up");
    containerd.kill();
    containerd.restart();
    let events = containerd.events();
    containerd
        .ctr(&["task", "kill", "--exec-id", "worker", "web"])
        .ok();
    events.until_seen("exit web/worker 8");
    containerd
        .ctr(&["task", "delete", "--exec-id", "worker", "web"])
        .exits(8);
    assert_eq!(containerd.status("web"), "RUNNING");
}

/// containerd 1.6 keeps the task and its exit code. Later ones ask the shim for the task's pids,
/// and where there are none, as from Go's shim, they throw the task away as leaked.
fn a_container_that_exited_while_containerd_was_away_leaves_nothing(containerd: &mut Containerd) {
    let go = containerd.fifo("go");
    let words = ["sh", "-c", "read x < /share/go; exit 7"];
    let task = containerd.run_detached(&[], "web", &words);
    let shim = containerd.shim_of(&task);
    containerd.kill();
    go.send("exit");
    assert!(
        ends_within(task.pid, DEADLINE),
        "the container did not exit"
    );
    containerd.restart();
    let status = containerd.status("web");
    report(&format!(
        "seen: exited 7 while containerd was away; now it is {status}"
    ));
    match status.as_str() {
        "STOPPED" => {
            let output = containerd.ctr(&["task", "delete", "web"]).ok();
            assert!(
                output.stderr.contains("non-zero exit code 7"),
                "not 7: {output}"
            );
        }
        "-" => assert_ne!(containerd.release.name, "1.6", "1.6 keeps exited tasks"),
        _ => panic!("an exited container is shown as {status}"),
    }
    assert!(ends_within(shim, DEADLINE), "the shim still runs");
    assert_cleaned_up(containerd, "web", &[task.pid]);
    assert_runs_again(containerd, &[], "web");
}

/// X2, B71: `make soak` has one of 40 s.
fn an_exit_outlives_five_seconds_without_containerd(containerd: &mut Containerd) {
    outage::exit_during(containerd, Duration::from_secs(5));
}

fn a_shim_that_died_while_containerd_was_away_is_cleaned_up_after(containerd: &mut Containerd) {
    let task = containerd.run_service(&[], "web");
    let shim = containerd.shim_of(&task);
    containerd.kill();
    wait::signal(shim, libc::SIGKILL).expect("kill the shim");
    assert!(ends_within(shim, DEADLINE), "a killed shim still runs");
    containerd.restart();
    assert_cleaned_up(containerd, "web", &[task.pid]);
    assert_runs_again(containerd, &[], "web");
}

fn output_written_while_containerd_was_away_is_not_lost(containerd: &mut Containerd) {
    let go = containerd.fifo("go");
    let done = containerd.fifo("done");
    let script = "read x < /share/go; echo while away; echo done > /share/done; \
        read x < /share/go; echo after; exit 4";
    containerd.run_detached(&[], "web", &["sh", "-c", script]);
    containerd.kill();
    go.send("speak");
    assert_eq!(done.line(), "done");
    containerd.restart();
    let attach = containerd.spawn(&["task", "attach", "web"]);
    attach
        .stdout
        .wait_for("output", |out| (out == "while away\n").then_some(()));
    go.send("speak");
    attach.finish().exits(4).prints("while away\nafter\n");
}
