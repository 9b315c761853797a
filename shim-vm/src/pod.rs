//! The cgroup of the host's that a VM is in: the one that its first container's config.json names,
//! with the limits of all containers in the VM, and with what the VM needs beside them.
//!
//! The processes are moved there while QEMU boots, because to move one takes the kernel up to 20 ms,
//! and before the guest has said a word. Quotas of time count once it is up: a boot is not the
//! container's work. The limit of memory is only ever raised: what a guest has had of the host's
//! memory it does not give back, and a limit below that would be its end.

use crate::limits::{Limits, PERIOD, Place, Setting, named, write};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use task::aside;
use task::cgroup::{Cgroup, OomWatch, Remains};
use task::handover;

/// What cpu.shares may be (kernel/sched/sched.h).
const SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;

/// What a VM needs beside its containers' limits.
#[derive(Clone, Copy, Debug)]
pub struct Overhead {
    /// In bytes.
    pub memory: u64,
    /// In microseconds of each [`PERIOD`].
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
    /// The VM has booted.
    up: Cell<bool>,
    watch: RefCell<Option<Rc<OomWatch>>>,
}

impl Pod {
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
        if self.dirs.is_empty() {
            return Ok(());
        }
        let watched = Cgroup::of_pid(pids[0]).map_err(io::Error::other);
        match watched.and_then(|cgroup| OomWatch::new(&cgroup)) {
            Ok(watch) => drop(self.watch.replace(Some(Rc::new(watch)))),
            Err(e) => log::warn!("running out of memory will not be told: {e}"),
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

    /// An Update of container `id`.
    ///
    /// # Errors
    /// If the limits can't be set.
    pub async fn update(&self, id: &str, update: &Limits) -> Result<(), String> {
        if let Some(limits) = self.containers.borrow_mut().get_mut(id) {
            *limits = limits.updated(update);
        }
        self.apply().await
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
        let settings = self.settings();
        let dirs = self.dirs.clone();
        let written =
            aside::run(move || settings.iter().try_for_each(|setting| setting.apply(&dirs)));
        written.await.map_err(|e| e.to_string())
    }

    /// What the limits of all containers come to.
    fn settings(&self) -> Vec<Setting> {
        let containers = self.containers.borrow();
        let all: Vec<&Limits> = containers.values().collect();
        let sum = |of: fn(&Limits) -> Option<u64>, more: u64| {
            let each: Option<Vec<u64>> = all.iter().map(|limits| of(limits)).collect();
            let total = each?.into_iter().fold(0, u64::saturating_add);
            Some(total.saturating_add(more))
        };
        let text = |limit: Option<u64>, none: &str| {
            limit.map_or_else(|| none.to_owned(), |limit| limit.to_string())
        };
        let needs = sum(|limits| limits.memory, self.overhead.memory);
        let memory = match (self.memory.get(), needs) {
            (Some(had), Some(needs)) => Some(had.max(needs)),
            _ => None,
        };
        self.memory.set(memory);
        let mut settings = vec![Setting {
            v1: ("memory.limit_in_bytes", text(memory, "-1")),
            v2: ("memory.max", text(memory, "max")),
            needed: memory.is_some(),
        }];
        if let Some(shares) = sum(|limits| limits.shares, 0).filter(|&shares| shares > 0) {
            let shares = shares.clamp(*SHARES.start(), *SHARES.end());
            // As runc does: the range of shares to that of weights.
            let weight = 1 + (shares - 2) * 9999 / (SHARES.end() - 2);
            settings.push(Setting {
                v1: ("cpu.shares", shares.to_string()),
                v2: ("cpu.weight", weight.to_string()),
                needed: true,
            });
        }
        if self.up.get() {
            let quota = sum(|limits| limits.quota, self.overhead.cpu);
            settings.push(Setting {
                v1: ("cpu.cfs_quota_us", text(quota, "-1")),
                v2: ("cpu.max", format!("{} {PERIOD}", text(quota, "max"))),
                needed: quota.is_some(),
            });
        }
        let list = |of: fn(&Limits) -> Option<&str>| {
            let each: Option<Vec<&str>> = all.iter().map(|limits| of(limits)).collect();
            each.filter(|each| !each.is_empty())
        };
        for (file, lists) in [
            ("cpuset.cpus", list(|limits| limits.cpus.as_deref())),
            ("cpuset.mems", list(|limits| limits.mems.as_deref())),
        ] {
            if let Some(lists) = lists {
                let value = (file, lists.join(","));
                settings.push(Setting {
                    v1: value.clone(),
                    v2: value,
                    needed: true,
                });
            }
        }
        settings
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
        let cgroup = Cgroup::take_over(handover::Cgroup::V2 { root, dir });
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
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod() -> Pod {
        Pod {
            dirs: Vec::new(),
            overhead: Overhead {
                memory: 100,
                cpu: 25_000,
            },
            oom_score_adj: None,
            containers: RefCell::default(),
            memory: Cell::new(Some(0)),
            up: Cell::new(true),
            watch: RefCell::default(),
        }
    }

    /// The files of version 1 and 2 and what is written there.
    fn written(pod: &Pod) -> Vec<String> {
        let line = |(name, value): (&str, String)| format!("{name} {value}");
        let settings = pod.settings().into_iter();
        settings.flat_map(|s| [line(s.v1), line(s.v2)]).collect()
    }

    #[test]
    fn a_pods_limits_are_those_of_its_containers_and_the_vms() {
        let pod = pod();
        let insert = |id: &str, resources: Value| {
            let limits = Limits::of(&resources);
            pod.containers.borrow_mut().insert(id.into(), limits);
        };
        insert(
            "a",
            json!({"memory": {"limit": 1000},
            "cpu": {"quota": 50_000, "period": 50_000, "shares": 1024, "cpus": "0"}}),
        );
        insert(
            "b",
            json!({"memory": {"limit": 500}, "cpu": {"quota": 20_000, "cpus": "2-3"}}),
        );
        let expected = [
            "memory.limit_in_bytes 1600",
            "memory.max 1600",
            "cpu.cfs_quota_us 145000",
            "cpu.max 145000 100000",
            "cpuset.cpus 0,2-3",
            "cpuset.cpus 0,2-3",
        ];
        assert_eq!(written(&pod), expected, "b has no share that it names");
        pod.containers.borrow_mut().remove("b");
        let alone = written(&pod);
        assert_eq!(alone[0], "memory.limit_in_bytes 1600", "never lowered");
        assert_eq!(alone[2..4], ["cpu.shares 1024", "cpu.weight 39"]);
        insert("c", json!({}));
        let all = ["memory.limit_in_bytes -1", "memory.max max"];
        assert_eq!(written(&pod)[..2], all, "c has no limit");
        pod.containers.borrow_mut().remove("c");
        assert_eq!(written(&pod)[..2], all, "what was had stays");
    }
}
