// SPDX-License-Identifier: Apache-2.0
//! A `start` that is killed at one of its system calls, and what is left after `delete`.
//!
//! strace watches `start` alone, not the daemon that it spawns: an undisturbed run tells the
//! system calls, and then each of them is a point at which another `start` is killed.

use crate::start::Start;
use crate::sweep::{self, Point};
use crate::test::{self, Test};
use crate::{leaks, shim::Shim, start::Answer};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// strace before `start`, with these options.
fn traced(test: &Test, options: &[String]) -> Start {
    let bundle = test.bundle("c").build();
    let mut start = bundle.start();
    start.wrapper = vec!["strace".to_owned(), "-qq".to_owned()];
    start.wrapper.extend_from_slice(options);
    start
}

/// Every system call of `start`, in the order they came up, to the one that lets the daemon go:
/// after that nothing is left to do, so no kill can cut it off.
pub fn calls() -> Vec<Point> {
    let mut points = Vec::new();
    test::run(async |test| {
        let log = test.dir().join("strace");
        let options = ["-o", &log.to_string_lossy()].map(str::to_owned);
        traced(test, &options).shim().await;
        let log = fs::read_to_string(&log).expect("strace's log");
        let lets_go = log.rfind("\"\\n\", 1");
        let (until, _) = log.split_at(lets_go.unwrap_or_else(|| panic!("no word in\n{log}")));
        points = sweep::parse(until);
    });
    points
}

/// Kills a `start` at each of `points`; panics with those after which something was left.
pub fn check(points: &[Point]) {
    let mut failures = Vec::new();
    let mut killed = 0;
    for point in points {
        let done = catch_unwind(AssertUnwindSafe(|| {
            test::run(async |test| killed += usize::from(attack(test, point).await));
        }));
        if let Err(panic) = done {
            let text = panic.downcast_ref::<String>();
            failures.push(format!("{point}: {}", text.map_or("panicked", |t| t)));
        }
    }
    println!(
        "{} points, {killed} kills, {} failures",
        points.len(),
        failures.len()
    );
    // Some calls do not come up in every run.
    assert!(
        killed * 4 > points.len() * 3,
        "{killed} of {}",
        points.len()
    );
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// One point: true if `start` died of it.
async fn attack(test: &Test, point: &Point) -> bool {
    let Point::Call { name, nth } = point else {
        panic!("{point} is no system call of start");
    };
    let inject = format!("inject={name}:signal=SIGKILL:when={nth}");
    let options = ["-o", "/dev/null", "-e", &inject].map(str::to_owned);
    let start = traced(test, &options);
    let output = start.run().await;
    if output.status.success() {
        Shim::connect(&start.bundle, Answer::parse(&output.stdout)).await;
        return false;
    }
    start.bundle.start().deleted().await;
    let left = leaks::of(test).await;
    assert!(
        left.is_empty(),
        "left after delete:\n  {}",
        left.join("\n  ")
    );
    true
}
