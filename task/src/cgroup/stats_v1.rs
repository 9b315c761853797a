// SPDX-License-Identifier: Apache-2.0
//! What a container has used, as the version 1 controllers tell (contract T79).

use super::find::Dirs;
use super::read::{Field, fields, huge_page_sizes, number, rdma, text, unexpected, value};
use super::{Error, Host};
use crate::proc;
use protos::cgroups::v1::{
    BlkIoEntry, BlkIoStat, CpuStat, CpuUsage, HugetlbStat, MemoryEntry, MemoryOomControl,
    MemoryStat, Metrics, PidsStat, RdmaEntry, RdmaStat, Throttle,
};
use std::path::Path;

#[cfg(test)]
mod tests;

/// Nanoseconds in a tick of cpuacct.stat: USER_HZ is 100 for every program (kernel:
/// asm-generic/param.h), whatever the kernel's own clock does.
const NANOSECONDS_PER_TICK: u64 = 10_000_000;

const THROTTLE: &[Field<Throttle>] = &[
    ("nr_periods", |t| &mut t.periods),
    ("nr_throttled", |t| &mut t.throttled_periods),
    ("throttled_time", |t| &mut t.throttled_time),
];

const USAGE: &[Field<CpuUsage>] = &[("user", |u| &mut u.user), ("system", |u| &mut u.kernel)];

const MEMORY: &[Field<MemoryStat>] = &[
    ("cache", |m| &mut m.cache),
    ("rss", |m| &mut m.rss),
    ("rss_huge", |m| &mut m.rss_huge),
    ("mapped_file", |m| &mut m.mapped_file),
    ("dirty", |m| &mut m.dirty),
    ("writeback", |m| &mut m.writeback),
    ("pgpgin", |m| &mut m.pg_pg_in),
    ("pgpgout", |m| &mut m.pg_pg_out),
    ("pgfault", |m| &mut m.pg_fault),
    ("pgmajfault", |m| &mut m.pg_maj_fault),
    ("inactive_anon", |m| &mut m.inactive_anon),
    ("active_anon", |m| &mut m.active_anon),
    ("inactive_file", |m| &mut m.inactive_file),
    ("active_file", |m| &mut m.active_file),
    ("unevictable", |m| &mut m.unevictable),
    ("hierarchical_memory_limit", |m| {
        &mut m.hierarchical_memory_limit
    }),
    ("hierarchical_memsw_limit", |m| {
        &mut m.hierarchical_swap_limit
    }),
    ("total_cache", |m| &mut m.total_cache),
    ("total_rss", |m| &mut m.total_rss),
    ("total_rss_huge", |m| &mut m.total_rss_huge),
    ("total_mapped_file", |m| &mut m.total_mapped_file),
    ("total_dirty", |m| &mut m.total_dirty),
    ("total_writeback", |m| &mut m.total_writeback),
    ("total_pgpgin", |m| &mut m.total_pg_pg_in),
    ("total_pgpgout", |m| &mut m.total_pg_pg_out),
    ("total_pgfault", |m| &mut m.total_pg_fault),
    ("total_pgmajfault", |m| &mut m.total_pg_maj_fault),
    ("total_inactive_anon", |m| &mut m.total_inactive_anon),
    ("total_active_anon", |m| &mut m.total_active_anon),
    ("total_inactive_file", |m| &mut m.total_inactive_file),
    ("total_active_file", |m| &mut m.total_active_file),
    ("total_unevictable", |m| &mut m.total_unevictable),
];

pub(super) const OOM_CONTROL: &[Field<MemoryOomControl>] = &[
    ("oom_kill_disable", |o| &mut o.oom_kill_disable),
    ("under_oom", |o| &mut o.under_oom),
    ("oom_kill", |o| &mut o.oom_kill),
];

type Devices = fn(&mut BlkIoStat) -> &mut Vec<BlkIoEntry>;

/// What the CFQ scheduler counts.
const CFQ: &[(&str, Devices)] = &[
    ("blkio.io_service_bytes_recursive", |b| {
        &mut b.io_service_bytes_recursive
    }),
    ("blkio.io_serviced_recursive", |b| {
        &mut b.io_serviced_recursive
    }),
    ("blkio.io_queued_recursive", |b| &mut b.io_queued_recursive),
    ("blkio.io_service_time_recursive", |b| {
        &mut b.io_service_time_recursive
    }),
    ("blkio.io_wait_time_recursive", |b| {
        &mut b.io_wait_time_recursive
    }),
    ("blkio.io_merged_recursive", |b| &mut b.io_merged_recursive),
    ("blkio.time_recursive", |b| &mut b.io_time_recursive),
    ("blkio.sectors_recursive", |b| &mut b.sectors_recursive),
];

/// What throttling counts, in the fields of the same meaning.
const THROTTLED: &[(&str, Devices)] = &[
    ("blkio.throttle.io_service_bytes", |b| {
        &mut b.io_service_bytes_recursive
    }),
    ("blkio.throttle.io_serviced", |b| {
        &mut b.io_serviced_recursive
    }),
];

/// A field for each controller that the container has; `cpu` always, as Go's shim does.
pub(super) fn read(dirs: &Dirs, host: &Host) -> Result<Metrics, Error> {
    let mut metrics = Metrics {
        cpu: Some(cpu(dirs)?),
        ..Metrics::default()
    };
    if let Some(dir) = dirs.get("hugetlb") {
        metrics.hugetlb = hugetlb(dir, host)?;
    }
    if let Some(dir) = dirs.get("pids") {
        metrics.pids = pids(dir)?;
    }
    if let Some(dir) = dirs.get("memory") {
        metrics.memory = memory(dir)?;
        metrics.memory_oom_control = oom_control(dir)?;
    }
    if let Some(dir) = dirs.get("blkio") {
        metrics.blkio = Some(blkio(dir, host)?);
    }
    if let Some(dir) = dirs.get("rdma") {
        let entry = |device, hca_handles, hca_objects| RdmaEntry {
            device,
            hca_handles,
            hca_objects,
        };
        let (current, limit) = (
            rdma(dir, "rdma.current", entry)?,
            rdma(dir, "rdma.max", entry)?,
        );
        metrics.rdma = current
            .zip(limit)
            .map(|(current, limit)| RdmaStat { current, limit });
    }
    Ok(metrics)
}

fn hugetlb(dir: &Path, host: &Host) -> Result<Vec<HugetlbStat>, Error> {
    let mut all = Vec::new();
    for pagesize in huge_page_sizes(host.hugepages) {
        let file = |what: &str| number(dir, &format!("hugetlb.{pagesize}.{what}"), 0);
        let Some(usage) = file("usage_in_bytes")? else {
            continue;
        };
        let max = file("max_usage_in_bytes")?.unwrap_or_default();
        let failcnt = file("failcnt")?.unwrap_or_default();
        all.push(HugetlbStat {
            usage,
            max,
            failcnt,
            pagesize,
        });
    }
    Ok(all)
}

/// No limit is 0 here.
fn pids(dir: &Path) -> Result<Option<PidsStat>, Error> {
    let Some(current) = number(dir, "pids.current", 0)? else {
        return Ok(None);
    };
    Ok(Some(PidsStat {
        current,
        limit: number(dir, "pids.max", 0)?.unwrap_or_default(),
    }))
}

/// Times in nanoseconds.
fn cpu(dirs: &Dirs) -> Result<CpuStat, Error> {
    let mut usage = CpuUsage::default();
    if let Some(dir) = dirs.get("cpuacct") {
        fields(dir, "cpuacct.stat", USAGE, &mut usage)?; // in ticks
        usage.user = usage.user.saturating_mul(NANOSECONDS_PER_TICK);
        usage.kernel = usage.kernel.saturating_mul(NANOSECONDS_PER_TICK);
        usage.total = number(dir, "cpuacct.usage", 0)?.unwrap_or_default();
        let file = "cpuacct.usage_percpu";
        let list = text(dir, file)?.unwrap_or_default();
        usage.per_cpu = list
            .split_whitespace()
            .map(|n| value(dir, file, n))
            .collect::<Result<_, _>>()?;
    }
    let mut throttling = Throttle::default();
    if let Some(dir) = dirs.get("cpu") {
        fields(dir, "cpu.stat", THROTTLE, &mut throttling)?;
    }
    Ok(CpuStat {
        usage: Some(usage),
        throttling: Some(throttling),
    })
}

/// Numbers in bytes or events.
fn memory(dir: &Path) -> Result<Option<MemoryStat>, Error> {
    let mut memory = MemoryStat::default();
    if !fields(dir, "memory.stat", MEMORY, &mut memory)? {
        return Ok(None);
    }
    let entry = |module: &str| -> Result<_, Error> {
        let file =
            |what| Ok(number(dir, &format!("memory.{module}{what}"), 0)?.unwrap_or_default());
        Ok(Some(MemoryEntry {
            limit: file("limit_in_bytes")?,
            usage: file("usage_in_bytes")?,
            max: file("max_usage_in_bytes")?,
            failcnt: file("failcnt")?,
        }))
    };
    memory.usage = entry("")?;
    memory.swap = entry("memsw.")?;
    memory.kernel = entry("kmem.")?;
    memory.kernel_tcp = entry("kmem.tcp.")?;
    Ok(Some(memory))
}

pub(super) fn oom_control(dir: &Path) -> Result<Option<MemoryOomControl>, Error> {
    let mut control = MemoryOomControl::default();
    Ok(fields(dir, "memory.oom_control", OOM_CONTROL, &mut control)?.then_some(control))
}

/// The numbers of the CFQ scheduler; where it is not in use, those of throttling.
fn blkio(dir: &Path, host: &Host) -> Result<BlkIoStat, Error> {
    let mut stat = BlkIoStat::default();
    // Without names the numbers are still worth having.
    let names = proc::text(host.partitions).unwrap_or_default();
    for table in [CFQ, THROTTLED] {
        let mut any = false;
        for (file, devices) in table {
            let entries = block_devices(dir, file, &names)?;
            any |= !entries.is_empty();
            *devices(&mut stat) = entries;
        }
        if any {
            break;
        }
    }
    Ok(stat)
}

/// The lines `<major>:<minor> [<operation>] <number>` of `file`. The sum over all devices, a line
/// `Total <number>`, is left out.
fn block_devices(dir: &Path, file: &str, names: &str) -> Result<Vec<BlkIoEntry>, Error> {
    let text = text(dir, file)?.unwrap_or_default();
    let entry = |line: &str| {
        let (id, rest) = line.split_once(' ')?;
        let (major, minor) = id.split_once(':')?;
        let (op, number) = rest.rsplit_once(' ').unwrap_or(("", rest));
        let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
        let device = device_name(names, major, minor).unwrap_or_default();
        Some(BlkIoEntry {
            op: op.to_owned(),
            device,
            major,
            minor,
            value: number.parse().ok()?,
        })
    };
    text.lines()
        .filter(|line| !line.starts_with("Total "))
        .map(|line| entry(line).ok_or_else(|| unexpected(dir, file, line)))
        .collect()
}

/// The path of a block device according to `partitions`, lines `<major> <minor> <blocks> <name>`
/// (proc_partitions(5)).
fn device_name(partitions: &str, major: u64, minor: u64) -> Option<String> {
    partitions.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let mut is = |number: u64| Some(fields.next()?.parse() == Ok(number));
        (is(major)? && is(minor)?)
            .then(|| fields.nth(1))?
            .map(|name| format!("/dev/{name}"))
    })
}
