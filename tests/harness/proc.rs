// SPDX-License-Identifier: Apache-2.0
//! What /proc says about a process.
//!
//! Nothing reaps orphans on some machines: a zombie counts as gone everywhere here.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    pub comm: String,
    pub state: char,
    pub ppid: i32,
    pub pgrp: i32,
    pub session: i32,
    /// Of the first thread: -20 (runs first) to 19.
    pub nice: i32,
    pub threads: usize,
}

/// `/proc/<pid>/stat`; `None` if there is no such process.
pub fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // A program's name is any bytes.
    let text = String::from_utf8_lossy(&text);
    let (start, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    Some(Stat {
        comm: start.split_once('(')?.1.to_owned(),
        state: fields.first()?.chars().next()?,
        ppid: fields.get(1)?.parse().ok()?,
        pgrp: fields.get(2)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        nice: fields.get(16)?.parse().ok()?,
        threads: fields.get(17)?.parse().ok()?,
    })
}

/// The state of each thread of `pid`: `R`, `S`, `D` and so on.
pub fn thread_states(pid: i32) -> Vec<char> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let state = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("stat")).ok()?;
        text.rsplit_once(") ")?.1.chars().next()
    };
    let tasks = tasks.into_iter().flatten().flatten();
    tasks.filter_map(state).collect()
}

/// True if `pid` runs or sleeps.
pub fn alive(pid: i32) -> bool {
    stat(pid).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

/// Every process, zombies included.
pub fn all() -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("/proc");
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// Children of `pid`, zombies included.
pub fn children(pid: i32) -> Vec<i32> {
    all()
        .into_iter()
        .filter(|&child| stat(child).is_some_and(|s| s.ppid == pid))
        .collect()
}

/// Dead children that `pid` has not waited for.
pub fn zombies(pid: i32) -> Vec<i32> {
    children(pid)
        .into_iter()
        .filter(|&child| stat(child).is_some_and(|s| s.state == 'Z'))
        .collect()
}

/// Number to target of every open fd; `None` if the process is gone.
pub fn fds(pid: i32) -> Option<BTreeMap<i32, String>> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let fd = |entry: fs::DirEntry| {
        let target = fs::read_link(entry.path()).ok()?;
        Some((
            entry.file_name().to_str()?.parse().ok()?,
            target.to_string_lossy().into_owned(),
        ))
    };
    Some(entries.filter_map(|entry| fd(entry.ok()?)).collect())
}

/// A line `<key>:  <number> …` of /proc/<pid>/status.
pub fn status(pid: i32, key: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Memory that is its alone and that it has written to, in KiB (proc(5), smaps_rollup).
pub fn private_dirty(pid: i32) -> u64 {
    rollup(pid, "Private_Dirty:")
}

/// What is its own of memory, and its part of what it shares with others, in KiB.
pub fn pss(pid: i32) -> u64 {
    rollup(pid, "Pss:")
}

fn rollup(pid: i32, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"));
    let text = text.unwrap_or_else(|e| panic!("memory of {pid}: {e}"));
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    number.and_then(|n| n.parse().ok()).expect("a number")
}

/// How many stacks it has that end with a page which nobody can touch (proc_pid_maps(5)): the first thread
/// has one for its signals, and each other thread one.
pub fn stacks(pid: i32) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"));
    let maps = maps.unwrap_or_default();
    let ends = maps
        .lines()
        .filter(|line| line.contains(" ---p 00000000 00:00 0"));
    ends.count()
}

/// How often any of its threads was switched to since it began: each is a wakeup.
pub fn wakeups(pid: i32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let count = |status: String| -> u64 {
        let lines = status
            .lines()
            .filter(|line| line.contains("ctxt_switches:"));
        lines
            .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
            .sum()
    };
    tasks
        .into_iter()
        .flatten()
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok())
        .map(count)
        .sum()
}

/// Bytes that went through its memory: what its first thread read(2) and wrote(2), without what it
/// spliced (proc(5), `rchar` and `wchar`; those of the whole process count its dead children's too).
pub fn copied(pid: i32) -> u64 {
    io(&format!("{pid}/task/{pid}"), &["rchar", "wchar"])
}

/// Bytes that it has read(2), all of its threads.
pub fn bytes_read(pid: i32) -> u64 {
    io(&pid.to_string(), &["rchar"])
}

/// The sum of these counters of proc(5)'s `io`; 0 if the process or thread is gone.
fn io(of: &str, counters: &[&str]) -> u64 {
    let text = fs::read_to_string(format!("/proc/{of}/io")).unwrap_or_default();
    let value = |line: &str| {
        let (name, value) = line.split_once(": ")?;
        let value = counters.contains(&name).then_some(value)?;
        value.parse::<u64>().ok()
    };
    text.lines().filter_map(value).sum()
}

/// NUL-separated words of a file of the process; empty if it is gone.
pub fn words(pid: i32, file: &str) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let words = bytes.split(|&b| b == 0).filter(|word| !word.is_empty());
    words
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

pub fn cwd(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/cwd")).ok()
}

/// True if the living process `pid` has `needle` in its arguments, environment, working
/// directory or cgroups.
pub fn mentions(pid: i32, needle: &str) -> bool {
    alive(pid)
        && (words(pid, "cmdline")
            .iter()
            .any(|word| word.contains(needle))
            || words(pid, "environ")
                .iter()
                .any(|word| word.contains(needle))
            || cwd(pid).is_some_and(|dir| dir.to_string_lossy().contains(needle))
            || fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|c| c.contains(needle)))
}

/// `pid (comm, state, parent) arguments`, for people.
pub fn describe(pid: i32) -> String {
    match stat(pid) {
        None => format!("{pid} (gone)"),
        Some(s) => {
            let args = words(pid, "cmdline").join(" ");
            format!(
                "{pid} ({}, {}, child of {}) {args}",
                s.comm, s.state, s.ppid
            )
        }
    }
}

/// Mount points at or under `dir`, as this process sees them.
pub fn mounts_under(dir: &Path) -> Vec<String> {
    let mounts = mounts(std::process::id() as i32, dir).into_iter();
    mounts.map(|(point, _)| point).collect()
}

/// Mount points at or under `dir`, as process `pid` sees them, and what mountinfo says of each.
pub fn mounts(pid: i32, dir: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    points(&text, dir)
}

/// The same of the mount namespaces that process `pid` has open, in which no process need be.
pub fn mounts_held(pid: i32, dir: &Path) -> Vec<(String, String)> {
    let fds = fds(pid).unwrap_or_default().into_iter();
    let held = fds.filter(|(_, target)| target.starts_with("mnt:["));
    let mounts = held.flat_map(|(fd, _)| {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{pid}/fd/{fd}"));
        let table = command.args(["cat", "/proc/self/mountinfo"]).output();
        let table = table.expect("nsenter").stdout;
        points(&String::from_utf8_lossy(&table), dir)
    });
    mounts.collect()
}

fn points(text: &str, dir: &Path) -> Vec<(String, String)> {
    let point = |line: &str| {
        let point = line.split(' ').nth(4)?.replace("\\040", " ");
        Some((point, line.to_owned()))
    };
    let all = text.lines().filter_map(point);
    all.filter(|(point, _)| Path::new(point).starts_with(dir))
        .collect()
}
