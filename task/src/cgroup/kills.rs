// SPDX-License-Identifier: Apache-2.0
//! Which processes of a cgroup, or of one below it, the kernel has killed for want of memory: by its
//! log, which knows of cgroups that are gone, too.

use super::kernel_log::{self, After, Kill, MOST_KILLS};
use super::read;
use crate::aside;
use crate::rootfs::mountinfo;
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// How far the clock of the kernel's log may be from ours: a second, and one part in so many of the
/// time since boot (nobody sets that clock).
const DRIFT: u64 = 2000;

/// The kernel counts a kill before it logs it: how long after that the log is looked at again, each
/// time four times as long.
const FIRST_WAIT: Duration = Duration::from_millis(1);
const LAST_WAIT: Duration = Duration::from_millis(256);

/// What a cgroup may use of memory, and what it has used, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Room {
    #[serde(rename = "used_bytes")]
    pub used: Option<u64>,
    /// At most so far, if this kernel keeps it.
    #[serde(rename = "peak_bytes")]
    pub peak: Option<u64>,
    /// `None`: as much as there is.
    #[serde(rename = "limit_bytes")]
    pub limit: Option<u64>,
    /// Kills there have been, of its own processes and of those below it, as far as they are counted.
    #[serde(rename = "oom_kills")]
    pub kills: Option<u64>,
    /// Of its own processes alone.
    #[serde(rename = "oom_kills_local")]
    pub local_kills: Option<u64>,
    /// Who is killed is killed with the whole cgroup (memory.oom.group).
    #[serde(rename = "oom_group")]
    pub group: bool,
}

impl Room {
    /// Of the cgroup at `dir`, of version 1 or 2; nothing of one that is gone.
    pub fn of(dir: &Path) -> Self {
        let number = |file| read::number(dir, file, u64::MAX).ok().flatten();
        let either = |old, new| number(old).or_else(|| number(new));
        let limit = either("memory.limit_in_bytes", "memory.max");
        // Version 1 has no word for "none": it is the last page that 63 bits reach.
        let is_one = |limit: &u64| *limit < 1 << 62;
        let count = |file| count(dir, file, "oom_kill ");
        Self {
            used: either("memory.usage_in_bytes", "memory.current"),
            peak: either("memory.max_usage_in_bytes", "memory.peak"),
            limit: limit.filter(is_one),
            kills: count("memory.events").or_else(|| kills_below(dir)),
            local_kills: count("memory.events.local").or_else(|| count("memory.oom_control")),
            group: number("memory.oom.group") == Some(1),
        }
    }
}

fn count(dir: &Path, file: &str, name: &str) -> Option<u64> {
    let text = read::text(dir, file).ok().flatten()?;
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.parse().ok())
}

/// With version 1 each cgroup counts for itself.
fn kills_below(dir: &Path) -> Option<u64> {
    count(dir, "memory.oom_control", "oom_kill ")?;
    let all = read::tree(dir).into_iter();
    Some(
        all.filter_map(|dir| count(&dir, "memory.oom_control", "oom_kill "))
            .sum(),
    )
}

/// A kill, with what the cgroup that had no memory left was allowed.
#[derive(Clone, Debug, Default)]
pub struct Found {
    pub kill: Kill,
    pub room: Room,
}

/// The kills of one cgroup.
#[derive(Debug)]
pub(super) struct Kills {
    dir: PathBuf,
    after: Cell<After>,
    /// How many were found so far.
    found: Cell<u64>,
    /// Those that nobody has asked for yet.
    new: RefCell<Vec<Found>>,
}

impl Kills {
    /// From now on, of the cgroup at `dir`.
    pub fn of(dir: &Path) -> Self {
        let uptime = uptime();
        let time = uptime.saturating_sub(1_000_000 + uptime / DRIFT);
        Self {
            dir: dir.to_owned(),
            after: Cell::new(After { number: 0, time }),
            found: Cell::new(0),
            new: RefCell::default(),
        }
    }

    /// Reads on in the log, and tells how many kills were found so far.
    ///
    /// # Errors
    /// If there is no log to be read.
    pub async fn count(&self) -> io::Result<u64> {
        self.read(Vec::new()).await
    }

    /// The same; of the processes `known` the log need not say where they were, which it leaves out
    /// when it has much to say.
    async fn read(&self, known: Vec<u32>) -> io::Result<u64> {
        let (dir, after) = (self.dir.clone(), self.after.get());
        let (found, last) = aside::run(move || look(&dir, after, &known)).await?;
        // Somebody else may have read the same meanwhile.
        if self.after.get().number < last {
            self.after.set(After {
                number: last,
                ..after
            });
            self.found.set(self.found.get() + found.len() as u64);
            let mut new = self.new.borrow_mut();
            new.extend(found);
            let surplus = new.len().saturating_sub(MOST_KILLS);
            new.drain(..surplus);
        }
        Ok(self.found.get())
    }

    /// Those that were found and not taken yet. Of what the log does not tell there is the cgroup.
    pub async fn take(&self, known: &[u32]) -> Vec<Found> {
        let mut wait = FIRST_WAIT;
        loop {
            let read = self.read(known.to_vec()).await;
            let new = self.new.take();
            if !new.is_empty() {
                return new;
            }
            if let Err(e) = read {
                log::debug!("{}: the kernel's log: {e}", self.dir.display());
                break;
            }
            if wait > LAST_WAIT {
                break;
            }
            tokio::time::sleep(wait).await;
            wait *= 4;
        }
        let dir = self.dir.clone();
        vec![aside::run(move || counted(&dir)).await]
    }
}

/// The kills that the log has of `dir`.
fn look(dir: &Path, after: After, known: &[u32]) -> io::Result<(Vec<Found>, u64)> {
    let mounts = fs::read("/proc/self/mountinfo")?;
    let path = path_of(dir, &mounts).ok_or(io::ErrorKind::NotFound)?;
    let is_ours = |kill: &Kill| match kill.cgroup.as_str() {
        "" => known.contains(&kill.pid),
        cgroup => Path::new(cgroup).starts_with(&path),
    };
    let (kills, last) = kernel_log::kills(after, is_ours)?;
    let with_room = |kill: Kill| {
        if kill.cgroup.is_empty() {
            let Found { kill: place, room } = counted(dir);
            let (pid, program) = (kill.pid, kill.program);
            let kill = Kill {
                pid,
                program,
                ..place
            };
            return Found { kill, room };
        }
        let exhausted = dir_of(Path::new(&kill.exhausted), &path, dir);
        let room = exhausted.map(|dir| Room::of(&dir)).unwrap_or_default();
        Found { kill, room }
    };
    Ok((kills.into_iter().map(with_room).collect(), last))
}

/// What is known without the log: the cgroup, if there is one alone in which something was killed.
fn counted(dir: &Path) -> Found {
    let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let all = read::tree(dir).into_iter();
    let mut killed = all.filter(|dir| Room::of(dir).local_kills > Some(0));
    let place = match (killed.next(), killed.next()) {
        (Some(one), None) => one,
        _ => dir.to_owned(),
    };
    let path = |dir: &Path| path_of(dir, &mounts).unwrap_or_else(|| dir.to_owned());
    let path = |dir| path(dir).to_string_lossy().into_owned();
    Found {
        kill: Kill {
            cgroup: path(&place),
            exhausted: path(dir),
            ..Kill::default()
        },
        room: Room::of(dir),
    }
}

/// The path in its hierarchy of the cgroup at `dir`, by the table of mounts.
fn path_of(dir: &Path, mounts: &[u8]) -> Option<PathBuf> {
    let mounts = mountinfo::parse(mounts).filter(|mount| mount.kind.starts_with(b"cgroup"));
    let below = mounts.filter_map(|mount| {
        let rest = dir.strip_prefix(mountinfo::path(mount.point)).ok()?;
        Some((
            rest.as_os_str().len(),
            mountinfo::path(mount.root).join(rest),
        ))
    });
    below
        .min_by_key(|(length, _)| *length)
        .map(|(_, path)| path)
}

/// Where the cgroup `path` is, in the hierarchy in which `known` is at `dir`; none if it is neither
/// above nor below that.
fn dir_of(path: &Path, known: &Path, dir: &Path) -> Option<PathBuf> {
    if let Ok(below) = path.strip_prefix(known) {
        let is_plain = |part| matches!(part, Component::Normal(_));
        return below.components().all(is_plain).then(|| dir.join(below));
    }
    let up = known.strip_prefix(path).ok()?.components().count();
    let is_named = path.parent().is_some();
    is_named.then(|| dir.ancestors().nth(up).map(Path::to_owned))?
}

/// In microseconds.
fn uptime() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| {
        now.tv_sec().unsigned_abs() * 1_000_000 + now.tv_nsec().unsigned_abs() / 1000
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &[u8] = b"31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
        32 31 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        33 31 0:29 /docker/a /other rw - cgroup cgroup rw,memory\n";

    #[test]
    fn cgroups_are_found_by_the_kernels_paths_and_back() {
        let path = |dir| path_of(Path::new(dir), MOUNTS);
        let dir = Path::new("/sys/fs/cgroup/memory/pod/c");
        assert_eq!(path("/sys/fs/cgroup/memory/pod/c"), Some("/pod/c".into()));
        assert_eq!(path("/other/c"), Some("/docker/a/c".into()));
        assert_eq!(path("/elsewhere"), None);
        let place = |path: &str| dir_of(Path::new(path), Path::new("/pod/c"), dir);
        assert_eq!(place("/pod/c"), Some(dir.into()));
        assert_eq!(place("/pod/c/below"), Some(dir.join("below")));
        assert_eq!(place("/pod"), Some("/sys/fs/cgroup/memory/pod".into()));
        for other in ["", "/other", "/pod/c/../d", "pod"] {
            assert_eq!(place(other), None, "{other}");
        }
    }

    #[test]
    fn both_versions_tell_what_they_have_used() {
        let dir = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(dir.path().join(file), text).unwrap();
        assert_eq!(Room::of(dir.path()), Room::default());
        write("memory.current", "5\n");
        write("memory.peak", "7\n");
        write("memory.max", "max\n");
        write("memory.events", "oom 4\noom_kill 3\noom_group_kill 1\n");
        write("memory.events.local", "oom_kill 2\n");
        write("memory.oom.group", "1\n");
        let room = Room {
            used: Some(5),
            peak: Some(7),
            limit: None,
            kills: Some(3),
            local_kills: Some(2),
            group: true,
        };
        assert_eq!(Room::of(dir.path()), room);
        let old = tempfile::tempdir().unwrap();
        fs::create_dir(old.path().join("below")).unwrap();
        let write = |file: &str, text: &str| fs::write(old.path().join(file), text).unwrap();
        write("memory.limit_in_bytes", "9223372036854771712\n");
        write("memory.max_usage_in_bytes", "7\n");
        write("memory.oom_control", "under_oom 0\noom_kill 1\n");
        write("below/memory.oom_control", "oom_kill 2\n");
        let room = Room {
            peak: Some(7),
            kills: Some(3),
            local_kills: Some(1),
            ..Room::default()
        };
        assert_eq!(Room::of(old.path()), room);
    }
}
