// SPDX-License-Identifier: Apache-2.0
//! The daemon beside containerd, in one run: `ctr run -d` by turns, with the same client, shim and
//! root filesystem; memory idle and with 30 tasks. Prints one JSON object; times are medians.
//!
//! `cargo test -p tests --bench manager`, as root, with SHIM, MANAGER and PEERS as for the tests.
//! ROUNDS= says how often (30).

use harness::containerd::ctr::Output;
use harness::containerd::release::Release;
use harness::containerd::{self, Containerd};
use harness::manager::{self, Manager};
use harness::{peers, proc};
use serde_json::json;
use std::time::{Duration, Instant};

/// The containerd to compare with.
const RELEASE: &str = "1.6";
/// So many tasks are there when memory is measured again.
const TASKS: usize = 30;

fn main() {
    // As any bench, it is asked for its tests too.
    if std::env::args().any(|arg| arg == "--list") {
        return;
    }
    let rounds = std::env::var("ROUNDS").map_or(30, |text| text.parse().expect("ROUNDS"));
    let release = Release::find(RELEASE).expect("a containerd");
    containerd::with(RELEASE, String::new(), |theirs| {
        manager::on(|ours| {
            let figures = json!({
                "version": release.version,
                "rounds": rounds,
                "memory_kb": memory(ours, theirs, &release),
                "ctr_run_d_ms": run_by_turns(ours, theirs, &release, rounds),
            });
            println!("{figures}");
        });
    });
}

fn run<'a>(rootfs: &'a str, id: &'a str) -> [&'a str; 7] {
    ["run", "-d", "--rootfs", rootfs, id, "/bin/sleep", "1000"]
}

/// Runs a container and deletes it, now here, now there.
fn run_by_turns(
    ours: &Manager,
    theirs: &Containerd,
    release: &Release,
    rounds: usize,
) -> serde_json::Value {
    let rootfs = peers::rootfs().display().to_string();
    let (mut here, mut there) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let id = format!("r{round}");
        theirs.note(&id);
        let ours = |args: &[&str]| ours.ctr(release, args);
        let theirs = |args: &[&str]| theirs.ctr(args);
        // Neither is always the one that finds the caches warm.
        if round % 2 == 0 {
            here.push(timed(ours, &rootfs, &id));
            there.push(timed(theirs, &rootfs, &id));
        } else {
            there.push(timed(theirs, &rootfs, &id));
            here.push(timed(ours, &rootfs, &id));
        }
    }
    let (here, there) = (median(here), median(there));
    json!({"dunnage": here, "containerd": there, "ratio": here / there})
}

/// The time of `ctr run -d`; then the container goes.
fn timed(ctr: impl Fn(&[&str]) -> Output, rootfs: &str, id: &str) -> Duration {
    let began = Instant::now();
    ctr(&run(rootfs, id)).ok();
    let took = began.elapsed();
    ctr(&["tasks", "delete", "-f", id]).ok();
    ctr(&["containers", "rm", id]).ok();
    took
}

/// In milliseconds.
fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1000.0
}

fn memory(ours: &Manager, theirs: &Containerd, release: &Release) -> serde_json::Value {
    let rss = |pid: i32| proc::status(pid, "VmRSS").expect("VmRSS");
    let rootfs = peers::rootfs().display().to_string();
    let both = || (rss(ours.pid()), rss(theirs.pid()));
    let idle = both();
    let mut few = idle;
    for n in 0..TASKS {
        let id = format!("m{n}");
        ours.ctr(release, &run(&rootfs, &id)).ok();
        theirs.note(&id);
        theirs.ctr(&run(&rootfs, &id)).ok();
        if n + 1 == TASKS / 3 {
            few = both();
        }
    }
    let many = both();
    for n in 0..TASKS {
        let id = format!("m{n}");
        ours.ctr(release, &["tasks", "delete", "-f", &id]).ok();
        ours.ctr(release, &["containers", "rm", &id]).ok();
        theirs.ctr(&["tasks", "delete", "-f", &id]).ok();
        theirs.ctr(&["containers", "rm", &id]).ok();
    }
    let figures = |idle: u64, few: u64, many: u64| {
        let each = many.saturating_sub(few) as f64 / (TASKS - TASKS / 3) as f64;
        json!({"idle": idle, "with_30_tasks": many, "further_task": each})
    };
    json!({
        "dunnage": figures(idle.0, few.0, many.0),
        "containerd": figures(idle.1, few.1, many.1),
        "dunnage_threads": proc::status(ours.pid(), "Threads"),
    })
}
