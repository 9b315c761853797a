// SPDX-License-Identifier: Apache-2.0
//! Our shim in the place of containerd's Go shim, while containers run.

use crate::shim_death::{assert_cleaned_up, assert_runs_again, kill_shim};
use harness::containerd::{Containerd, SHIM};
use harness::proc;
use std::path::Path;

for_each_containerd!(
    a_container_of_the_go_shim_is_cleaned_up_by_the_new_binary,
    a_container_of_the_go_shim_goes_on_after_an_upgrade_and_a_restart_of_containerd,
    after_an_upgrade_a_container_can_join_a_group_of_the_go_shim,
    after_a_rollback_a_container_can_join_a_group_of_the_new_shim,
    the_way_back_is_another_shim_in_the_same_place,
);

/// A container made by the Go shim of this containerd; then the shim under test takes its place.
fn upgrade(containerd: &Containerd) -> harness::containerd::Task {
    containerd.use_shim(&containerd.release.go_shim());
    let task = containerd.run_service(&[], "old");
    containerd.use_shim(&containerd.release.shim());
    task
}

fn a_container_of_the_go_shim_is_cleaned_up_by_the_new_binary(containerd: &mut Containerd) {
    let events = containerd.events();
    let task = upgrade(containerd);
    containerd.exec_detached("old", "worker", &["sleep", "1000"]);
    let worker = events
        .until_seen("exec-started old/worker")
        .last()
        .expect("an event")
        .pid;
    kill_shim(containerd, &task, libc::SIGKILL);
    events.until_seen("delete old 137");
    assert_cleaned_up(containerd, "old", &[task.pid, worker]);
    assert_eq!(proc::mounts_under(containerd.dir()), Vec::<String>::new());
    assert_runs_again(containerd, &[], "old");
}

fn a_container_of_the_go_shim_goes_on_after_an_upgrade_and_a_restart_of_containerd(
    containerd: &mut Containerd,
) {
    let task = upgrade(containerd);
    containerd.kill();
    containerd.restart();
    assert_eq!(containerd.task("old").as_ref(), Some(&task));
    assert_executes(containerd, "old");
    let new = containerd.run_service(&[], "new");
    assert_ne!(containerd.shim_of(&new), containerd.shim_of(&task));
    let attach = containerd.spawn(&["task", "attach", "old"]);
    containerd.kill_task("SIGTERM", "old");
    attach.finish().exits(6);
}

/// An exec runs in the container. It tells through a FIFO of its own: ctr, on a busy machine, may
/// leave before it has taken the output that a Go shim gives it late.
fn assert_executes(containerd: &Containerd, id: &str) {
    let said = containerd.fifo("said");
    let script = format!("echo {id} runs >/share/said");
    containerd.exec(id, "e", &["sh", "-c", &script]).ok();
    assert_eq!(said.line(), format!("{id} runs"));
}

/// The running shim keeps its group, whatever binary is asked to `start` (contract B33); the
/// answer must name a version of the protocol that the running one speaks.
fn join(containerd: &Containerd, from: &Path, to: &Path) {
    containerd.note("pod");
    let options = ["--annotation", "io.containerd.runc.v2.group=pod"];
    containerd.use_shim(from);
    let first = containerd.run_service(&options, "first");
    containerd.use_shim(to);
    let second = containerd.run_service(&options, "second");
    assert_eq!(containerd.shim_of(&second), containerd.shim_of(&first));
    for id in ["first", "second"] {
        assert_executes(containerd, id);
    }
}

fn after_an_upgrade_a_container_can_join_a_group_of_the_go_shim(containerd: &mut Containerd) {
    containerd.tolerate_socket_of_group();
    join(
        containerd,
        &containerd.release.go_shim(),
        &containerd.release.shim(),
    );
}

fn after_a_rollback_a_container_can_join_a_group_of_the_new_shim(containerd: &mut Containerd) {
    join(
        containerd,
        &containerd.release.shim(),
        &containerd.release.go_shim(),
    );
}

/// containerd remembers the path of its shim, and for each container until that ends: without a file
/// there it starts nothing, and started anew it would forget the container.
fn the_way_back_is_another_shim_in_the_same_place(containerd: &mut Containerd) {
    let task = containerd.run_service(&[], "old");
    let shim = containerd.shim_of(&task);
    std::fs::remove_file(containerd.dir().join("bin").join(SHIM)).expect("the shim");
    // That there is one later in its PATH does not help.
    let run = containerd.run(&[], "new", &["true"]);
    run.fails_with("no such file or directory");
    containerd.ctr(&["containers", "delete", "new"]);
    containerd.use_shim(&containerd.release.go_shim());
    containerd.run(&["--rm"], "later", &["true"]).ok();
    containerd.kill();
    containerd.restart();
    assert_eq!(containerd.task("old").as_ref(), Some(&task));
    assert_eq!(containerd.shim_of(&task), shim);
    assert_executes(containerd, "old");
}
