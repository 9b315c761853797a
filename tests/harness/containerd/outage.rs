// SPDX-License-Identifier: Apache-2.0
//! containerd away for a while, and a container that exits meanwhile.

use super::ctr::ends_within;
use super::{Containerd, DEADLINE};
use crate::{peers, wait};
use std::time::Duration;

/// A container exits with 7 while containerd is away for `length`. Afterwards the task is there,
/// STOPPED, and Delete tells the 7. Go's shim keeps it only under containerd 1.6.
pub fn exit_during(containerd: &mut Containerd, length: Duration) {
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
    wait::pass(length);
    containerd.restart();
    if peers::is_go() && containerd.release.name != "1.6" {
        assert_eq!(containerd.status("web"), "-", "the task is lost");
        return;
    }
    assert_eq!(containerd.status("web"), "STOPPED");
    let events = containerd.events();
    let deleted = containerd.ctr(&["task", "delete", "web"]).ok();
    assert!(deleted.stderr.contains("non-zero exit code 7"), "{deleted}");
    events.until_seen("delete web 7");
    assert!(ends_within(shim, DEADLINE), "the shim still runs");
}
