// SPDX-License-Identifier: Apache-2.0
//! The shim killed at every one of its system calls, and at every moment (D1 to D7).

use harness::{start_sweep, sweep};
use std::time::Duration;

/// Every system call of create, start, exec and delete.
#[test]
fn delete_leaves_nothing_after_a_kill_at_any_system_call() {
    let mut points = sweep::calls();
    points.extend(sweep::threads());
    sweep::check(&points);
}

/// Every half millisecond, whatever the OCI runtime is doing.
#[test]
fn delete_leaves_nothing_after_a_kill_at_any_time() {
    sweep::check(&sweep::times(Duration::from_micros(500)));
}

/// Every system call of `start`.
#[test]
fn delete_leaves_nothing_after_a_kill_at_any_system_call_of_start() {
    start_sweep::check(&start_sweep::calls());
}
