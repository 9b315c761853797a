// SPDX-License-Identifier: Apache-2.0
//! `ctr events`: each event of a task's life once, and in order.

use harness::containerd::Containerd;
use harness::containerd::events::{Events, of};
use harness::peers;

for_each_containerd!(
    events_of_run_exec_kill_delete_come_once_and_in_order,
    execs_still_running_when_init_exits_exit_before_it,
    an_exec_that_cannot_start_has_no_start_and_no_exit,
    pause_and_resume_are_published,
    a_container_that_cannot_be_created_has_no_events,
    events_carry_the_pids_that_task_ls_shows,
);

/// Keeps the shim alive after the container under test is deleted: containerd's Go shim may lose
/// its last event, of the deletion, when it exits (see storm.rs).
const GROUP: [&str; 2] = ["--annotation", "io.containerd.runc.v2.group=pod"];

fn start(containerd: &Containerd) -> Events {
    containerd.note("pod");
    containerd.run_service(&GROUP, "other");
    containerd.events()
}

fn events_of_run_exec_kill_delete_come_once_and_in_order(containerd: &mut Containerd) {
    let events = start(containerd);
    containerd.run_service(&GROUP, "web");
    containerd
        .exec("web", "e", &["sh", "-c", "exit 5"])
        .exits(5);
    containerd.kill_task("SIGTERM", "web");
    events.until_seen("exit web 6");
    containerd.ctr(&["task", "delete", "web"]).ok();
    events.until_seen("delete web 6");
    let expected = [
        "create web",
        "start web",
        "exec-added web/e",
        "exec-started web/e",
        "exit web/e 5",
        "exit web 6",
        "delete web 6",
    ];
    assert_eq!(of(&events.so_far(containerd), "web"), expected);
}

fn execs_still_running_when_init_exits_exit_before_it(containerd: &mut Containerd) {
    let events = start(containerd);
    containerd.run_service(&GROUP, "web");
    for exec in ["a", "b", "c", "d"] {
        containerd.exec_detached("web", exec, &["sleep", "1000"]);
    }
    containerd.kill_task("SIGKILL", "web");
    events.until_seen("exit web 137");
    let seen = of(&events.so_far(containerd), "web");
    let mut exits: Vec<&str> = seen
        .iter()
        .map(String::as_str)
        .filter(|event| event.starts_with("exit"))
        .collect();
    // containerd 1.6's shim promises no order here (contract B91).
    if !(peers::is_go() && containerd.release.name == "1.6") {
        assert_eq!(
            exits.last(),
            Some(&"exit web 137"),
            "the last exit of {seen:?}"
        );
    }
    exits.sort_unstable();
    let all = [
        "exit web 137",
        "exit web/a 137",
        "exit web/b 137",
        "exit web/c 137",
        "exit web/d 137",
    ];
    assert_eq!(exits, all);
}

fn an_exec_that_cannot_start_has_no_start_and_no_exit(containerd: &mut Containerd) {
    let events = start(containerd);
    containerd.run_service(&GROUP, "web");
    containerd.exec("web", "e", &["/no/such/program"]).exits(1);
    let seen = of(&events.so_far(containerd), "web");
    assert_eq!(seen, ["create web", "start web", "exec-added web/e"]);
}

fn pause_and_resume_are_published(containerd: &mut Containerd) {
    let events = start(containerd);
    containerd.run_service(&GROUP, "web");
    containerd.ctr(&["task", "pause", "web"]).ok();
    containerd.ctr(&["task", "resume", "web"]).ok();
    events.until_seen("resumed web");
    let seen = of(&events.so_far(containerd), "web");
    assert_eq!(
        seen,
        ["create web", "start web", "paused web", "resumed web"]
    );
}

fn a_container_that_cannot_be_created_has_no_events(containerd: &mut Containerd) {
    let events = start(containerd);
    containerd
        .run(&["--rm"], "none", &["/no/such/program"])
        .exits(1);
    // The next container of the same name shows that nothing came late.
    containerd.run_service(&GROUP, "none");
    events.until_seen("start none");
    assert_eq!(
        of(&events.so_far(containerd), "none"),
        ["create none", "start none"]
    );
}

fn events_carry_the_pids_that_task_ls_shows(containerd: &mut Containerd) {
    let events = start(containerd);
    let task = containerd.run_service(&GROUP, "web");
    containerd.kill_task("SIGTERM", "web");
    events.until_seen("exit web 6");
    containerd.ctr(&["task", "delete", "web"]).ok();
    let seen = events.until_seen("delete web 6");
    let pids = seen.iter().filter(|event| event.container == "web");
    let pids: Vec<_> = pids
        .map(|event| (event.topic.as_str(), event.pid))
        .collect();
    let pid = task.pid;
    assert_eq!(
        pids,
        [
            ("create", pid),
            ("start", pid),
            ("exit", pid),
            ("delete", pid)
        ]
    );
}
