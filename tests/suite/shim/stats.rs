// SPDX-License-Identifier: Apache-2.0
//! Stats: every number of cgroup version 1, beside the kernel's files (2.5).

use harness::stdio::{Fifos, Stdio};
use harness::{Test, wait};
use protos::Message;
use protos::cgroups::v1::Metrics;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

async fn metrics(shim: &harness::Shim) -> Metrics {
    let any = shim.stats("c").await.unwrap().stats.expect("stats");
    assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics", "T79");
    Metrics::decode(any.value.as_slice()).unwrap()
}

/// The container's directory in a hierarchy.
fn cgroup(test: &Test, hierarchy: &str) -> PathBuf {
    Path::new("/sys/fs/cgroup")
        .join(hierarchy)
        .join(format!("{}-c", test.namespace()))
}

fn read(dir: &Path, file: &str) -> String {
    let path = dir.join(file);
    fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        .trim()
        .to_owned()
}

fn number(dir: &Path, file: &str) -> u64 {
    read(dir, file).parse().unwrap()
}

/// A line `key value` of a file.
fn field(dir: &Path, file: &str, key: &str) -> u64 {
    let text = read(dir, file);
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {key} in {file}"))
        .parse()
        .unwrap()
}

/// memory.stat: all its fields, by the names the kernel and the message have for them.
fn memory_stat(m: &protos::cgroups::v1::MemoryStat) -> Vec<(&'static str, u64)> {
    vec![
        ("cache", m.cache),
        ("rss", m.rss),
        ("rss_huge", m.rss_huge),
        ("mapped_file", m.mapped_file),
        ("dirty", m.dirty),
        ("writeback", m.writeback),
        ("pgpgin", m.pg_pg_in),
        ("pgpgout", m.pg_pg_out),
        ("pgfault", m.pg_fault),
        ("pgmajfault", m.pg_maj_fault),
        ("inactive_anon", m.inactive_anon),
        ("active_anon", m.active_anon),
        ("inactive_file", m.inactive_file),
        ("active_file", m.active_file),
        ("unevictable", m.unevictable),
        ("hierarchical_memory_limit", m.hierarchical_memory_limit),
        ("hierarchical_memsw_limit", m.hierarchical_swap_limit),
        ("total_cache", m.total_cache),
        ("total_rss", m.total_rss),
        ("total_rss_huge", m.total_rss_huge),
        ("total_mapped_file", m.total_mapped_file),
        ("total_dirty", m.total_dirty),
        ("total_writeback", m.total_writeback),
        ("total_pgpgin", m.total_pg_pg_in),
        ("total_pgpgout", m.total_pg_pg_out),
        ("total_pgfault", m.total_pg_fault),
        ("total_pgmajfault", m.total_pg_maj_fault),
        ("total_inactive_anon", m.total_inactive_anon),
        ("total_active_anon", m.total_active_anon),
        ("total_inactive_file", m.total_inactive_file),
        ("total_active_file", m.total_active_file),
        ("total_unevictable", m.total_unevictable),
    ]
}

/// 2.5: memory, of a container that holds still.
#[test]
fn memory_stats_are_the_kernels() {
    harness::run_unless_vm_differs("guests-cgroups", async |test| {
        let bundle = test.bundle("c").memory_limit(64 << 20).build();
        let shim = bundle.running().await;
        let dir = cgroup(test, "memory");
        // The kernel gathers per-CPU counts as it likes; sooner or later nothing moves.
        let (metrics, stat) = loop {
            let before = read(&dir, "memory.stat");
            let metrics = metrics(&shim).await;
            let is_counted = metrics.memory.as_ref().is_some_and(|memory| memory.rss > 0);
            if is_counted && before == read(&dir, "memory.stat") {
                break (metrics, before);
            }
        };
        let memory = metrics.memory.expect("memory");
        for (key, value) in memory_stat(&memory) {
            let line = stat
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
            let expected = line.map_or(0, |value| value.parse().unwrap());
            assert_eq!(value, expected, "{key}");
        }
        let entries = [
            ("memory", memory.usage),
            ("memory.memsw", memory.swap),
            ("memory.kmem", memory.kernel),
            ("memory.kmem.tcp", memory.kernel_tcp),
        ];
        for (prefix, entry) in entries {
            let entry = entry.unwrap_or_else(|| panic!("{prefix} is missing"));
            assert_eq!(
                entry.limit,
                number(&dir, &format!("{prefix}.limit_in_bytes")),
                "{prefix}"
            );
            assert_eq!(
                entry.failcnt,
                number(&dir, &format!("{prefix}.failcnt")),
                "{prefix}"
            );
            assert_eq!(
                entry.max,
                number(&dir, &format!("{prefix}.max_usage_in_bytes")),
                "{prefix}"
            );
            assert!(entry.usage <= entry.max, "{prefix}");
        }
        let oom = metrics.memory_oom_control.expect("memory.oom_control");
        assert_eq!(
            oom.oom_kill_disable,
            field(&dir, "memory.oom_control", "oom_kill_disable")
        );
        assert_eq!(
            oom.under_oom,
            field(&dir, "memory.oom_control", "under_oom")
        );
        assert_eq!(oom.oom_kill, field(&dir, "memory.oom_control", "oom_kill"));
    });
}

/// 2.5: pids, and limits.
#[test]
fn pids_stats_are_the_kernels() {
    harness::run(async |test| {
        let bundle = test
            .bundle("c")
            .set("/linux/resources/pids/limit", json!(100))
            .build();
        let shim = bundle.running().await;
        shim.run(bundle.exec("e", &["sleep", "100000"])).await;
        // The runtime's threads leave a moment after Start.
        loop {
            let figures = shim.figures("c").await;
            assert_eq!(figures.pids_limit, 100);
            if figures.pids == 2 {
                break;
            }
        }
        let unlimited = test.bundle("d").build();
        shim.create(unlimited.create()).await.unwrap();
        shim.start("d", "").await.unwrap();
        let figures = shim.figures("d").await;
        assert!(figures.pids > 0);
        assert_eq!(figures.pids_limit, 0, "no limit is 0");
    });
}

/// 2.5: time used, in nanoseconds, between the kernel's numbers before and after.
#[test]
fn cpu_stats_are_the_kernels() {
    harness::run_unless_vm_differs("guests-cgroups", async |test| {
        let quota = json!({ "quota": 200_000, "period": 100_000 });
        let bundle = test.bundle("c").set("/linux/resources/cpu", quota).build();
        let shim = bundle.running().await;
        shim.run(bundle.exec_sh("e", "while :; do :; done")).await;
        let dir = cgroup(test, "cpu");
        wait::until("a period of the quota is over", || {
            match field(&dir, "cpu.stat", "nr_periods") {
                0 => Err("none".into()),
                periods => Ok(periods),
            }
        })
        .await;
        shim.kill("c", "e", 9, false).await.unwrap();
        shim.wait("c", "e").await.unwrap();
        let acct = cgroup(test, "cpuacct");
        let before = number(&acct, "cpuacct.usage");
        let cpu = metrics(&shim).await.cpu.expect("cpu");
        let after = number(&acct, "cpuacct.usage");
        let usage = cpu.usage.expect("usage");
        assert!(
            (before..=after).contains(&usage.total),
            "{before} {} {after}",
            usage.total
        );
        assert_eq!(usage.per_cpu.iter().sum::<u64>(), usage.total);
        let cpus = read(&acct, "cpuacct.usage_percpu");
        assert_eq!(usage.per_cpu.len(), cpus.split_whitespace().count());
        // cpuacct.stat counts in ticks of 10 ms.
        assert!(
            usage.user % 10_000_000 == 0 && usage.kernel % 10_000_000 == 0,
            "{usage:?}"
        );
        assert_eq!(
            usage.user,
            field(&acct, "cpuacct.stat", "user") * 10_000_000
        );
        let throttling = cpu.throttling.expect("throttling");
        assert!(
            throttling.periods > 0 && throttling.periods <= field(&dir, "cpu.stat", "nr_periods")
        );
        assert_eq!(
            throttling.throttled_periods,
            field(&dir, "cpu.stat", "nr_throttled")
        );
        assert_eq!(
            throttling.throttled_time,
            field(&dir, "cpu.stat", "throttled_time")
        );
    });
}

/// 2.5: bytes and operations per device.
#[test]
fn blkio_stats_are_the_kernels() {
    harness::run_unless_vm_differs("guests-cgroups", async |test| {
        let bundle = test.bundle("c").share().build();
        let shim = bundle.running().await;
        let script = "dd if=/dev/zero of=/mnt/file bs=4096 count=64 conv=fsync 2>/dev/null";
        shim.run(bundle.exec_sh("e", script)).await;
        assert_eq!(shim.wait("c", "e").await.unwrap().exit_status, 0);
        let dir = cgroup(test, "blkio");
        // What the kernel writes for the container may still be on its way.
        let (blkio, text) = loop {
            let name = "blkio.throttle.io_service_bytes_recursive";
            let before = read(&dir, name);
            let metrics = metrics(&shim).await;
            if before == read(&dir, name) {
                break (metrics.blkio.expect("blkio"), before);
            }
        };
        let mut expected: Vec<(u64, u64, String, u64)> = Vec::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split([' ', ':']).collect();
            if let [major, minor, op, value] = words[..] {
                let numbers = (major.parse().unwrap(), minor.parse().unwrap());
                expected.push((numbers.0, numbers.1, op.to_owned(), value.parse().unwrap()));
            }
        }
        let entries = &blkio.io_service_bytes_recursive;
        let got: Vec<(u64, u64, String, u64)> = entries
            .iter()
            .map(|e| (e.major, e.minor, e.op.clone(), e.value))
            .collect();
        assert_eq!(got, expected);
        assert!(!blkio.io_serviced_recursive.is_empty() || expected.is_empty());
        for entry in entries {
            let node = format!("/sys/dev/block/{}:{}", entry.major, entry.minor);
            let name = fs::read_link(node).unwrap();
            let name = name.file_name().unwrap().to_string_lossy().into_owned();
            assert_eq!(entry.device, format!("/dev/{name}"));
        }
    });
}

/// T79: a stopped task still has stats until it is deleted, all of them zero or gone.
#[test]
fn stats_of_a_stopped_task_are_no_error() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        shim.kill("c", "", 9, false).await.unwrap();
        shim.wait("c", "").await.unwrap();
        shim.stats("c").await.expect("stats of a stopped task");
    });
}

/// 2.5: usage follows the container.
#[test]
fn stats_follow_the_container() {
    harness::run(async |test| {
        let fifos = Fifos::new(test.dir().join("io"));
        let (mut out, _err) = fifos.readers();
        let bundle = test.bundle("c").memory_limit(128 << 20).build();
        let shim = bundle.running().await;
        let rss = async || shim.figures("c").await.anonymous;
        let before = rss().await;
        let script = "x=$(head -c 20000000 /dev/zero | tr '\\0' x); echo held; read go";
        shim.run(bundle.exec_sh("e", script).fifos(&fifos)).await;
        let _stdin = fifos.stdin.writer().await;
        assert_eq!(out.line().await, "held");
        let after = rss().await;
        assert!(
            after > before + (16 << 20),
            "rss {before} before, {after} after 20 MB"
        );
    });
}
