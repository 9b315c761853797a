// SPDX-License-Identifier: Apache-2.0
//! What the limits of all containers in a VM come to, and what of it is written into which file.

use super::Pod;
use crate::block::{self, Throttle};
use crate::jail;
use crate::limits::{Limits, PERIOD, Setting, bound};

/// What cpu.shares may be (kernel/sched/sched.h).
const SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;

/// The threads of QEMU and of the file server, which has a few. A container's processes are the
/// guest's, and none of these: so they never lack one for what the containers do.
const THREADS: u64 = 2 * jail::THREADS;
/// What pids.max may be (kernel/cgroup/pids.c); more than that is no limit.
const MOST_PIDS: u64 = 1 << 22;

impl Pod {
    /// The sum of what all containers say; `None` if one of them says nothing of it.
    fn sum(&self, of: impl Fn(&Limits) -> Option<u64>) -> Option<u64> {
        let containers = self.containers.borrow();
        let each: Option<Vec<u64>> = containers.values().map(of).collect();
        Some(each?.into_iter().fold(0, u64::saturating_add))
    }

    /// The throttles that are to be set, and those that are set and are to be none.
    pub(super) fn throttles(&self) -> Vec<(Throttle, Option<u64>)> {
        let mut all = self.throttled.borrow().clone();
        for limits in self.containers.borrow().values() {
            all.extend(limits.block.throttles.keys());
        }
        let rate = |throttle: &Throttle| {
            self.sum(|limits| bound(limits.block.throttles.get(throttle).copied()))
        };
        let all = all.into_iter().map(|throttle| (throttle, rate(&throttle)));
        let throttled = self.throttled.borrow();
        all.filter(|(throttle, rate)| rate.is_some() || throttled.contains(throttle))
            .collect()
    }

    /// What the limits of all containers come to, in the order in which it is written.
    pub(super) fn settings(&self) -> Vec<Setting> {
        let mut settings = self.of_memory();
        let pids = self.plus(|limits| bound(limits.pids), THREADS);
        let pids = pids.filter(|&pids| pids <= MOST_PIDS);
        let names = ("pids.max", "pids.max");
        settings.push(setting(
            names,
            text(pids, "max"),
            text(pids, "max"),
            pids.is_some(),
        ));
        let weight = self.sum(|limits| bound(limits.block.weight));
        settings.extend(weight.filter(|&sum| sum > 0).map(block::weight));
        settings.extend(self.of_time());
        let list = |of: fn(&Limits) -> Option<&str>| {
            let containers = self.containers.borrow();
            let each: Option<Vec<&str>> = containers.values().map(of).collect();
            each.filter(|each| !each.is_empty())
                .map(|each| each.join(","))
        };
        let lists = [
            ("cpuset.cpus", list(|limits| limits.cpus.as_deref())),
            ("cpuset.mems", list(|limits| limits.mems.as_deref())),
        ];
        let lists = lists
            .into_iter()
            .filter_map(|(file, list)| Some((file, list?)));
        settings.extend(lists.map(|(file, list)| Setting {
            files: vec![(file, list)],
            needed: true,
        }));
        settings
    }

    /// [`Pod::sum`], and what the VM itself needs.
    fn plus(&self, of: impl Fn(&Limits) -> Option<u64>, more: u64) -> Option<u64> {
        Some(self.sum(of)?.saturating_add(more))
    }

    /// Of memory, and of swap.
    fn of_memory(&self) -> Vec<Setting> {
        let needs = self.plus(|limits| bound(limits.memory), self.overhead.memory);
        let memory = match (self.memory.get(), needs) {
            (Some(had), Some(needs)) => Some(had.max(needs)),
            _ => None,
        };
        self.memory.set(memory);
        let of_swap = |both: Option<u64>, swap: Option<u64>| {
            let names = ("memory.memsw.limit_in_bytes", "memory.swap.max");
            let needed = swap.is_some_and(|swap| swap > 0);
            setting(names, text(both, "-1"), text(swap, "max"), needed)
        };
        let names = ("memory.limit_in_bytes", "memory.max");
        let of_memory = setting(
            names,
            text(memory, "-1"),
            text(memory, "max"),
            memory.is_some(),
        );
        // With version 1 the limit of both may not be less than that of memory, which is raised first.
        let mut settings = vec![of_swap(None, None), of_memory];
        let swap = self.sum(Limits::swapped);
        if swap.is_some() {
            let both = memory.and_then(|memory| Some(memory.saturating_add(swap?)));
            settings.push(of_swap(both, swap));
        }
        settings
    }

    /// Of the processors' time: the share, and once the VM is up the quota.
    fn of_time(&self) -> Vec<Setting> {
        let mut settings = Vec::new();
        let shares = self.sum(|limits| bound(limits.shares));
        if let Some(shares) = shares.filter(|&shares| shares > 0) {
            let shares = shares.clamp(*SHARES.start(), *SHARES.end());
            // As runc does: the range of shares to that of weights.
            let weight = 1 + (shares - 2) * 9999 / (SHARES.end() - 2);
            let names = ("cpu.shares", "cpu.weight");
            settings.push(setting(names, shares.to_string(), weight.to_string(), true));
        }
        if self.up.get() {
            let quota = self.plus(|limits| bound(limits.quota), self.overhead.cpu);
            let max = format!("{} {PERIOD}", text(quota, "max"));
            let names = ("cpu.cfs_quota_us", "cpu.max");
            settings.push(setting(names, text(quota, "-1"), max, quota.is_some()));
        }
        settings
    }
}

/// The same for both versions of cgroups, by the names of their files.
fn setting(names: (&'static str, &'static str), v1: String, v2: String, needed: bool) -> Setting {
    Setting {
        files: vec![(names.0, v1), (names.1, v2)],
        needed,
    }
}

/// A limit, or the word for none.
fn text(limit: Option<u64>, none: &str) -> String {
    limit.map_or_else(|| none.to_owned(), |limit| limit.to_string())
}
