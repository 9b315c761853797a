// SPDX-License-Identifier: Apache-2.0
//! The end of a test that waits for what never comes, in a call that has no deadline of its own.
//!
//! libtest waits for ever, so whoever runs the suites would learn only that they took too long.
//! Here it is said which test it was and what each process of its waits for, and the test program
//! ends: those after it still run.

use crate::{proc, wait};
use std::io::Write;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use std::{env, fs, io, thread};

/// Longer than any test takes that ends, but for those of the suite `soak`.
const LIMIT: Duration = Duration::from_secs(600);
/// What a test program exits with when one of its tests has failed.
const FAILED: i32 = 101;

/// This test, until it is dropped.
pub struct Limit {
    _running: mpsc::Sender<()>,
}

impl Limit {
    pub fn of_this_test() -> Self {
        let name = thread::current().name().unwrap_or("main").to_owned();
        let (running, ended) = mpsc::channel();
        let is_long =
            env::current_exe().is_ok_and(|path| path.to_string_lossy().contains("/soak-"));
        if !is_long {
            thread::spawn(move || {
                if ended.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
                    end_all(&name);
                }
            });
        }
        Self { _running: running }
    }
}

/// Says what all wait for, and ends this program and those below it.
fn end_all(name: &str) {
    let text = format!("# test {name} has not ended in {LIMIT:?}; processes of this program:\n");
    let _ = io::stderr().write_all((text + &processes()).as_bytes());
    for pid in family().into_iter().skip(1) {
        let _ = wait::signal(pid, libc::SIGKILL);
    }
    std::process::exit(FAILED);
}

/// This program and all that it started and that still has a parent here.
fn family() -> Vec<i32> {
    let mut family = vec![std::process::id() as i32];
    let mut next = 0;
    while let Some(&pid) = family.get(next) {
        family.extend(proc::children(pid));
        next += 1;
    }
    family
}

/// Each thread of theirs: its name, its state, and what it waits for in the kernel.
fn processes() -> String {
    let mut text = String::new();
    for pid in family() {
        text += &format!("{pid} {}\n", proc::words(pid, "cmdline").join(" "));
        let tasks = fs::read_dir(format!("/proc/{pid}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let said = |name: &str| {
                let bytes = fs::read(task.path().join(name)).unwrap_or_default();
                String::from_utf8_lossy(&bytes).trim().to_owned()
            };
            let stat = said("stat");
            let state = stat.rsplit_once(") ").map_or("", |(_, rest)| &rest[..1]);
            let (name, place, call) = (said("comm"), said("wchan"), said("syscall"));
            text += &format!("    {name}: {state} {place} {call}\n");
        }
    }
    text
}
