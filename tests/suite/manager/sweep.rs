// SPDX-License-Identifier: Apache-2.0
//! The daemon is killed just before a system call, in the life of a container and in a recovery:
//! no acknowledged start loses its exit, no exit is made up or told twice, no shim is left.
//!
//! Some points always; all of them with `SWEEP=full` (`make soak`).

use harness::manager::sweep::{self, Victims};
use harness::manager::trace::Point;

/// All points, or so many of those that change something.
fn chosen(all: Vec<Point>, some: usize) -> Vec<Point> {
    if std::env::var("SWEEP").is_ok_and(|sweep| sweep == "full") {
        return all;
    }
    sweep::some(&sweep::changing(all), some)
}

#[test]
fn r1_no_point_of_a_life_loses_an_exit_or_makes_one_up() {
    let points = chosen(sweep::calls_of_a_life(), 60);
    assert!(points.len() >= 40, "{points:?}");
    sweep::of_lives(&points, Victims::Daemon);
}

/// The same of the threads that may wait for a disk.
#[test]
fn r1_no_thread_beside_the_loop_loses_an_exit_or_makes_one_up() {
    sweep::of_lives(&sweep::beside_the_loop(), Victims::Daemon);
}

#[test]
fn r1_daemon_and_shim_killed_together_leave_one_exit_at_most() {
    let points = chosen(sweep::calls_of_a_life(), 16);
    sweep::of_lives(&points, Victims::All);
}

#[test]
fn r4_no_point_of_a_recovery_touches_a_container_or_loses_an_exit() {
    let points = chosen(sweep::calls_of_a_recovery(), 16);
    sweep::of_recoveries(&points);
}
