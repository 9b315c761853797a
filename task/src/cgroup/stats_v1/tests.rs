// SPDX-License-Identifier: Apache-2.0
//! Version 1 statistics against files recorded from a cgroup that ran out of memory once (those of
//! hugetlb and rdma are written after the kernel's documentation).

use super::*;
use std::fs;
use tempfile::TempDir;

const CONTROLLERS: [&str; 7] = [
    "pids", "cpu", "cpuacct", "memory", "blkio", "hugetlb", "rdma",
];

/// The numbers of `dir/<controller>`, on a host with huge pages of 2 MiB and 1 GiB.
fn read_below(dir: &Path, controllers: &[&'static str]) -> Result<Metrics, Error> {
    let hugepages = TempDir::new().unwrap();
    for name in ["hugepages-1048576kB", "hugepages-2048kB"] {
        fs::create_dir(hugepages.path().join(name)).unwrap();
    }
    let host = Host {
        partitions: &dir.join("partitions"),
        hugepages: hugepages.path(),
    };
    read(
        &Dirs(
            controllers
                .iter()
                .map(|name| (*name, dir.join(name)))
                .collect(),
        ),
        &host,
    )
}

fn recorded() -> Metrics {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cgroup/fixtures/v1");
    read_below(&dir, &CONTROLLERS).unwrap()
}

fn device(op: &str, value: u64) -> BlkIoEntry {
    let (op, device) = (op.to_owned(), "/dev/vda".to_owned());
    BlkIoEntry {
        op,
        device,
        major: 254,
        minor: 0,
        value,
    }
}

#[test]
fn cpu_times_are_nanoseconds() {
    let cpu = recorded().cpu.unwrap();
    let usage = CpuUsage {
        total: 490_971_818,
        kernel: 60_000_000,
        user: 420_000_000,
        per_cpu: vec![164_754_938, 326_216_880],
    };
    assert_eq!(cpu.usage, Some(usage));
    let throttle = Throttle {
        periods: 27,
        throttled_periods: 24,
        throttled_time: 1_759_160_696,
    };
    assert_eq!(cpu.throttling, Some(throttle));
}

#[test]
fn memory_is_complete() {
    const UNLIMITED: u64 = 9_223_372_036_854_771_712;
    let expected = MemoryStat {
        cache: 106_496,
        rss: 118_784,
        dirty: 4096,
        pg_pg_in: 8572,
        pg_pg_out: 8517,
        pg_fault: 8771,
        pg_maj_fault: 2,
        inactive_anon: 114_688,
        active_anon: 4096,
        inactive_file: 102_400,
        active_file: 4096,
        hierarchical_memory_limit: 33_554_432,
        hierarchical_swap_limit: UNLIMITED,
        total_cache: 106_496,
        total_rss: 118_784,
        total_dirty: 4096,
        total_pg_pg_in: 8572,
        total_pg_pg_out: 8517,
        total_pg_fault: 8771,
        total_pg_maj_fault: 2,
        total_inactive_anon: 114_688,
        total_active_anon: 4096,
        total_inactive_file: 102_400,
        total_active_file: 4096,
        usage: Some(MemoryEntry {
            limit: 33_554_432,
            usage: 573_440,
            max: 33_554_432,
            failcnt: 142,
        }),
        swap: Some(MemoryEntry {
            limit: UNLIMITED,
            usage: 573_440,
            max: 33_816_576,
            failcnt: 0,
        }),
        kernel: Some(MemoryEntry {
            limit: UNLIMITED,
            usage: 118_784,
            max: 290_816,
            failcnt: 0,
        }),
        kernel_tcp: Some(MemoryEntry {
            limit: UNLIMITED,
            usage: 0,
            max: 0,
            failcnt: 0,
        }),
        ..MemoryStat::default()
    };
    assert_eq!(recorded().memory, Some(expected));
    let control = MemoryOomControl {
        oom_kill_disable: 0,
        under_oom: 0,
        oom_kill: 1,
    };
    assert_eq!(recorded().memory_oom_control, Some(control));
}

#[test]
fn the_other_controllers_are_read_too() {
    let metrics = recorded();
    assert_eq!(
        metrics.pids,
        Some(PidsStat {
            current: 2,
            limit: 64
        })
    );
    let (usage, max) = (2_097_152, 6_291_456);
    let pages = HugetlbStat {
        usage,
        max,
        failcnt: 9,
        pagesize: "2MB".into(),
    };
    assert_eq!(metrics.hugetlb, [pages]);
    let blkio = metrics.blkio.unwrap();
    let bytes = [
        device("Read", 94_208),
        device("Write", 4_194_304),
        device("Sync", 4_288_512),
        device("Async", 0),
        device("Discard", 0),
        device("Total", 4_288_512),
    ];
    assert_eq!(blkio.io_service_bytes_recursive, bytes);
    assert_eq!(blkio.io_serviced_recursive.len(), 6);
    assert_eq!(blkio.io_serviced_recursive[1], device("Write", 8));
    let rdma = |hca_handles, hca_objects| {
        vec![RdmaEntry {
            device: "mlx5_0".into(),
            hca_handles,
            hca_objects,
        }]
    };
    let expected = RdmaStat {
        current: rdma(2, 2000),
        limit: rdma(3, u32::MAX),
    };
    assert_eq!(metrics.rdma, Some(expected));
}

#[test]
fn cfq_goes_before_throttling() {
    let scratch = TempDir::new().unwrap();
    let dir = scratch.path().join("blkio");
    fs::create_dir(&dir).unwrap();
    for (file, text) in [
        ("blkio.throttle.io_serviced", "8:0 Read 1\nTotal 1\n"),
        ("blkio.io_serviced_recursive", "Total 0\n"),
    ] {
        fs::write(dir.join(file), text).unwrap();
    }
    let serviced = |metrics: Metrics| metrics.blkio.unwrap().io_serviced_recursive[0].value;
    assert_eq!(serviced(read_below(scratch.path(), &["blkio"]).unwrap()), 1);
    fs::write(
        dir.join("blkio.io_serviced_recursive"),
        "8:0 Read 2\nTotal 2\n",
    )
    .unwrap();
    fs::write(dir.join("blkio.sectors_recursive"), "8:0 3\n").unwrap();
    let metrics = read_below(scratch.path(), &["blkio"]).unwrap();
    let sectors = &metrics.blkio.as_ref().unwrap().sectors_recursive;
    assert_eq!((sectors[0].op.as_str(), sectors[0].value), ("", 3));
    assert_eq!(serviced(metrics), 2);
}

#[test]
fn no_limit_is_zero_and_nonsense_an_error() {
    let scratch = TempDir::new().unwrap();
    let dir = scratch.path().join("pids");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("pids.current"), "3\n").unwrap();
    fs::write(dir.join("pids.max"), "max\n").unwrap();
    let metrics = read_below(scratch.path(), &["pids"]).unwrap();
    assert_eq!(
        metrics.pids,
        Some(PidsStat {
            current: 3,
            limit: 0
        })
    );
    fs::write(dir.join("pids.max"), "many\n").unwrap();
    let error = read_below(scratch.path(), &["pids"]).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("pids/pids.max: unexpected \"many\""),
        "{error}"
    );
}

#[test]
fn t79_what_is_gone_is_left_out() {
    let scratch = TempDir::new().unwrap();
    let expected = Metrics {
        cpu: Some(CpuStat {
            usage: Some(CpuUsage::default()),
            throttling: Some(Throttle::default()),
        }),
        blkio: Some(BlkIoStat::default()),
        ..Metrics::default()
    };
    assert_eq!(read_below(scratch.path(), &CONTROLLERS).unwrap(), expected);
}
