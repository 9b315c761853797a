// SPDX-License-Identifier: Apache-2.0
//! The cgroup of the host's that a VM is in: the one that its first container's config.json names,
//! with the limits of all containers in the VM, and with what the VM needs beside them.
//!
//! The processes are moved there while QEMU boots, because to move one takes the kernel up to 20 ms,
//! and before the guest has said a word. Quotas of time count once it is up: a boot is not the
//! container's work. The limit of memory is only ever raised: what a guest has had of the host's
//! memory it does not give back, and a limit below that would be its end.

mod handover;
mod settings;

pub use handover::Moved;

use crate::block::Throttle;
use crate::limits::{Limits, Place, named, write};
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use task::aside;
use task::cgroup::{Cgroup, OomWatch, Remains};

/// What a VM needs beside its containers' limits.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Overhead {
    /// In bytes.
    pub memory: u64,
    /// In microseconds of each [`PERIOD`](crate::limits::PERIOD).
    pub cpu: u64,
}

/// The cgroup of a VM.
pub struct Pod {
    /// One directory with version 2, one for each hierarchy with version 1; none without a cgroup.
    dirs: Vec<PathBuf>,
    overhead: Overhead,
    oom_score_adj: Option<i64>,
    containers: RefCell<BTreeMap<String, Limits>>,
    /// The limit of memory that counts, in bytes; `None`: none.
    memory: Cell<Option<u64>>,
    /// Those that are set.
    throttled: RefCell<BTreeSet<Throttle>>,
    /// The VM has booted.
    up: Cell<bool>,
    watch: RefCell<Option<Rc<OomWatch>>>,
}

impl Pod {
    /// Watches the cgroup of `pid`, of whose OOM kills so many were told.
    fn watch_oom(&self, pid: u32, published: u64) {
        let watched = Cgroup::of_pid(pid).map_err(io::Error::other);
        match watched.and_then(|cgroup| OomWatch::new(&cgroup)) {
            Ok(watch) => {
                watch.set_published(published);
                self.watch.replace(Some(Rc::new(watch)));
            }
            Err(e) => log::warn!("running out of memory will not be told: {e}"),
        }
    }

    /// Makes the cgroup, with the limits of the VM's first container.
    ///
    /// # Errors
    /// If it can't be made, or its limits can't be set.
    pub async fn make(place: &Place, overhead: Overhead) -> Result<Self, String> {
        let dirs = match &place.cgroup {
            None => Vec::new(),
            Some(path) => {
                let dirs = Remains::find(path, &[]).dirs().to_vec();
                if dirs.is_empty() {
                    let path = path.display();
                    return Err(format!("cgroup {path}: there is no place for it here"));
                }
                dirs
            }
        };
        let pod = Self {
            dirs,
            overhead,
            oom_score_adj: place.oom_score_adj,
            containers: RefCell::default(),
            memory: Cell::new(Some(0)),
            throttled: RefCell::default(),
            up: Cell::new(false),
            watch: RefCell::default(),
        };
        let dirs = pod.dirs.clone();
        let alone = dirs.len() == 1;
        let made = aside::run(move || dirs.iter().try_for_each(|dir| make(dir, alone))).await;
        made.map_err(|e| e.to_string())?;
        pod.set(place).await?;
        Ok(pod)
    }

    /// Moves these processes of the VM's there, and watches from now on.
    ///
    /// # Errors
    /// If one can't be moved.
    pub async fn join(&self, pids: [u32; 2]) -> Result<(), String> {
        let (dirs, score) = (self.dirs.clone(), self.oom_score_adj);
        let moved = aside::run(move || {
            for pid in pids {
                let process = PathBuf::from(format!("/proc/{pid}"));
                let score = score.map(|score| (process.join("oom_score_adj"), score.to_string()));
                let cgroups = dirs.iter().map(|dir| dir.join("cgroup.procs"));
                let cgroups = cgroups.map(|procs| (procs, pid.to_string()));
                for (file, value) in score.into_iter().chain(cgroups) {
                    match write(&file, &value) {
                        // It has ended, and whoever waits for it says so.
                        Err(_) if !process.exists() => {}
                        written => written?,
                    }
                }
            }
            Ok::<(), io::Error>(())
        });
        moved.await.map_err(|e| e.to_string())?;
        if !self.dirs.is_empty() {
            self.watch_oom(pids[0], 0);
        }
        Ok(())
    }

    /// The VM has booted: all limits count.
    ///
    /// # Errors
    /// If they can't be set.
    pub async fn up(&self) -> Result<(), String> {
        self.up.set(true);
        self.apply().await
    }

    /// A container is in the VM, or will be, with its limits.
    ///
    /// # Errors
    /// If they can't be set.
    pub async fn set(&self, place: &Place) -> Result<(), String> {
        let (id, limits) = (place.id.clone(), place.limits.clone());
        self.containers.borrow_mut().insert(id, limits);
        self.apply().await
    }

    /// The limits of container `id` with what an Update sets.
    ///
    /// # Errors
    /// If they can't be.
    pub fn updated(&self, id: &str, update: &Limits) -> Result<Limits, String> {
        let containers = self.containers.borrow();
        let limits = containers.get(id);
        limits.map_or_else(|| Ok(update.clone()), |limits| limits.updated(update))
    }

    /// Container `id` has these limits from now on.
    ///
    /// # Errors
    /// If they can't be set; then it has those that it had.
    pub async fn update(&self, id: &str, limits: Limits) -> Result<(), String> {
        let exchange = |limits| {
            let mut containers = self.containers.borrow_mut();
            Some(std::mem::replace(containers.get_mut(id)?, limits))
        };
        let Some(had) = exchange(limits) else {
            return Ok(());
        };
        let set = self.apply().await;
        if set.is_err() {
            exchange(had);
            if let Err(why) = self.apply().await {
                log::warn!("{id}: limits of the VM: {why}");
            }
        }
        set
    }

    /// Container `id` is no longer in the VM.
    ///
    /// # Errors
    /// If what is left can't be set.
    pub async fn remove(&self, id: &str) -> Result<(), String> {
        self.containers.borrow_mut().remove(id);
        self.apply().await
    }

    async fn apply(&self) -> Result<(), String> {
        let (settings, throttles) = (self.settings(), self.throttles());
        let dirs = self.dirs.clone();
        let work = aside::run(move || {
            let mut set = Vec::new();
            let all = || {
                settings.iter().try_for_each(|each| each.apply(&dirs))?;
                throttles.into_iter().try_for_each(|(throttle, rate)| {
                    throttle.setting(rate).apply(&dirs)?;
                    set.push((throttle, rate.is_some()));
                    Ok(())
                })
            };
            let done: io::Result<()> = all();
            (set, done)
        });
        let (set, done) = work.await;
        let mut throttled = self.throttled.borrow_mut();
        for (throttle, is_set) in set {
            if is_set {
                throttled.insert(throttle);
            } else {
                throttled.remove(&throttle);
            }
        }
        done.map_err(|e| e.to_string())
    }

    /// Waits until the kernel has killed a process of the VM's for lack of memory; for ever if it
    /// never will.
    pub async fn oom(&self) {
        let watch = self.watch.borrow().clone();
        match watch {
            Some(watch) if watch.next().await.is_some() => {}
            _ => std::future::pending().await,
        }
    }

    /// Whether there was a kill that [`Pod::oom`] has not told of; from now on it was.
    pub fn had_oom(&self) -> bool {
        let watch = self.watch.borrow().clone();
        watch.is_some_and(|watch| watch.flush())
    }
}

/// Makes the cgroup at `dir`, and those above it; `alone`: it is the VM's only one.
fn make(dir: &Path, alone: bool) -> io::Result<()> {
    let missing = dir.ancestors().take_while(|dir| !dir.exists());
    let missing: Vec<&Path> = missing.collect();
    for dir in missing.into_iter().rev() {
        match fs::create_dir(dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(named(dir, "mkdir", &e));
            }
            _ => inherit_cpus(dir)?,
        }
    }
    // Version 2: what may be limited here is said above. Beside version 1 it limits nothing.
    let is_v2 = |dir: &&Path| alone && dir.join("cgroup.controllers").exists();
    if let Some(root) = dir.ancestors().take_while(is_v2).last() {
        let (root, dir) = (root.to_owned(), dir.to_owned());
        let cgroup = Cgroup::take_over(task::handover::Cgroup::V2 { root, dir });
        if let Err(e) = cgroup.enable_controllers() {
            log::debug!("{e}");
        }
    }
    Ok(())
}

/// A new cpuset of version 1 has no processors, and nobody can be in it.
fn inherit_cpus(dir: &Path) -> io::Result<()> {
    if dir.join("cgroup.controllers").exists() {
        return Ok(());
    }
    let above = dir.parent().unwrap_or(dir);
    for name in ["cpuset.cpus", "cpuset.mems"] {
        if let Ok(list) = task::proc::text(above.join(name)) {
            write(&dir.join(name), list.trim())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
