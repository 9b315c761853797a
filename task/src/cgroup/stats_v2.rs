// SPDX-License-Identifier: Apache-2.0
//! What a container has used, as its version 2 cgroup tells (contract T79).

use super::read::{Field, fields, huge_page_sizes, number, rdma, text, value};
use super::{Error, Host};
use protos::cgroups::v2::{
    CpuStat, HugeTlbStat, IoEntry, IoStat, MemoryEvents, MemoryStat, Metrics, PidsStat, PsiData,
    PsiStats, RdmaEntry, RdmaStat,
};
use std::path::Path;

#[cfg(test)]
mod tests;

const CPU: &[Field<CpuStat>] = &[
    ("usage_usec", |c| &mut c.usage_usec),
    ("user_usec", |c| &mut c.user_usec),
    ("system_usec", |c| &mut c.system_usec),
    ("nr_periods", |c| &mut c.nr_periods),
    ("nr_throttled", |c| &mut c.nr_throttled),
    ("throttled_usec", |c| &mut c.throttled_usec),
    ("nr_bursts", |c| &mut c.nr_bursts),
    ("burst_usec", |c| &mut c.burst_usec),
];

#[allow(deprecated, reason = "kernels before 5.9 have two fields more")]
const MEMORY: &[Field<MemoryStat>] = &[
    ("anon", |m| &mut m.anon),
    ("file", |m| &mut m.file),
    ("kernel_stack", |m| &mut m.kernel_stack),
    ("slab", |m| &mut m.slab),
    ("sock", |m| &mut m.sock),
    ("shmem", |m| &mut m.shmem),
    ("file_mapped", |m| &mut m.file_mapped),
    ("file_dirty", |m| &mut m.file_dirty),
    ("file_writeback", |m| &mut m.file_writeback),
    ("anon_thp", |m| &mut m.anon_thp),
    ("inactive_anon", |m| &mut m.inactive_anon),
    ("active_anon", |m| &mut m.active_anon),
    ("inactive_file", |m| &mut m.inactive_file),
    ("active_file", |m| &mut m.active_file),
    ("unevictable", |m| &mut m.unevictable),
    ("slab_reclaimable", |m| &mut m.slab_reclaimable),
    ("slab_unreclaimable", |m| &mut m.slab_unreclaimable),
    ("pgfault", |m| &mut m.pgfault),
    ("pgmajfault", |m| &mut m.pgmajfault),
    ("workingset_refault", |m| &mut m.workingset_refault),
    ("workingset_activate", |m| &mut m.workingset_activate),
    ("workingset_refault_anon", |m| {
        &mut m.workingset_refault_anon
    }),
    ("workingset_refault_file", |m| {
        &mut m.workingset_refault_file
    }),
    ("workingset_activate_anon", |m| {
        &mut m.workingset_activate_anon
    }),
    ("workingset_activate_file", |m| {
        &mut m.workingset_activate_file
    }),
    ("workingset_nodereclaim", |m| &mut m.workingset_nodereclaim),
    ("pgrefill", |m| &mut m.pgrefill),
    ("pgscan", |m| &mut m.pgscan),
    ("pgsteal", |m| &mut m.pgsteal),
    ("pgactivate", |m| &mut m.pgactivate),
    ("pgdeactivate", |m| &mut m.pgdeactivate),
    ("pglazyfree", |m| &mut m.pglazyfree),
    ("pglazyfreed", |m| &mut m.pglazyfreed),
    ("thp_fault_alloc", |m| &mut m.thp_fault_alloc),
    ("thp_collapse_alloc", |m| &mut m.thp_collapse_alloc),
];

/// Files of one number each.
const MEMORY_FILES: &[Field<MemoryStat>] = &[
    ("memory.current", |m| &mut m.usage),
    ("memory.max", |m| &mut m.usage_limit),
    ("memory.peak", |m| &mut m.max_usage),
    ("memory.swap.current", |m| &mut m.swap_usage),
    ("memory.swap.max", |m| &mut m.swap_limit),
    ("memory.swap.peak", |m| &mut m.swap_max_usage),
];

const EVENTS: &[Field<MemoryEvents>] = &[
    ("low", |e| &mut e.low),
    ("high", |e| &mut e.high),
    ("max", |e| &mut e.max),
    ("oom", |e| &mut e.oom),
    ("oom_kill", |e| &mut e.oom_kill),
    ("oom_group_kill", |e| &mut e.oom_group_kill),
];

const IO: &[Field<IoEntry>] = &[
    ("rbytes", |e| &mut e.rbytes),
    ("wbytes", |e| &mut e.wbytes),
    ("rios", |e| &mut e.rios),
    ("wios", |e| &mut e.wios),
];

/// All fields but `memory_events` are always there, as Go's shim has it. No limit is `u64::MAX`.
pub(super) fn read(dir: &Path, host: &Host) -> Result<Metrics, Error> {
    let file = |name| Ok::<_, Error>(number(dir, name, u64::MAX)?.unwrap_or_default());
    let entry = |device, hca_handles, hca_objects| RdmaEntry {
        device,
        hca_handles,
        hca_objects,
    };
    let rdma = |name| Ok::<_, Error>(rdma(dir, name, entry)?.unwrap_or_default());
    Ok(Metrics {
        pids: Some(PidsStat {
            current: file("pids.current")?,
            limit: file("pids.max")?,
        }),
        cpu: Some(cpu(dir)?),
        memory: Some(memory(dir)?),
        rdma: Some(RdmaStat {
            current: rdma("rdma.current")?,
            limit: rdma("rdma.max")?,
        }),
        io: Some(IoStat {
            usage: io(dir)?,
            psi: pressure(dir, "io.pressure")?,
        }),
        hugetlb: hugetlb(dir, host)?,
        memory_events: memory_events(dir)?,
        ..Metrics::default()
    })
}

/// Times in microseconds.
fn cpu(dir: &Path) -> Result<CpuStat, Error> {
    let mut cpu = CpuStat {
        psi: pressure(dir, "cpu.pressure")?,
        ..CpuStat::default()
    };
    fields(dir, "cpu.stat", CPU, &mut cpu)?;
    Ok(cpu)
}

/// Numbers in bytes or events.
fn memory(dir: &Path) -> Result<MemoryStat, Error> {
    let mut memory = MemoryStat {
        psi: pressure(dir, "memory.pressure")?,
        ..MemoryStat::default()
    };
    fields(dir, "memory.stat", MEMORY, &mut memory)?;
    for (name, field) in MEMORY_FILES {
        *field(&mut memory) = number(dir, name, u64::MAX)?.unwrap_or_default();
    }
    Ok(memory)
}

/// How often the container, with all below it, met its limits; `None` without the controller.
pub(super) fn memory_events(dir: &Path) -> Result<Option<MemoryEvents>, Error> {
    let mut events = MemoryEvents::default();
    Ok(fields(dir, "memory.events", EVENTS, &mut events)?.then_some(events))
}

/// The lines `<major>:<minor> <name>=<number>...` of io.stat; others are left out. Some kernels
/// put a device without numbers on the line of the next one: the numbers are the last one's.
fn io(dir: &Path) -> Result<Vec<IoEntry>, Error> {
    let text = text(dir, "io.stat")?.unwrap_or_default();
    let entry = |line: &str| {
        let mut entry = None;
        for part in line.split_whitespace() {
            if let Some((name, number)) = part.split_once('=') {
                if let Some((_, field)) = IO.iter().find(|(known, _)| *known == name) {
                    *field(entry.as_mut()?) = number.parse().ok()?;
                }
            } else {
                let (major, minor) = part.split_once(':')?;
                let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
                entry = Some(IoEntry {
                    major,
                    minor,
                    ..IoEntry::default()
                });
            }
        }
        entry
    };
    Ok(text.lines().filter_map(entry).collect())
}

/// Pressure stall information: lines `some|full avg10=<%> avg60=<%> avg300=<%> total=<usec>`;
/// `None` if the kernel does not keep it.
fn pressure(dir: &Path, file: &str) -> Result<Option<PsiStats>, Error> {
    let Some(text) = text(dir, file)? else {
        return Ok(None);
    };
    let mut stats = PsiStats::default();
    for line in text.lines() {
        let (kind, numbers) = line.split_once(' ').unwrap_or((line, ""));
        let place = match kind {
            "some" => &mut stats.some,
            "full" => &mut stats.full,
            _ => continue,
        };
        let number = |name| numbers.split(' ').find_map(|part| part.strip_prefix(name));
        let average = |name| {
            number(name)
                .and_then(|text| text.parse().ok())
                .unwrap_or_default()
        };
        *place = Some(PsiData {
            avg10: average("avg10="),
            avg60: average("avg60="),
            avg300: average("avg300="),
            total: number("total=").map_or(Ok(0), |text| value(dir, file, text))?,
        });
    }
    Ok(Some(stats))
}

/// An entry for every size the host has, with zeros where the controller is not enabled.
fn hugetlb(dir: &Path, host: &Host) -> Result<Vec<HugeTlbStat>, Error> {
    let stat = |pagesize: String| {
        let file = |what: &str| number(dir, &format!("hugetlb.{pagesize}.{what}"), u64::MAX);
        let current = file("current")?.unwrap_or_default();
        let max = file("max")?.unwrap_or_default();
        let mut failcnt = 0;
        let events = format!("hugetlb.{pagesize}.events");
        fields(dir, &events, &[("max", |count| count)], &mut failcnt)?;
        Ok(HugeTlbStat {
            current,
            max,
            pagesize,
            failcnt,
        })
    };
    huge_page_sizes(host.hugepages)
        .into_iter()
        .map(stat)
        .collect()
}
