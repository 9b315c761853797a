// SPDX-License-Identifier: Apache-2.0
//! Version 2 statistics against files as Linux 6 writes them.

use super::*;
use std::fs;
use tempfile::TempDir;

fn read_in(dir: &Path) -> Metrics {
    let hugepages = TempDir::new().unwrap();
    for name in ["hugepages-1048576kB", "hugepages-2048kB", "hugepages-64kB"] {
        fs::create_dir(hugepages.path().join(name)).unwrap();
    }
    let host = Host {
        partitions: Path::new("/nowhere"),
        hugepages: hugepages.path(),
    };
    read(dir, &host).unwrap()
}

fn recorded() -> Metrics {
    read_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cgroup/fixtures/v2"))
}

fn psi(some: [f64; 3], some_total: u64, full: [f64; 3], full_total: u64) -> Option<PsiStats> {
    let data = |[avg10, avg60, avg300]: [f64; 3], total| PsiData {
        avg10,
        avg60,
        avg300,
        total,
    };
    Some(PsiStats {
        some: Some(data(some, some_total)),
        full: Some(data(full, full_total)),
    })
}

#[test]
#[allow(deprecated, reason = "kernels before 5.9 have two fields more")]
fn memory_is_complete() {
    let expected = MemoryStat {
        anon: 25_288_704,
        file: 67_252_224,
        kernel_stack: 409_600,
        slab: 3_831_672,
        sock: 16_384,
        shmem: 3_145_728,
        file_mapped: 18_374_656,
        file_dirty: 135_168,
        file_writeback: 4096,
        anon_thp: 4_194_304,
        inactive_anon: 27_172_864,
        active_anon: 1_261_568,
        inactive_file: 41_037_824,
        active_file: 23_068_672,
        unevictable: 0,
        slab_reclaimable: 3_080_192,
        slab_unreclaimable: 751_480,
        pgfault: 803_114,
        pgmajfault: 611,
        workingset_refault: 0, // until Linux 5.9
        workingset_activate: 0,
        workingset_refault_anon: 12, // and these since then
        workingset_refault_file: 5503,
        workingset_activate_anon: 3,
        workingset_activate_file: 1620,
        workingset_nodereclaim: 64,
        pgrefill: 6110,
        pgscan: 30_214,
        pgsteal: 29_107,
        pgactivate: 44_021,
        pgdeactivate: 5902,
        pglazyfree: 118,
        pglazyfreed: 24,
        thp_fault_alloc: 17,
        thp_collapse_alloc: 2,
        usage: 102_408_192,
        usage_limit: 134_217_728,
        swap_usage: 49_152,
        swap_limit: u64::MAX,
        max_usage: 134_217_728,
        swap_max_usage: 1_130_496,
        psi: psi([0.0, 0.12, 0.05], 182_233, [0.0, 0.11, 0.04], 171_902),
    };
    assert_eq!(recorded().memory, Some(expected));
    let (low, high, max, oom, oom_kill, oom_group_kill) = (0, 0, 2213, 3, 2, 1);
    let expected = MemoryEvents {
        low,
        high,
        max,
        oom,
        oom_kill,
        oom_group_kill,
    };
    assert_eq!(recorded().memory_events, Some(expected));
}

#[test]
fn cpu_is_complete() {
    let expected = CpuStat {
        usage_usec: 128_734_221,
        user_usec: 91_203_344,
        system_usec: 37_530_877,
        nr_periods: 1544,
        nr_throttled: 37,
        throttled_usec: 2_093_117,
        psi: psi([1.52, 0.87, 0.33], 9_215_532, [0.41, 0.20, 0.08], 2_210_043),
        nr_bursts: 4,
        burst_usec: 18_231,
    };
    assert_eq!(recorded().cpu, Some(expected));
}

#[test]
fn the_other_controllers_are_read_too() {
    let metrics = recorded();
    assert_eq!(
        metrics.pids,
        Some(PidsStat {
            current: 14,
            limit: u64::MAX
        })
    );
    let huge = |pagesize: &str, current, max, failcnt| HugeTlbStat {
        current,
        max,
        pagesize: pagesize.into(),
        failcnt,
    };
    let expected = [
        huge("64KB", 0, 0, 0),
        huge("2MB", 4_194_304, u64::MAX, 5),
        huge("1GB", 0, 1_073_741_824, 0),
    ];
    assert_eq!(metrics.hugetlb, expected);
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
    let io = metrics.io.unwrap();
    assert_eq!(
        io.psi,
        psi([0.0, 0.0, 2.71], 4_410_293, [0.0, 0.0, 2.64], 4_209_117)
    );
    let expected = [
        IoEntry {
            major: 259,
            minor: 0,
            rbytes: 73_428_992,
            wbytes: 1_347_584,
            rios: 2915,
            wios: 226,
        },
        IoEntry {
            major: 253,
            minor: 1,
            rbytes: 4096,
            wbytes: 0,
            rios: 1,
            wios: 0,
        },
    ];
    assert_eq!(io.usage, expected);
}

#[test]
fn odd_lines_of_io_stat_do_no_harm() {
    let scratch = TempDir::new().unwrap();
    for (text, expected) in [
        ("", vec![]),
        ("8:0 \n", vec![(8, 0, 0)]),
        ("8:0 rbytes=5 cost.usage=7 wbytes=x\n", vec![]),
        ("8:0 rbytes=5 cost.usage=7\n", vec![(8, 0, 5)]),
        ("7:0 8:16 rbytes=6 wbytes=1\n", vec![(8, 16, 6)]),
        ("(unknown) rbytes=6\n8:1 rbytes=1\n", vec![(8, 1, 1)]),
    ] {
        fs::write(scratch.path().join("io.stat"), text).unwrap();
        let read = io(scratch.path()).unwrap();
        let read: Vec<_> = read
            .iter()
            .map(|one| (one.major, one.minor, one.rbytes))
            .collect();
        assert_eq!(read, expected, "{text}");
    }
}

#[test]
fn t79_what_is_gone_is_zero() {
    let scratch = TempDir::new().unwrap();
    let metrics = read_in(&scratch.path().join("vanished"));
    assert_eq!(metrics.cpu, Some(CpuStat::default()));
    assert_eq!(metrics.memory, Some(MemoryStat::default()));
    assert_eq!(metrics.pids, Some(PidsStat::default()));
    assert_eq!(metrics.memory_events, None);
    assert_eq!(metrics.hugetlb.len(), 3);
}
