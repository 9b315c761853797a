// SPDX-License-Identifier: Apache-2.0
//! A daemon that is killed at one system call of a container's life, or of its own recovery, and
//! what the next one makes of it (contract R1, R4).
//!
//! Whatever the point: no acknowledged start loses its exit, none is told twice or made up, and
//! nothing is left. strace counts the calls, so each point is just before one: between two of
//! them nothing changes on the machine.

use super::Manager;
use super::api::Api;
use super::trace::Point;
use crate::containerd::ctr;
use crate::{peers, wait};
use protos::services::containers::v1::{Container, DeleteContainerRequest};
use protos::services::tasks::v1::*;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use tonic::{Code, Status};

/// Calls that change something, or tell somebody.
const CHANGING: &[&str] = &[
    "chmod",
    "chown",
    "clone",
    "clone3",
    "close",
    "connect",
    "execve",
    "fchmod",
    "flock",
    "fork",
    "ftruncate",
    "kill",
    "mkdir",
    "mknodat",
    "mknod",
    "open",
    "openat",
    "rename",
    "renameat",
    "rmdir",
    "sendmsg",
    "sendto",
    "socket",
    "symlink",
    "umount2",
    "unlink",
    "unlinkat",
    "vfork",
    "wait4",
    "waitid",
    "write",
    "writev",
    "pipe2",
    "fcntl",
    "pidfd_open",
];

/// Only points before calls that change something.
pub fn changing(mut points: Vec<Point>) -> Vec<Point> {
    points.retain(|point| CHANGING.contains(&point.name.as_str()));
    points
}

/// What is written, made and removed in a life by threads beside the loop, and by nobody but the
/// daemon.
pub fn beside_the_loop() -> Vec<Point> {
    let journal = "s/journal/00000000000000000001.journal";
    let calls = [
        ("openat", 1, "r/containers/NS/c.pb~"),
        ("rename", 1, "r/containers/NS/c.pb~"),
        ("mkdir", 1, "s/task/NS/c"),
        ("mkdir", 1, "r/work/NS/c"),
        ("symlink", 1, "s/task/NS/c/work"),
        ("openat", 1, "s/task/NS/c/config.json"),
        ("rename", 1, "s/task/NS/c/shim-binary-path~"),
        ("write", 1, journal),
        ("write", 2, journal),
        ("write", 3, journal),
        ("rename", 1, "s/task/NS/c/deleting~"),
        ("rename", 1, "s/task/NS/c"),
        ("unlinkat", 1, "s/task/NS/.c"),
        ("unlink", 1, "r/containers/NS/c.pb"),
    ];
    let point = |(name, nth, file): (&str, _, _)| Point {
        name: name.to_owned(),
        nth,
        file: Some(file),
    };
    calls.map(point).into()
}

/// So many of them, evenly.
pub fn some(points: &[Point], count: usize) -> Vec<Point> {
    let count = count.min(points.len());
    (0..count)
        .map(|n| points[n * points.len() / count].clone())
        .collect()
}

/// Who dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victims {
    Daemon,
    /// The daemon, and then every shim.
    All,
}

/// What a client was told.
#[derive(Debug, Default)]
struct Told {
    started: bool,
    exit: Option<u32>,
    deleted: bool,
    error: Option<Status>,
}

const STATUS: u32 = 7;

/// A container's life by its client, as far as the daemon goes along.
fn live(api: &Api) -> Told {
    let mut told = Told::default();
    if let Err(e) = try_live(api, &mut told) {
        told.error = Some(e);
    }
    told
}

fn try_live(api: &Api, told: &mut Told) -> Result<(), Status> {
    let id = || "c".to_owned();
    let container = api.plain_container("c", &["sh", "-c", "exit 7"]);
    let _: Container = api.create_container(container)?;
    let create = CreateTaskRequest {
        container_id: id(),
        ..Default::default()
    };
    let _: CreateTaskResponse = api.call("tasks.v1.Tasks/Create", create)?;
    let start = StartRequest {
        container_id: id(),
        ..Default::default()
    };
    let _: StartResponse = api.call("tasks.v1.Tasks/Start", start)?;
    told.started = true;
    let wait = WaitRequest {
        container_id: id(),
        ..Default::default()
    };
    let exit: WaitResponse = api.call("tasks.v1.Tasks/Wait", wait)?;
    told.exit = Some(exit.exit_status);
    let delete = DeleteTaskRequest { container_id: id() };
    let _: DeleteResponse = api.call("tasks.v1.Tasks/Delete", delete)?;
    told.deleted = true;
    api.call(
        "containers.v1.Containers/Delete",
        DeleteContainerRequest { id: id() },
    )
}

/// The daemon's calls in a life that nobody disturbs.
pub fn calls_of_a_life() -> Vec<Point> {
    steady(|manager| {
        let api = Api::new(manager);
        let (calls, told) = manager.calls_of(|_| live(&api));
        assert!(told.error.is_none(), "{told:?}");
        calls
    })
}

/// The daemon's calls when it finds a running container, and one that has ended meanwhile.
pub fn calls_of_a_recovery() -> Vec<Point> {
    steady(|manager| {
        let _gates = before_a_recovery(manager);
        let mut calls = manager.up_traced();
        // The one that makes strace's child the daemon.
        calls.retain(|point| point.name != "execve");
        calls
    })
}

/// Calls that come up every time: how often a daemon looks for news depends on when they come.
fn steady(calls: impl Fn(&mut Manager) -> Vec<Point>) -> Vec<Point> {
    let once = || {
        let mut points = Vec::new();
        super::on(|manager| points = calls(manager));
        points
    };
    let (mut first, second, third) = (once(), once(), once());
    first.retain(|point| second.contains(point) && third.contains(point));
    first
}

fn before_a_recovery(manager: &mut Manager) -> crate::containerd::fifo::Fifo {
    let gate = manager.fifo("gate");
    manager.run(&["-d"], "stays", &["sleep", "1000"]).ok();
    let words = ["sh", "-c", "read x < /mnt/gate; exit 7"];
    manager.run(&["-d"], "ends", &words).ok();
    let pid = manager.pid_of("ends");
    manager.kill();
    gate.send("go");
    assert!(ctr::ends_within(pid, super::DEADLINE), "it ends");
    gate
}

/// What became of the points.
#[derive(Debug, Default)]
struct Tally {
    fired: usize,
    started: usize,
    failures: Vec<String>,
}

/// Runs `attack` for each point, several at once; it tells whether the daemon died of it, and
/// whether a start had been acknowledged. Every point must fire, and nothing go wrong.
fn run(what: &str, points: &[Point], attack: impl Fn(&mut Manager, &Point) -> (bool, bool) + Sync) {
    let began = Instant::now();
    let next = AtomicUsize::new(0);
    let result = Mutex::new(Tally::default());
    let work = || {
        while let Some(point) = points.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut outcome = (false, false);
            let done = catch_unwind(AssertUnwindSafe(|| {
                super::on(|manager| outcome = attack(manager, point));
            }));
            let mut result = result.lock().expect("result");
            result.fired += usize::from(outcome.0);
            result.started += usize::from(outcome.1);
            if let Err(panic) = done {
                let text = panic.downcast_ref::<String>().cloned();
                result.failures.push(format!("{point}: {text:?}"));
            } else if !outcome.0 {
                result.failures.push(format!("{point}: did not fire"));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(work);
        }
    });
    let Tally {
        fired,
        started,
        failures,
    } = result.into_inner().expect("result");
    crate::containerd::report(&format!(
        "{what}: {} points, {fired} fired, {started} acknowledged starts, {} failures, {:.0} s",
        points.len(),
        failures.len(),
        began.elapsed().as_secs_f32()
    ));
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Kills at each of `points` of a life.
pub fn of_lives(points: &[Point], victims: Victims) {
    run(&format!("a life, {victims:?}"), points, |manager, point| {
        let doom = manager.doom(point);
        let told = live(&Api::new(manager));
        let fired = told.error.is_some() || provoke(manager);
        if let Some(error) = &told.error {
            // What it was not told for lack of a daemon, and nothing else, may be missing.
            assert_eq!(error.code(), Code::Unavailable, "{error}");
        }
        drop(doom);
        manager.kill();
        if victims == Victims::All {
            for shim in manager.shims() {
                let _ = wait::signal(shim, libc::SIGKILL);
                assert!(ctr::ends_within(shim, super::DEADLINE), "a killed shim");
            }
        }
        manager.restart();
        check(manager, &told, victims);
        (fired, told.started)
    });
}

/// Kills at each of `points` of a recovery.
pub fn of_recoveries(points: &[Point]) {
    run("a recovery", points, |manager, point| {
        let _gate = before_a_recovery(manager);
        manager.up_doomed(point);
        let fired = provoke(manager);
        manager.kill();
        manager.restart();
        assert_eq!(manager.status("stays"), "running");
        manager.until("its exit", |it| {
            (!it.exits("ends").is_empty()).then_some(())
        });
        let statuses: Vec<u32> = manager.exits("ends").iter().map(|exit| exit.0).collect();
        assert_eq!(statuses, [STATUS]);
        assert!(manager.exits("stays").is_empty());
        (fired, true)
    });
}

/// Keeps the daemon busy if it has not come to its point yet, for it may have had less to do this
/// time; true once it is dead.
fn provoke(manager: &Manager) -> bool {
    let mut more = (0..5).map(|n| format!("more{n}"));
    manager.is_dead()
        || more.any(|id| manager.run(&["--rm"], &id, &["true"]).code != 0 && manager.is_dead())
}

fn check(manager: &Manager, told: &Told, victims: Victims) {
    if told.started {
        manager.until("its exit", |it| (!it.exits("c").is_empty()).then_some(()));
    }
    let exits = manager.exits("c");
    // With the shim goes the one who saw its end, unless that was written down already.
    let may_be = |status| match victims {
        Victims::Daemon => status == STATUS,
        Victims::All => [STATUS, 137, 255].contains(&status),
    };
    assert!(exits.len() <= 1, "{exits:?} {told:?}");
    assert!(
        exits.iter().all(|exit| may_be(exit.0)),
        "{exits:?} {told:?}"
    );
    if let (Some(status), [exit]) = (told.exit, &exits[..]) {
        assert_eq!((status, exit.0), (STATUS, STATUS), "{exits:?} {told:?}");
    }
    let mut topics = HashMap::<String, usize>::new();
    let filter = "topic~=|^/tasks/|,event.container_id==c";
    for event in manager.json(&["events", "--no-follow", "--filter", filter]) {
        let topic = event["topic"].as_str().expect("a topic").to_owned();
        *topics.entry(topic).or_default() += 1;
    }
    assert!(
        topics.values().all(|&count| count == 1),
        "{topics:?} {told:?}"
    );
    if told.deleted {
        assert!(topics.contains_key("/tasks/delete"), "{topics:?}");
        assert!(["-", "none"].contains(&manager.status("c").as_str()));
    }
    if !peers::is_go() {
        // Ours tells all of what it did; what it did not do is not told of.
        let told_of = |topic: &str| topics.contains_key(topic);
        assert!(
            !told_of("/tasks/exit") || told_of("/tasks/create"),
            "{topics:?} {told:?}"
        );
    }
}
