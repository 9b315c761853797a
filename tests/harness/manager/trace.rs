// SPDX-License-Identifier: Apache-2.0
//! strace on a daemon: what system calls it makes, and its death just before one of them.

use super::Manager;
use crate::containerd::capture::Capture;
use crate::containerd::ctr;
use crate::{proc, wait};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Just before the `nth` call of `name`, on the loop or by a thread beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    pub name: String,
    pub nth: usize,
    /// By whatever thread is the first to make so many such calls for this file of the daemon's, in
    /// the directory of the test; NS is its namespace.
    pub file: Option<&'static str>,
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} #{}", self.name, self.nth)?;
        match self.file {
            None => Ok(()),
            Some(file) => write!(f, " of {file}"),
        }
    }
}

impl Point {
    fn injection(&self, manager: &Manager) -> Vec<String> {
        let (name, nth) = (&self.name, self.nth);
        let inject = format!("inject={name}:signal=SIGKILL:when={nth}");
        let mut words = vec!["-e".into(), format!("trace={name}"), "-e".into(), inject];
        if let Some(file) = self.file {
            let file = file.replace("NS", &manager.namespace());
            let file = manager.dir().join(file).display().to_string();
            words.extend(["-f".into(), "-P".into(), file]);
        }
        words
    }
}

/// The calls that a log of strace tells of, in their order. A daemon that runs other programs is
/// not followed there.
pub fn calls(log: &Path) -> Vec<Point> {
    let text = std::fs::read_to_string(log).expect("strace's log");
    let mut seen = HashMap::<&str, usize>::new();
    let names = text
        .lines()
        .filter_map(|line| Some(line.split_once('(')?.0));
    let names = names.filter(|name| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'));
    let point = |name| {
        let nth = seen.entry(name).or_default();
        *nth += 1;
        Point {
            name: name.to_owned(),
            nth: *nth,
            file: None,
        }
    };
    names.map(point).collect()
}

/// A strace that watches a daemon. Dropped, it lets go.
pub struct Strace(Child);

impl Strace {
    fn attach(pid: i32, log: &Path, options: &[String]) -> Self {
        let mut command = Command::new("strace");
        command.args(["-qq", "-p", &pid.to_string(), "-o"]).arg(log);
        command.args(options).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let it = Self(command.spawn().expect("strace"));
        wait::until_within(super::DEADLINE, "strace attached", || {
            match proc::status(pid, "TracerPid") {
                Some(0) if proc::alive(pid) => Err(format!("{pid} has no tracer")),
                _ => Ok(()),
            }
        });
        it
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        // The kernel lets go of what a dead tracer held.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Manager {
    fn trace_log(&self) -> PathBuf {
        self.dir.join("strace")
    }

    /// The daemon's own calls while `work` is done.
    pub fn calls_of<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> (Vec<Point>, T) {
        let strace = Strace::attach(self.pid(), &self.trace_log(), &[]);
        let done = work(self);
        drop(strace);
        (calls(&self.trace_log()), done)
    }

    /// The names of files and sockets that the daemon's loop asks for while `work` is done.
    pub fn names_of(&mut self, work: impl FnOnce(&mut Self)) -> Vec<String> {
        let options = ["-y", "-e", "trace=%file,connect,bind"].map(str::to_owned);
        let strace = Strace::attach(self.pid(), &self.trace_log(), &options);
        work(self);
        drop(strace);
        let text = std::fs::read_to_string(self.trace_log()).expect("strace's log");
        // Without a name a call is about an fd, which strace tells the name of.
        let open = |line: &str| Some(line.split_once('<')?.1.split_once('>')?.0.to_owned());
        let name = |line: &str| match line.split('"').nth(1)? {
            "" => open(line),
            name => Some(name.to_owned()),
        };
        text.lines().filter_map(name).collect()
    }

    /// How often the journal is synced while `work` is done; by a thread, for it takes long.
    pub fn journal_syncs(&mut self, work: impl FnOnce(&mut Self)) -> usize {
        let options = ["-f", "-y", "-e", "trace=fdatasync"].map(str::to_owned);
        let strace = Strace::attach(self.pid(), &self.trace_log(), &options);
        work(self);
        drop(strace);
        let text = std::fs::read_to_string(self.trace_log()).expect("strace's log");
        let is_sync = |line: &&str| line.contains("fdatasync(") && line.contains("/journal");
        text.lines().filter(is_sync).count()
    }

    /// Lets the daemon die at `point`, counted from now on.
    pub fn doom(&self, point: &Point) -> Strace {
        Strace::attach(self.pid(), Path::new("/dev/null"), &point.injection(self))
    }

    /// The calls of a daemon from its first to when it serves.
    pub fn up_traced(&mut self) -> Vec<Point> {
        let log = self.trace_log();
        self.up_behind(&[], &log);
        calls(&log)
    }

    /// Starts a daemon that dies at `point`, counted from its first call on; it may be dead at
    /// once.
    pub fn up_doomed(&mut self, point: &Point) {
        self.up_behind(&point.injection(self), Path::new("/dev/null"));
    }

    fn up_behind(&mut self, options: &[String], log: &Path) {
        let log = log.to_string_lossy();
        let mut words = vec!["strace", "-qq", "-o", &log];
        words.extend(options.iter().map(String::as_str));
        let mut child = self.spawn_daemon(&words, Stdio::piped());
        let said = Capture::of(child.stderr.take().expect("piped"));
        self.process = Some(child);
        self.logs.push(said.clone());
        // Until it serves, or is dead; strace ends with it.
        said.wait_briefly(super::DEADLINE, |log| {
            log.contains(" serves /").then_some(())
        });
    }

    /// True if the daemon has died.
    pub fn is_dead(&self) -> bool {
        ctr::ends_within(self.pid(), std::time::Duration::ZERO)
    }
}
