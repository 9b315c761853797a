// SPDX-License-Identifier: Apache-2.0
//! The directory of one VM in /run, and who its processes are: what `delete` finds when the shim
//! is gone.

use crate::skeleton::Skeleton;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use task::aside;
use task::cgroup::Remains;
use task::proc::started;
use task::record;
use task::sys;
use tokio::io::Interest;

/// What is ours on this machine, `dunnage`'s too, whose clients must be able to go through it.
const RUN: &str = "/run/dunnage";
const RUN_MODE: u32 = 0o711;
/// Where VMs are.
const ROOT: &str = "/run/dunnage/vm";
const PROCESSES: &str = "processes.json";
/// How long a killed process may take to be gone.
const GONE: Duration = Duration::from_secs(3);

/// The directory of the VM that container `id` of `namespace` was the first in.
pub fn of(namespace: &str, id: &str) -> PathBuf {
    let digest = Sha256::digest(format!("{namespace}/{id}"));
    let name: String = digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Path::new(ROOT).join(name)
}

/// Makes [`RUN`], if nobody has: its mode is the same whoever comes first, and whatever the umask.
///
/// # Errors
/// If it can't be made.
pub fn make_run() -> io::Result<()> {
    match fs::DirBuilder::new().mode(RUN_MODE).create(RUN) {
        Ok(()) => fs::set_permissions(RUN, fs::Permissions::from_mode(RUN_MODE)),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
}

/// Makes it, empty.
///
/// # Errors
/// If it can't be made.
pub fn make(dir: &Path) -> io::Result<()> {
    make_run()?;
    remove(dir)?;
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(dir)
}

/// Makes it of the place `from`, with all that is in it; what was there before is gone.
///
/// # Errors
/// If it can't be moved, or is none.
pub fn move_to(from: &Path, dir: &Path) -> io::Result<()> {
    remove(dir)?;
    if let Some(root) = dir.parent() {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(root)?;
    }
    fs::rename(from, dir)
}

/// Removes it, and what is directly in it: what is mounted there is unmounted, and no directory is
/// emptied. Nothing may be there.
fn remove(dir: &Path) -> io::Result<()> {
    let emptied = match Skeleton::open(dir) {
        Ok(inside) => inside.clear_all(),
        Err(Errno::ENOENT) => return Ok(()),
        Err(errno) => Err(errno.into()),
    };
    emptied.and_then(|()| fs::remove_dir(dir))
}

/// A process that is not mistaken for another that has its pid later.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Process {
    pid: u32,
    /// When it was started, in clock ticks since boot (proc_pid_stat(5)).
    started: u64,
}

/// What is written down of a VM.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    processes: Vec<Process>,
    /// Who would bring its shim back, if somebody does.
    #[serde(default)]
    keeper: Option<Process>,
    netns: Option<PathBuf>,
    #[serde(default)]
    cgroup: Option<PathBuf>,
}

/// What a VM has of the host's, beside its processes.
#[derive(Clone, Debug, Default)]
pub struct Holds {
    pub netns: Option<PathBuf>,
    /// As for [`Remains::find`].
    pub cgroup: Option<PathBuf>,
}

/// Writes down who the VM's processes are, and what it holds.
///
/// # Errors
/// If it can't be written.
pub fn record(dir: &Path, pids: &[u32], holds: &Holds) -> io::Result<()> {
    let known = |&pid: &u32| {
        let started = started(pid)?;
        Some(Process { pid, started })
    };
    let record = Record {
        processes: pids.iter().filter_map(known).collect(),
        keeper: record::is_kept()
            .then(|| known(&std::os::unix::process::parent_id()))
            .flatten(),
        netns: holds.netns.clone(),
        cgroup: holds.cgroup.clone(),
    };
    task::bundle::write_private(&dir.join(PROCESSES), &serde_json::to_vec(&record)?)
}

impl Process {
    /// Kills it, if it is there, and waits until it is gone.
    async fn end(&self) -> io::Result<()> {
        let Ok(pidfd) = sys::pidfd(self.pid) else {
            return Ok(());
        };
        // Held now: so it is this very process that is asked, and killed.
        if started(self.pid) != Some(self.started) {
            return Ok(());
        }
        sys::pidfd_kill(&pidfd)?;
        gone(pidfd).await
    }
}

fn read(dir: &Path) -> Record {
    match fs::read(dir.join(PROCESSES)) {
        Ok(json) => serde_json::from_slice(&json).unwrap_or_default(),
        Err(_) => Record::default(),
    }
}

/// Ends who would bring back the shim of the VM at `dir`, and with it one that is back already.
///
/// # Errors
/// If it resists.
pub async fn end_keeper(dir: &Path) -> io::Result<()> {
    match read(dir).keeper {
        Some(keeper) => keeper.end().await,
        None => Ok(()),
    }
}

/// Ends what is left of the VM at `dir`, and waits until it is gone; the network namespace that
/// it was connected to comes back, its cgroup is removed. Nothing may be there.
///
/// # Errors
/// If something resists.
pub async fn clear(dir: &Path) -> io::Result<Option<PathBuf>> {
    let record = read(dir);
    for process in &record.processes {
        process.end().await?;
    }
    if let Some(cgroup) = &record.cgroup
        && !Remains::find(cgroup, &[]).remove_empty().await
    {
        log::warn!(
            "cgroup {}: somebody else is in it, it stays",
            cgroup.display()
        );
    }
    // Something of a container's may be mounted there still, on whatever disk.
    let dir = dir.to_owned();
    let removed = aside::run(move || remove(&dir)).await;
    removed.map(|()| record.netns)
}

/// Waits until the process has ended.
async fn gone(pidfd: OwnedFd) -> io::Result<()> {
    let pidfd = sys::watch(pidfd, Interest::READABLE)?;
    match tokio::time::timeout(GONE, pidfd.readable()).await {
        Ok(ready) => ready.map(drop),
        Err(_) => Err(io::Error::other("a process of the VM can't be killed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_process_that_was_meant_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let vm = dir.path().join("vm");
        make(&vm).unwrap();
        let mut ours = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let holds = Holds {
            netns: Some("/n".into()),
            cgroup: None,
        };
        record(&vm, &[ours.id()], &holds).unwrap();
        let json = fs::read_to_string(vm.join(PROCESSES)).unwrap();
        let other = started(ours.id()).unwrap() + 1;
        let mut wrong: Record = serde_json::from_str(&json).unwrap();
        wrong.processes[0].started = other;
        fs::write(vm.join(PROCESSES), serde_json::to_vec(&wrong).unwrap()).unwrap();
        clear(&vm).await.unwrap();
        assert!(!vm.exists());
        assert_eq!(started(ours.id()), Some(other - 1), "it was not the one");
        make(&vm).unwrap();
        fs::write(vm.join(PROCESSES), json).unwrap();
        assert_eq!(clear(&vm).await.unwrap().as_deref(), Some(Path::new("/n")));
        #[allow(clippy::disallowed_methods, reason = "a child of the test")]
        let status = ours.wait().unwrap();
        assert!(!status.success());
        clear(&vm).await.unwrap();
    }

    #[test]
    fn each_container_has_a_place_of_its_own() {
        assert_ne!(of("a", "b"), of("a", "c"));
        assert_eq!(of("a", "b"), of("a", "b"));
    }
}
