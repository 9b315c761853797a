// SPDX-License-Identifier: Apache-2.0
//! What the limits of containers come to, in the kernel's files.

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
        throttled: RefCell::default(),
        up: Cell::new(true),
        watch: RefCell::default(),
    }
}

/// The files of version 1 and 2 and what is written there.
fn written(pod: &Pod) -> Vec<String> {
    let throttles = pod.throttles().into_iter();
    let throttles = throttles.map(|(throttle, rate)| throttle.setting(rate));
    let settings = pod.settings().into_iter().chain(throttles);
    let line = |(name, value): (&str, String)| format!("{name} {value}");
    settings
        .flat_map(|s| s.files.into_iter().map(line))
        .collect()
}

/// What is written that begins so.
fn of(pod: &Pod, name: &str) -> Vec<String> {
    let mut written = written(pod);
    written.retain(|line| line.starts_with(name));
    written
}

fn insert(pod: &Pod, id: &str, resources: &Value) {
    let limits = Limits::of(resources).unwrap();
    limits.check().unwrap();
    pod.containers.borrow_mut().insert(id.into(), limits);
}

#[test]
fn a_pods_limits_are_those_of_its_containers_and_the_vms() {
    let pod = pod();
    insert(
        &pod,
        "a",
        &json!({"memory": {"limit": 1000}, "pids": {"limit": 10},
        "cpu": {"quota": 50_000, "period": 50_000, "shares": 1024, "cpus": "0"}}),
    );
    insert(
        &pod,
        "b",
        &json!({"memory": {"limit": 500}, "pids": {"limit": 5},
        "cpu": {"quota": 20_000, "cpus": "2-3"}}),
    );
    let expected = [
        "memory.memsw.limit_in_bytes -1",
        "memory.swap.max max",
        "memory.limit_in_bytes 1600",
        "memory.max 1600",
        "pids.max 1039",
        "pids.max 1039",
        "cpu.cfs_quota_us 145000",
        "cpu.max 145000 100000",
        "cpuset.cpus 0,2-3",
    ];
    assert_eq!(written(&pod), expected, "b has no share that it names");
    pod.containers.borrow_mut().remove("b");
    assert_eq!(of(&pod, "memory.max"), ["memory.max 1600"], "never lowered");
    let shares = ["cpu.shares 1024", "cpu.cfs_quota_us 125000"];
    assert_eq!([&of(&pod, "cpu.s")[0], &of(&pod, "cpu.cfs")[0]], shares);
    assert_eq!(of(&pod, "cpu.weight"), ["cpu.weight 39"]);
    insert(&pod, "c", &json!({}));
    assert_eq!(of(&pod, "memory.max"), ["memory.max max"], "c has no limit");
    assert_eq!(of(&pod, "pids"), ["pids.max max"; 2]);
    pod.containers.borrow_mut().remove("c");
    let had = of(&pod, "memory.max");
    assert_eq!(had, ["memory.max max"], "what was had stays");
    insert(&pod, "d", &json!({"pids": {"limit": 1_u64 << 40}}));
    assert_eq!(
        of(&pod, "pids")[0],
        "pids.max max",
        "as many as there can be"
    );
}

/// The containers' swap, beside all memory that the VM may have.
#[test]
fn swap_is_that_of_the_containers() {
    let pod = pod();
    insert(&pod, "a", &json!({"memory": {"limit": 1000, "swap": 1000}}));
    insert(&pod, "b", &json!({"memory": {"limit": 500, "swap": 800}}));
    let expected = [
        "memory.memsw.limit_in_bytes -1",
        "memory.memsw.limit_in_bytes 1900",
        "memory.swap.max max",
        "memory.swap.max 300",
    ];
    let written = [of(&pod, "memory.memsw"), of(&pod, "memory.swap")].concat();
    assert_eq!(written, expected);
    insert(&pod, "b", &json!({"memory": {"limit": 500, "swap": -1}}));
    assert_eq!(of(&pod, "memory.swap"), ["memory.swap.max max"]);
}

#[test]
fn throttles_hold_while_all_containers_have_them() {
    let pod = pod();
    let io = |weight: i64, rate: i64| {
        let read = json!([{"major": 8, "minor": 16, "rate": rate}]);
        json!({"blockIO": {"weight": weight, "throttleReadBpsDevice": read,
            "throttleWriteIOPSDevice": read}})
    };
    insert(&pod, "a", &io(100, 1000));
    insert(&pod, "b", &io(400, 500));
    let expected = [
        "blkio.weight 500",
        "blkio.bfq.weight 500",
        "blkio.throttle.read_bps_device 8:16 1500",
        "blkio.throttle.write_iops_device 8:16 1500",
    ];
    assert_eq!(of(&pod, "blkio"), expected);
    // As runc's ConvertBlkIOToIOWeightValue has it.
    let expected = [
        "io.bfq.weight 500",
        "io.weight 4950",
        "io.max 8:16 rbps=1500",
        "io.max 8:16 wiops=1500",
    ];
    assert_eq!(of(&pod, "io."), expected);
    let set = pod.throttles().into_iter().map(|(throttle, _)| throttle);
    *pod.throttled.borrow_mut() = set.collect();
    insert(&pod, "c", &json!({}));
    let none = ["io.max 8:16 rbps=max", "io.max 8:16 wiops=max"];
    assert_eq!(of(&pod, "io."), none);
    assert_eq!(
        of(&pod, "blkio")[0],
        "blkio.throttle.read_bps_device 8:16 0"
    );
    pod.throttled.borrow_mut().clear();
    assert_eq!(
        of(&pod, "io."),
        [""; 0],
        "there is nothing to be taken away"
    );
}
