// SPDX-License-Identifier: Apache-2.0
//! SIGKILL of a shim: containerd calls the binary's `delete`, and nothing of the container stays.

use harness::containerd::ctr::ends_within;
use harness::containerd::events::of;
use harness::containerd::{Containerd, DEADLINE, Task};
use harness::wait;

for_each_containerd!(
    a_container_whose_shim_is_killed_is_cleaned_up_and_its_id_runs_again,
    all_containers_of_a_group_are_cleaned_up_when_their_shim_is_killed,
    an_exited_container_whose_shim_is_killed_is_cleaned_up,
    sigterm_to_a_shim_cleans_its_container_up,
);

pub fn kill_shim(containerd: &Containerd, task: &Task, signal: i32) {
    let shim = containerd.shim_of(task);
    wait::signal(shim, signal).expect("kill the shim");
    assert!(ends_within(shim, DEADLINE), "a killed shim still runs");
}

/// Nothing runs, runc has forgotten it, and there is no task.
pub fn assert_cleaned_up(containerd: &Containerd, id: &str, processes: &[i32]) {
    for &pid in processes {
        assert!(
            ends_within(pid, DEADLINE),
            "process {pid} of {id} still runs"
        );
    }
    assert!(!containerd.runc_state(id).exists(), "runc still knows {id}");
    assert_eq!(containerd.status(id), "-");
}

/// The next shim of the id also takes the dead one's socket away (contract D5).
pub fn assert_runs_again(containerd: &Containerd, options: &[&str], id: &str) {
    containerd.ctr(&["containers", "rm", id]).ok();
    containerd.run_service(options, id);
    containerd
        .exec(id, "e", &["echo", "again"])
        .ok()
        .prints("again\n");
    containerd.ctr(&["task", "delete", "--force", id]).ok();
}

fn processes(containerd: &Containerd, id: &str) -> Vec<i32> {
    let listed = containerd.ctr(&["task", "ps", id]).ok().stdout;
    let pid = |line: &str| line.split_whitespace().next()?.parse().ok();
    listed.lines().filter_map(pid).collect()
}

fn a_container_whose_shim_is_killed_is_cleaned_up_and_its_id_runs_again(
    containerd: &mut Containerd,
) {
    let events = containerd.events();
    let task = containerd.run_service(&[], "web");
    containerd.exec_detached("web", "worker", &["sleep", "1000"]);
    let pids = processes(containerd, "web");
    assert_eq!(pids.len(), 3, "shell, sleep, worker");
    kill_shim(containerd, &task, libc::SIGKILL);
    let seen = of(&events.until_seen("delete web 137"), "web");
    assert_eq!(
        seen[seen.len() - 2..],
        ["exit web 137", "delete web 137"],
        "of {seen:?}"
    );
    assert_cleaned_up(containerd, "web", &pids);
    assert_runs_again(containerd, &[], "web");
}

fn all_containers_of_a_group_are_cleaned_up_when_their_shim_is_killed(containerd: &mut Containerd) {
    containerd.note("pod");
    let options = ["--annotation", "io.containerd.runc.v2.group=pod"];
    let events = containerd.events();
    let tasks = ["a", "b"].map(|id| containerd.run_service(&options, id));
    kill_shim(containerd, &tasks[0], libc::SIGKILL);
    for task in &tasks {
        events.until_seen(&format!("delete {} 137", task.id));
        assert_cleaned_up(containerd, &task.id, &[task.pid]);
    }
    assert_runs_again(containerd, &options, "a");
}

fn an_exited_container_whose_shim_is_killed_is_cleaned_up(containerd: &mut Containerd) {
    let events = containerd.events();
    let task = containerd.run_service(&[], "web");
    let shim = containerd.shim_of(&task);
    containerd.kill_task("SIGTERM", "web");
    events.until_seen("exit web 6");
    wait::signal(shim, libc::SIGKILL).expect("kill the shim");
    events.until("delete web", |events| {
        events.iter().any(|event| event.topic == "delete")
    });
    assert_cleaned_up(containerd, "web", &[shim, task.pid]);
    assert_runs_again(containerd, &[], "web");
}

fn sigterm_to_a_shim_cleans_its_container_up(containerd: &mut Containerd) {
    let events = containerd.events();
    let task = containerd.run_service(&[], "web");
    kill_shim(containerd, &task, libc::SIGTERM);
    events.until_seen("delete web 137");
    assert_cleaned_up(containerd, "web", &[task.pid]);
}
