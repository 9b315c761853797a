// SPDX-License-Identifier: Apache-2.0
//! A shim that is killed at one system call of a container's life, and what is left after `delete`.
//!
//! strace watches the daemon's one thread: a first, undisturbed life tells its system calls, and
//! then each of them is a point at which another shim is killed, just before the call happens.
//! Between two calls nothing changes on the machine, so these points are all there are.

use crate::bundle::Bundle;
use crate::shim::Shim;
use crate::stdio::{Fifo, Reader};
use crate::test::{self, Test};
use crate::{leaks, proc, wait};
use protos::task::{CreateTaskRequest, ExecProcessRequest};
use protos::ttrpc::CallError;
use std::collections::HashMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Where a shim is killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Point {
    /// Before the daemon's `nth` call of `name`.
    Call { name: String, nth: usize },
    /// Before the first call of `name` by a thread of the daemon or by what it starts, once the
    /// container's life has come to `phase`.
    Thread { name: &'static str, phase: Phase },
    /// So long after the request of `phase` was sent: while an OCI runtime is at work.
    Time { phase: Phase, after: Duration },
}

/// The parts of a container's life in which the OCI runtime works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Create,
    Start,
    Exec,
    Delete,
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Call { name, nth } => write!(f, "{name} #{nth}"),
            Self::Thread { name, phase } => write!(f, "{name} of a thread in {phase:?}"),
            Self::Time { phase, after } => write!(f, "{phase:?} after {after:?}"),
        }
    }
}

/// What became of the points.
#[derive(Debug, Default)]
pub struct Result {
    /// Points at which the shim died; the others did not come up again.
    pub killed: usize,
    /// One text for each point after which something was left, or went wrong.
    pub failures: Vec<String>,
}

/// strace on a daemon.
pub struct Strace(Child);

impl Strace {
    /// Traces `pid` from now on, with these options.
    pub async fn attach(pid: i32, options: &[String]) -> Self {
        let mut command = Command::new("strace");
        command.args(["-qq", "-p", &pid.to_string()]).args(options);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.stderr(Stdio::null()).spawn().expect("strace");
        wait::until("strace is attached", || {
            match proc::status(pid, "TracerPid") {
                Some(0) => Err(format!("{pid} has no tracer")),
                _ => Ok(()),
            }
        })
        .await;
        Self(child)
    }

    /// Lets go of the daemon.
    pub async fn detach(&mut self) {
        let pid = self.0.id() as i32;
        // The kernel lets go of what a dead tracer held, whatever state it was in.
        let _ = wait::signal(pid, libc::SIGKILL);
        wait::ended(pid).await;
        let _ = self.0.wait();
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A container with FIFOs, and an exec on a terminal.
struct Life {
    shim: Shim,
    bundle: Bundle,
    stdio: [Fifo; 4],
    _readers: Vec<Reader>,
}

impl Life {
    async fn new(test: &Test) -> Self {
        let bundle = test.bundle("c").build();
        let shim = bundle.start().shim().await;
        let stdio = ["in", "out", "err", "tty"].map(|name| Fifo::new(test.share().join(name)));
        let _readers = stdio[1..].iter().map(Fifo::reader).collect();
        Self {
            shim,
            bundle,
            stdio,
            _readers,
        }
    }

    /// One part of it.
    async fn live(&self, phase: Phase) -> std::result::Result<(), CallError> {
        let Self { shim, bundle, .. } = self;
        let [stdin, stdout, stderr, tty] = &self.stdio;
        match phase {
            Phase::Create => {
                let request = CreateTaskRequest {
                    stdin: stdin.name(),
                    stdout: stdout.name(),
                    stderr: stderr.name(),
                    ..bundle.create()
                };
                shim.create(request).await?;
            }
            Phase::Start => drop(shim.start("c", "").await?),
            Phase::Exec => {
                let request = ExecProcessRequest {
                    stdout: tty.name(),
                    terminal: true,
                    ..bundle.exec_sh("e", "echo hello; sleep 100000")
                };
                shim.exec(request).await?;
                shim.start("c", "e").await?;
                shim.resize("c", "e", 80, 25).await?;
                shim.kill("c", "e", libc::SIGKILL, false).await?;
                shim.wait("c", "e").await?;
                shim.delete("c", "e").await?;
            }
            Phase::Delete => {
                shim.kill("c", "", libc::SIGKILL, true).await?;
                shim.wait("c", "").await?;
                shim.delete("c", "").await?;
            }
        }
        Ok(())
    }
}

const PHASES: [Phase; 4] = [Phase::Create, Phase::Start, Phase::Exec, Phase::Delete];

/// Every system call of the daemon's loop in a container's life, in the order they came up.
pub fn calls() -> Vec<Point> {
    let mut points = Vec::new();
    test::run(async |test| points = parse(&traced_life(test, &[]).await));
    points
}

/// The paths in the system calls of the daemon's loop in a container's life.
pub async fn paths(test: &Test) -> Vec<String> {
    let log = traced_life(test, &["-y", "-e", "trace=%file,connect,bind"]).await;
    // A call without a path is about an fd, with its path in angle brackets; a pipe has none.
    let open = |line: &str| {
        let path = line.split_once('<')?.1.split_once('>')?.0;
        path.starts_with('/').then(|| path.to_owned())
    };
    let path = |line: &str| match line.split('"').nth(1)? {
        "" => open(line),
        path => Some(path.to_owned()),
    };
    log.lines().filter_map(path).collect()
}

/// strace's log of the daemon's loop in an undisturbed life.
async fn traced_life(test: &Test, options: &[&str]) -> String {
    let life = Life::new(test).await;
    let log = test.dir().join("strace");
    let words = ["-o", &log.to_string_lossy()];
    let options = words.iter().chain(options).map(|word| (*word).to_owned());
    let options: Vec<String> = options.collect();
    let mut strace = Strace::attach(life.shim.pid(), &options).await;
    for phase in PHASES {
        life.live(phase).await.expect("an undisturbed life");
    }
    strace.detach().await;
    fs::read_to_string(&log).expect("strace's log")
}

/// The system calls in strace's log.
pub fn parse(log: &str) -> Vec<Point> {
    let mut points = Vec::new();
    let mut seen = HashMap::new();
    for line in log.lines() {
        let Some((name, _)) = line.split_once('(') else {
            continue;
        };
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            continue;
        }
        let nth = seen.entry(name.to_owned()).or_insert(0);
        *nth += 1;
        let (name, nth) = (name.to_owned(), *nth);
        points.push(Point::Call { name, nth });
    }
    points
}

/// The work of the daemon's threads: files of the bundle, the mounts of Create, the unmounts of
/// Delete.
pub fn threads() -> Vec<Point> {
    let point = |(name, phase)| Point::Thread { name, phase };
    let points = [
        ("mkdir", Phase::Create),
        ("rename", Phase::Create),
        ("mount", Phase::Create),
        ("unlink", Phase::Exec),
        ("rename", Phase::Exec),
        ("rename", Phase::Delete),
        ("umount2", Phase::Delete),
    ];
    points.map(point).into()
}

/// Moments while an OCI runtime is at work, so many milliseconds apart.
pub fn times(step: Duration) -> Vec<Point> {
    let spans = [
        (Phase::Create, 80),
        (Phase::Start, 30),
        (Phase::Exec, 80),
        (Phase::Delete, 60),
    ];
    let moments = spans.into_iter().flat_map(|(phase, millis)| {
        let count = (Duration::from_millis(millis).as_micros() / step.as_micros()) as u32;
        (0..count).map(move |n| Point::Time {
            phase,
            after: step * n,
        })
    });
    moments.collect()
}

/// Kills a shim at each of `points`, several at once, and has `delete` clean up behind it.
pub fn run(points: &[Point]) -> Result {
    let next = AtomicUsize::new(0);
    let result = Mutex::new(Result::default());
    let work = || {
        while let Some(point) = points.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut killed = false;
            let done = catch_unwind(AssertUnwindSafe(|| {
                test::run(async |test| killed = attack(test, point).await);
            }));
            let mut result = result.lock().expect("result");
            result.killed += usize::from(killed);
            if let Err(panic) = done {
                let text = panic
                    .downcast_ref::<String>()
                    .map_or("panicked", String::as_str);
                result.failures.push(format!("{point}: {text}"));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(work);
        }
    });
    result.into_inner().expect("result")
}

/// [`run`], which must find nothing wrong.
pub fn check(points: &[Point]) {
    let begin = Instant::now();
    let Result { killed, failures } = run(points);
    let (count, took) = (points.len(), begin.elapsed().as_secs_f32());
    println!(
        "{count} points, {killed} kills, {} failures, {took:.0} s",
        failures.len()
    );
    let text = failures.join("\n");
    assert!(
        failures.is_empty(),
        "{} of {count} points:\n{text}",
        failures.len()
    );
}

/// One point: true if the shim died of it.
async fn attack(test: &Test, point: &Point) -> bool {
    let life = Life::new(test).await;
    let pid = life.shim.pid();
    let inject = |name: &str, nth| format!("inject={name}:signal=SIGKILL:when={nth}");
    let options = |more: &[&str], inject: String| {
        let words = more.iter().copied().chain(["-o", "/dev/null", "-e"]);
        words.map(str::to_owned).chain([inject]).collect::<Vec<_>>()
    };
    let mut strace = None;
    if let Point::Call { name, nth } = point {
        strace = Some(Strace::attach(pid, &options(&[], inject(name, *nth))).await);
    }
    for phase in PHASES {
        match point {
            Point::Thread { name, phase: at } if *at == phase => {
                strace = Some(Strace::attach(pid, &options(&["-f"], inject(name, 1))).await);
            }
            Point::Time { phase: at, after } if *at == phase => {
                let kill = async {
                    tokio::time::sleep(*after).await;
                    let _ = wait::signal(pid, libc::SIGKILL);
                };
                let _ = tokio::join!(life.live(phase), kill);
                break;
            }
            _ => {}
        }
        match life.live(phase).await {
            Ok(()) => {}
            Err(CallError::Closed) => break,
            Err(e) => panic!("{phase:?}: {e}"),
        }
    }
    // A daemon that is killed takes its tracer along; one that lives is let go, and answers.
    if let Some(strace) = &mut strace {
        strace.detach().await;
    }
    if life.shim.connect_call("c").await.is_ok() {
        return false;
    }
    wait::ended(pid).await;
    clean_up(&life.bundle).await;
    true
}

/// What containerd does when a shim's connection breaks: `delete`, and once more if it must.
async fn clean_up(bundle: &Bundle) {
    bundle.start().deleted().await;
    let first = leaks::of(&bundle.test).await;
    if !first.is_empty() {
        bundle.start().deleted().await;
    }
    let left = leaks::of(&bundle.test).await;
    assert!(
        left.is_empty(),
        "left after delete:\n  {}\nafter the first:\n  {}",
        left.join("\n  "),
        first.join("\n  ")
    );
    let rubbish = |name: &String| name.ends_with(".pty") || name.ends_with(".process.json");
    let left: Vec<String> = bundle.files().into_iter().filter(rubbish).collect();
    assert!(left.is_empty(), "left in the bundle: {left:?}");
}
