// SPDX-License-Identifier: Apache-2.0
//! Stats: the numbers of cgroup version 2, beside the kernel's files (2.5).

use crate::{cgroup, field, read};
use harness::vm::with_cgroup2;
use harness::{Shim, wait};
use protos::Message;
use protos::cgroups::v2::{MemoryStat, Metrics};
use serde_json::json;

async fn metrics(shim: &Shim) -> Metrics {
    let any = shim.stats("c").await.unwrap().stats.expect("stats");
    assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics", "T79");
    Metrics::decode(any.value.as_slice()).unwrap()
}

/// memory.stat: the fields that the message has, by the names the kernel has for them.
fn memory_stat(m: &MemoryStat) -> Vec<(&'static str, u64)> {
    vec![
        ("anon", m.anon),
        ("file", m.file),
        ("kernel_stack", m.kernel_stack),
        ("slab", m.slab),
        ("sock", m.sock),
        ("shmem", m.shmem),
        ("file_mapped", m.file_mapped),
        ("file_dirty", m.file_dirty),
        ("file_writeback", m.file_writeback),
        ("inactive_anon", m.inactive_anon),
        ("active_anon", m.active_anon),
        ("inactive_file", m.inactive_file),
        ("active_file", m.active_file),
        ("unevictable", m.unevictable),
        ("slab_reclaimable", m.slab_reclaimable),
        ("slab_unreclaimable", m.slab_unreclaimable),
        ("pgfault", m.pgfault),
        ("pgmajfault", m.pgmajfault),
        ("workingset_refault_anon", m.workingset_refault_anon),
        ("workingset_refault_file", m.workingset_refault_file),
        ("workingset_nodereclaim", m.workingset_nodereclaim),
        ("pgrefill", m.pgrefill),
        ("pgscan", m.pgscan),
        ("pgsteal", m.pgsteal),
        ("pgactivate", m.pgactivate),
        ("pgdeactivate", m.pgdeactivate),
    ]
}

/// 2.5: memory, of a container that holds still.
#[test]
fn memory_stats_are_the_kernels() {
    with_cgroup2(async |test| {
        let bundle = test.bundle("c").memory_limit(64 << 20).build();
        let shim = bundle.running().await;
        let dir = cgroup(test, "c");
        let files = || (read(&dir, "memory.stat"), read(&dir, "memory.current"));
        // The kernel gathers per-CPU counts as it likes; sooner or later nothing moves.
        let (metrics, stat, current) = loop {
            let before = files();
            let metrics = metrics(&shim).await;
            let is_counted = metrics
                .memory
                .as_ref()
                .is_some_and(|memory| memory.anon > 0);
            if is_counted && before == files() {
                break (metrics, before.0, before.1);
            }
        };
        let memory = metrics.memory.expect("memory");
        for (key, value) in memory_stat(&memory) {
            let line = stat
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
            let expected: u64 = line.unwrap_or_else(|| panic!("no {key}")).parse().unwrap();
            assert_eq!(value, expected, "{key}");
        }
        assert_eq!(memory.usage.to_string(), current);
        assert_eq!(memory.usage_limit, 64 << 20);
        assert_eq!(memory.swap_usage, 0);
        let events = metrics.memory_events.expect("memory.events");
        assert_eq!((events.oom, events.oom_kill), (0, 0));
    });
}

/// 2.5: processes, and their limit; no limit is the largest number.
#[test]
fn pids_stats_are_the_kernels() {
    with_cgroup2(async |test| {
        let limit = json!(100);
        let bundle = test.bundle("c").set("/linux/resources/pids/limit", limit);
        let bundle = bundle.build();
        let shim = bundle.running().await;
        shim.run(bundle.exec("e", &["sleep", "100000"])).await;
        // The runtime's threads leave a moment after Start.
        loop {
            let pids = metrics(&shim).await.pids.expect("pids");
            assert_eq!(pids.limit, 100);
            if pids.current == 2 {
                break;
            }
        }
        let unlimited = test.bundle("d").build();
        shim.create(unlimited.create()).await.unwrap();
        let any = shim.stats("d").await.unwrap().stats.unwrap();
        let metrics = Metrics::decode(any.value.as_slice()).unwrap();
        assert_eq!(metrics.pids.expect("pids").limit, u64::MAX);
    });
}

/// 2.5: time used, in microseconds, between the kernel's numbers before and after.
#[test]
fn cpu_stats_are_the_kernels() {
    with_cgroup2(async |test| {
        let quota = json!({ "quota": 20_000, "period": 100_000 });
        let bundle = test.bundle("c").set("/linux/resources/cpu", quota).build();
        let shim = bundle.running().await;
        let dir = cgroup(test, "c");
        assert_eq!(read(&dir, "cpu.max"), "20000 100000");
        shim.run(bundle.exec_sh("e", "while :; do :; done")).await;
        wait::until("the quota is used up", || {
            match field(&dir, "cpu.stat", "nr_throttled") {
                0 => Err("not yet".into()),
                periods => Ok(periods),
            }
        })
        .await;
        shim.kill("c", "e", 9, false).await.unwrap();
        shim.wait("c", "e").await.unwrap();
        let usage = || field(&dir, "cpu.stat", "usage_usec");
        let before = usage();
        let cpu = metrics(&shim).await.cpu.expect("cpu");
        assert!((before..=usage()).contains(&cpu.usage_usec), "{cpu:?}");
        assert!(cpu.user_usec > 0 && cpu.user_usec + cpu.system_usec <= cpu.usage_usec + 1);
        assert!(cpu.nr_periods >= cpu.nr_throttled && cpu.nr_throttled > 0);
        assert_eq!(
            cpu.throttled_usec,
            field(&dir, "cpu.stat", "throttled_usec")
        );
    });
}

/// 2.5: a process that was killed for its memory is counted.
#[test]
fn memory_events_are_the_kernels() {
    with_cgroup2(async |test| {
        let bundle = test.bundle("c").memory_limit(16 << 20).build();
        let shim = bundle.running().await;
        shim.run(bundle.exec_sh("e", crate::oom::EAT)).await;
        assert_eq!(shim.wait("c", "e").await.unwrap().exit_status, 137);
        let dir = cgroup(test, "c");
        let events = metrics(&shim).await.memory_events.expect("memory.events");
        assert_eq!(events.oom_kill, 1);
        assert_eq!(events.max, field(&dir, "memory.events", "max"));
        assert_eq!(events.oom, field(&dir, "memory.events", "oom"));
    });
}

/// T79: a stopped task still has stats until it is deleted.
#[test]
fn stats_of_a_stopped_task_are_no_error() {
    with_cgroup2(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        shim.kill("c", "", 9, false).await.unwrap();
        shim.wait("c", "").await.unwrap();
        shim.stats("c").await.expect("stats of a stopped task");
    });
}
