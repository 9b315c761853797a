// SPDX-License-Identifier: Apache-2.0
//! The shim killed at its system calls: `delete` leaves nothing (D1 to D7).

use harness::{peers, start_sweep, sweep, vm_differs};
use std::time::Duration;

/// How many of the points are tried here; `make soak` tries them all.
const SAMPLE: usize = 48;

/// A kill -9 anywhere in create, start, exec and delete costs nothing but the container.
#[test]
fn delete_leaves_nothing_wherever_the_shim_was_killed() {
    if peers::is_go() || vm_differs("boot") {
        return;
    }
    let points = sweep::calls();
    assert!(points.len() > SAMPLE, "{points:?}");
    let mut sample: Vec<_> = (0..SAMPLE)
        .map(|n| points[n * points.len() / SAMPLE].clone())
        .collect();
    sample.extend(sweep::threads());
    sample.extend(sweep::times(Duration::from_millis(20)));
    sweep::check(&sample);
}

/// B40: nor does a kill -9 anywhere in `start` leave a daemon that nobody knows of, or its socket.
#[test]
fn delete_leaves_nothing_wherever_start_was_killed() {
    if peers::is_go() {
        return;
    }
    let points = start_sweep::calls();
    assert!(points.len() > SAMPLE, "{points:?}");
    // What happens once the daemon is there, and some of what comes before.
    let (before, after) = points.split_at(points.len() - SAMPLE / 2);
    let before = (0..SAMPLE / 4).map(|n| before[n * before.len() / (SAMPLE / 4)].clone());
    let sample: Vec<_> = before.chain(after.iter().cloned()).collect();
    start_sweep::check(&sample);
}
