//! The shim killed at its system calls: `delete` leaves nothing (D1 to D7).

use harness::{peers, sweep};
use std::time::Duration;

/// How many of the points are tried here; `make soak` tries them all.
const SAMPLE: usize = 48;

/// A kill -9 anywhere in create, start, exec and delete costs nothing but the container.
#[test]
fn delete_leaves_nothing_wherever_the_shim_was_killed() {
    if peers::is_go() {
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
