// SPDX-License-Identifier: Apache-2.0
//! containerd is away for 40 s: longer than Go's shim keeps an event (B71), and the exit is told.

use harness::containerd::{on, outage};
use std::time::Duration;

const OUTAGE: Duration = Duration::from_secs(40);

#[test]
fn an_exit_outlives_forty_seconds_without_containerd_1_7() {
    on("1.7", |containerd| outage::exit_during(containerd, OUTAGE));
}

#[test]
fn an_exit_outlives_forty_seconds_without_containerd_2_1() {
    on("2.1", |containerd| outage::exit_during(containerd, OUTAGE));
}
