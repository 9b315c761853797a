// SPDX-License-Identifier: Apache-2.0
//! Processes of the node, as /proc of its pid namespace has them: containerd, which is ended so that
//! the node starts it again, CRI-O, which reads its configuration when it is told to, and whoever
//! runs what was installed.

use crate::failure::{Failure, Result, io};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// How the kernel calls them.
const CONTAINERD: &str = "containerd";
const CRIO: &str = "crio";
/// How long the node may take to start it again: systemd waits five seconds.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Ends containerd and waits for the next one. Its pods go on: no shim is its child.
///
/// # Errors
/// If there is none, or if no other one comes.
pub fn restart() -> Result<()> {
    let old = told(CONTAINERD, Signal::SIGTERM)?;
    let mut waited = Duration::ZERO;
    while waited < PATIENCE {
        let now = daemons(CONTAINERD)?;
        if !now.is_empty() && now.is_disjoint(&old) {
            return Ok(());
        }
        pass(LOOK_EVERY);
        waited += LOOK_EVERY;
    }
    let why = format!("nobody started it again within {} s", PATIENCE.as_secs());
    Err(Failure::Daemon(CONTAINERD, why))
}

/// Has CRI-O read its configuration; nothing ends.
///
/// # Errors
/// If there is none.
pub fn reload_crio() -> Result<()> {
    told(CRIO, Signal::SIGHUP).map(|_| ())
}

/// The processes of that name, which were sent `signal`.
fn told(name: &'static str, signal: Signal) -> Result<BTreeSet<i32>> {
    let pids = daemons(name)?;
    if pids.is_empty() {
        let why = "it is not in this pid namespace: the pod needs hostPID";
        return Err(Failure::Daemon(name, why.into()));
    }
    for pid in &pids {
        kill(Pid::from_raw(*pid), signal)
            .map_err(|e| Failure::Daemon(name, format!("{signal} to {pid}: {e}")))?;
    }
    Ok(pids)
}

/// Until somebody ends this program.
pub fn stay() -> Result<()> {
    let mut ends = SigSet::empty();
    ends.add(Signal::SIGTERM);
    ends.add(Signal::SIGINT);
    let failed = |e| Failure::Daemon("signals", format!("they cannot be waited for: {e}"));
    ends.thread_block().map_err(failed)?;
    ends.wait().map_err(failed)?;
    Ok(())
}

/// How many processes say that they run a program in `bin`.
pub fn users_of(bin: &Path) -> Result<usize> {
    let runs = |pid: &i32| program(*pid).is_some_and(|it| Path::new(&it).starts_with(bin));
    Ok(all()?.iter().filter(|pid| runs(pid)).count())
}

fn daemons(name: &str) -> Result<BTreeSet<i32>> {
    let line = format!("{name}\n").into_bytes();
    let comm = |pid: i32| fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    let pids = all()?.into_iter();
    Ok(pids.filter(|pid| comm(*pid) == line).collect())
}

/// The first word of its command line, which needs no privilege to be read.
fn program(pid: i32) -> Option<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let word = line.split(|&byte| byte == 0).next()?;
    Some(String::from_utf8_lossy(word).into_owned())
}

fn all() -> Result<Vec<i32>> {
    let proc = Path::new("/proc");
    let entries = fs::read_dir(proc).map_err(io(proc))?;
    let names = entries.flatten().map(|entry| entry.file_name());
    Ok(names
        .filter_map(|name| name.to_str()?.parse().ok())
        .collect())
}

#[allow(
    clippy::disallowed_methods,
    reason = "containerd is a child of the node's first process: nobody else hears of it"
)]
fn pass(time: Duration) {
    std::thread::sleep(time);
}
