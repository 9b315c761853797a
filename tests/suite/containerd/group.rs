// SPDX-License-Identifier: Apache-2.0
//! Containers with the same group annotation share one shim.

use harness::containerd::ctr::ends_within;
use harness::containerd::{Containerd, DEADLINE};

for_each_containerd!(
    containers_of_a_group_share_one_shim,
    the_shim_of_a_group_stays_until_its_last_container_is_deleted,
    the_exit_of_one_container_of_a_group_leaves_the_others_alone,
);

const GROUP: [&str; 2] = ["--annotation", "io.containerd.runc.v2.group=pod"];

fn containers_of_a_group_share_one_shim(containerd: &mut Containerd) {
    containerd.note("pod");
    let tasks = ["a", "b", "c"].map(|id| containerd.run_service(&GROUP, id));
    let alone = containerd.run_service(&[], "alone");
    let shim = containerd.shim_of(&tasks[0]);
    assert_eq!(
        tasks.each_ref().map(|task| containerd.shim_of(task)),
        [shim; 3]
    );
    assert_ne!(containerd.shim_of(&alone), shim);
    assert_eq!(containerd.shims().len(), 2);
    for id in ["a", "b", "c"] {
        containerd
            .exec(id, "e", &["echo", id])
            .ok()
            .prints(&format!("{id}\n"));
    }
}

fn the_shim_of_a_group_stays_until_its_last_container_is_deleted(containerd: &mut Containerd) {
    containerd.note("pod");
    let first = containerd.run_service(&GROUP, "a");
    let shim = containerd.shim_of(&first);
    containerd.run_service(&GROUP, "b");
    // The first one made the shim; its bundle goes now.
    containerd.ctr(&["task", "delete", "--force", "a"]).ok();
    containerd
        .exec("b", "e", &["echo", "still here"])
        .ok()
        .prints("still here\n");
    let third = containerd.run_service(&GROUP, "c");
    assert_eq!(containerd.shim_of(&third), shim);
    containerd.ctr(&["task", "delete", "--force", "b"]).ok();
    assert_eq!(containerd.shims(), [shim]);
    containerd.ctr(&["task", "delete", "--force", "c"]).ok();
    assert!(
        ends_within(shim, DEADLINE),
        "the shim of an empty group still runs"
    );
}

fn the_exit_of_one_container_of_a_group_leaves_the_others_alone(containerd: &mut Containerd) {
    containerd.note("pod");
    let events = containerd.events();
    containerd.run_service(&GROUP, "a");
    let other = containerd.run_service(&GROUP, "b");
    containerd.kill_task("SIGKILL", "a");
    events.until_seen("exit a 137");
    assert_eq!(containerd.status("a"), "STOPPED");
    assert_eq!(containerd.task("b"), Some(other));
    let exits = events.so_far(containerd);
    assert!(
        !exits
            .iter()
            .any(|event| event.topic == "exit" && event.container == "b")
    );
}
