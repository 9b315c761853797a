// SPDX-License-Identifier: Apache-2.0
//! A container's cgroup, version 1 or 2: found from its init, counted, listed and watched.
//!
//! Only files are read and written here, those of procfs and cgroupfs; all of it may run on the
//! loop. A cgroup that is gone is not an error: its numbers are zero and its lists empty, because
//! a container stays askable from its exit to its deletion (contract T70, T79).

mod ahead;
mod find;
mod kernel_log;
mod kills;
mod oom;
mod oom_v1;
mod oom_v2;
mod read;
mod remains;
mod stats_v1;
mod stats_v2;
#[cfg(test)]
mod tests;

pub use ahead::wait_ahead;
pub use kills::{Found, Room};
pub use oom::OomWatch;
pub use remains::{Remains, path_of};

use crate::{handover, proc};
use find::Place;
use protos::{Any, any};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Files of version 2: the controllers that a cgroup has, and that it gives to those below it.
const CONTROLLERS: &str = "cgroup.controllers";
const SUBTREE_CONTROL: &str = "cgroup.subtree_control";

/// The files that a process writes itself into to be where process `pid` is: `cgroup.procs` of each
/// hierarchy in which that is elsewhere than this process.
///
/// # Errors
/// What can't be read, or the hierarchy that is not mounted here.
pub fn joins(pid: u32) -> Result<Vec<PathBuf>, String> {
    let read = |path: String| fs::read(&path).map_err(|e| format!("{path}: {e}"));
    let (theirs, ours) = (
        read(format!("/proc/{pid}/cgroup"))?,
        read("/proc/self/cgroup".into())?,
    );
    let mounts = read("/proc/self/mountinfo".into())?;
    find::elsewhere(&theirs, &ours, &mounts)
}

/// Why a cgroup could not be found or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process has exited, or is in no cgroup but the root.
    #[error("process {0} is in no cgroup of its own")]
    None(u32),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: unexpected {text:?}", path.display())]
    Parse { path: PathBuf, text: String },
}

/// The files that are not in the cgroup, and tests bring their own of.
struct Host<'a> {
    /// Names of block devices (proc_partitions(5)).
    partitions: &'a Path,
    /// One directory `hugepages-<n>kB` for each size of huge pages.
    hugepages: &'a Path,
}

/// A container's cgroup: one directory with version 2, one for each controller with version 1.
#[derive(Debug)]
pub struct Cgroup(Place);

impl Cgroup {
    /// The cgroup that process `pid` is in now. A host with any version 1 hierarchy at the usual
    /// place counts as version 1 (contract O4).
    pub fn of_pid(pid: u32) -> Result<Self, Error> {
        Self::find(Path::new("/proc"), Path::new("/sys/fs/cgroup"), pid)
    }

    fn find(proc: &Path, sys: &Path, pid: u32) -> Result<Self, Error> {
        let read = |path: PathBuf| {
            fs::read(&path).map_err(|source| match source.raw_os_error() {
                Some(libc::ENOENT | libc::ESRCH) => Error::None(pid),
                _ => Error::Io { path, source },
            })
        };
        let cgroups = read(proc.join(pid.to_string()).join("cgroup"))?;
        let mounts = read(proc.join("self/mountinfo"))?;
        match find::place(&cgroups, &mounts, sys) {
            Some(place) => Ok(Self(place)),
            None => Err(Error::None(pid)),
        }
    }

    /// Whether process `pid` is in it now, and not in one below.
    pub fn has(&self, pid: u32) -> bool {
        Self::of_pid(pid).is_ok_and(|now| now.0 == self.0)
    }

    /// What the container has used so far, as `io.containerd.cgroups.v1.Metrics` or
    /// `io.containerd.cgroups.v2.Metrics` (contract T79).
    pub fn stats(&self) -> Result<Any, Error> {
        let host = Host {
            partitions: Path::new("/proc/partitions"),
            hugepages: Path::new("/sys/kernel/mm/hugepages"),
        };
        let stats = read_stats(&self.0, &host)?;
        // It goes file by file, and one controller after the other: what was read of the rest of it
        // is no figure.
        match self.0.gone() {
            Some(gone) => read_stats(&gone, &host),
            None => Ok(stats),
        }
    }

    /// The processes in the cgroup and in those below it, ascending (contract T70). Empty if the
    /// cgroup is gone: containerd takes an error for "no such container" (issue 13784).
    pub fn procs(&self) -> Vec<u32> {
        let dirs = self.dir().into_iter().flat_map(read::tree);
        let mut pids: Vec<u32> = dirs.flat_map(|dir| members(&dir)).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// The processes in the cgroup itself.
    pub fn members(&self) -> Vec<u32> {
        self.dir().map(members).unwrap_or_default()
    }

    /// What it may use of memory and has used, and its path; `None` without the controller.
    pub fn room(&self) -> Option<(PathBuf, Room)> {
        let dir = self.memory_dir()?;
        Some((dir.to_owned(), Room::of(dir)))
    }

    /// The directory of the controller of memory.
    fn memory_dir(&self) -> Option<&Path> {
        match &self.0 {
            Place::V1(dirs) => dirs.get("memory"),
            Place::V2 { dir, .. } => Some(dir),
        }
    }

    /// The directory that lists the processes.
    fn dir(&self) -> Option<&Path> {
        match &self.0 {
            // The first one is of a controller that every OCI runtime uses.
            Place::V1(dirs) => dirs.0.first().map(|(_, dir)| dir.as_path()),
            Place::V2 { dir, .. } => Some(dir),
        }
    }

    /// Whether its processes are frozen: one that joins them goes on no further either.
    pub fn is_frozen(&self) -> bool {
        match &self.0 {
            Place::V1(dirs) => dirs.0.iter().any(|(_, dir)| is_frozen(dir)),
            Place::V2 { dir, .. } => is_frozen(dir),
        }
    }

    /// Lets frozen processes go on: with version 1 not even SIGKILL ends one that is frozen.
    pub fn thaw(&self) {
        match &self.0 {
            Place::V1(dirs) => dirs.0.iter().for_each(|(_, dir)| thaw(dir)),
            Place::V2 { dir, .. } => thaw(dir),
        }
    }

    /// Describes the cgroup for another process image.
    pub fn hand_over(&self) -> handover::Cgroup {
        let named = |(name, dir): &(&str, PathBuf)| ((*name).to_owned(), dir.clone());
        match &self.0 {
            Place::V1(dirs) => handover::Cgroup::V1(dirs.0.iter().map(named).collect()),
            Place::V2 { root, dir } => handover::Cgroup::V2 {
                root: root.clone(),
                dir: dir.clone(),
            },
        }
    }

    /// The cgroup that another process image found.
    pub fn take_over(cgroup: handover::Cgroup) -> Self {
        Self(match cgroup {
            handover::Cgroup::V1(dirs) => Place::V1(find::Dirs::named(dirs)),
            handover::Cgroup::V2 { root, dir } => Place::V2 { root, dir },
        })
    }

    /// With version 2, gives the cgroup every controller that the root has, by enabling them in
    /// all cgroups above it. The error of the deepest one is returned, for the log: a delegated
    /// tree may not be written to further up.
    pub fn enable_controllers(&self) -> Result<(), Error> {
        let Place::V2 { root, dir } = &self.0 else {
            return Ok(());
        };
        let available = read::text(root, CONTROLLERS)?.unwrap_or_default();
        let mut above: Vec<&Path> = dir
            .ancestors()
            .skip(1)
            .take_while(|above| above.starts_with(root))
            .collect();
        above.reverse();
        let mut last = Ok(());
        for parent in above {
            last = enable(parent, &available);
        }
        last
    }
}

fn read_stats(place: &Place, host: &Host) -> Result<Any, Error> {
    Ok(match place {
        Place::V1(dirs) => any::pack(&stats_v1::read(dirs, host)?),
        Place::V2 { dir, .. } => any::pack(&stats_v2::read(dir, host)?),
    })
}

/// The processes in the cgroup at `dir`; none if it is gone.
fn members(dir: &Path) -> Vec<u32> {
    // A threaded cgroup of version 2 refuses: its processes are listed in its parent.
    let list = proc::text(dir.join("cgroup.procs")).unwrap_or_default();
    let pids = list.lines().filter_map(|pid| pid.parse().ok());
    // 0 stands for a process that our pid namespace does not have.
    pids.filter(|&pid| pid != 0).collect()
}

/// Whether processes in `dir` are frozen, or about to be.
fn is_frozen(dir: &Path) -> bool {
    let says = |file: &str, word: &str| proc::text(dir.join(file)).map(|text| text.trim() == word);
    let thawed = says("freezer.state", "THAWED").or_else(|_| says("cgroup.freeze", "0"));
    thawed.is_ok_and(|thawed| !thawed)
}

/// Thaws what is frozen in `dir`, of version 1 or 2.
fn thaw(dir: &Path) {
    for (file, thawed) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
        let file = dir.join(file);
        if file.exists() {
            let _ = fs::write(file, thawed);
        }
    }
}

/// Enables the `available` controllers in the cgroups right below `dir`. What is enabled already
/// is not written again: a write locks all cgroups of the host.
fn enable(dir: &Path, available: &str) -> Result<(), Error> {
    let enabled = read::text(dir, SUBTREE_CONTROL)?.unwrap_or_default();
    let missing = |name: &&str| !enabled.split_whitespace().any(|one| one == *name);
    let request: String = available
        .split_whitespace()
        .filter(missing)
        .map(|name| format!("+{name} "))
        .collect();
    if request.is_empty() {
        return Ok(());
    }
    let path = dir.join(SUBTREE_CONTROL);
    let written = File::options()
        .write(true)
        .open(&path)
        .and_then(|mut file| file.write_all(request.as_bytes()));
    written.map_err(|source| Error::Io { path, source })
}
