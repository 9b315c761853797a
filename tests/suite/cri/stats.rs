// SPDX-License-Identifier: Apache-2.0
//! What a kubelet measures, and what it limits.

use harness::cri::Cri;
use harness::cri::api::LinuxContainerResources;
use std::fs;
use std::path::{Path, PathBuf};

for_each_containerd!(
    stats_count_the_memory_and_processor_time_of_a_container,
    stats_of_all_containers_are_listed,
    an_update_of_the_resources_arrives_in_the_cgroup,
);

const MIB: u64 = 1 << 20;

fn stats_count_the_memory_and_processor_time_of_a_container(cri: &mut Cri) {
    let pod = cri.run("web");
    let up = cri.fifo("up");
    let script = "head -c 20971520 /dev/zero > /dev/shm/x; echo up > /share/up; \
        while :; do :; done";
    let id = cri.launch(&pod, cri.container("a", &["sh", "-c", script]));
    assert_eq!(up.line(), "up");
    let stats = cri.stats(&id);
    let memory = stats.memory.expect("memory");
    let used = memory.working_set_bytes.expect("working set").value;
    assert!((20 * MIB..200 * MIB).contains(&used), "{used} bytes");
    let time = |stats: harness::cri::api::ContainerStats| {
        let cpu = stats.cpu.expect("cpu");
        cpu.usage_core_nano_seconds.expect("time").value
    };
    let before = time(cri.stats(&id));
    assert!(before > 0);
    cri.until("more processor time", || match time(cri.stats(&id)) {
        now if now > before => Ok(()),
        now => Err(now.to_string()),
    });
    let attributes = stats.attributes.expect("attributes");
    assert_eq!(attributes.id, id);
}

fn stats_of_all_containers_are_listed(cri: &mut Cri) {
    let pods = ["web", "db"].map(|name| cri.run(name));
    let mut ids: Vec<String> = pods
        .iter()
        .flat_map(|pod| ["a", "b"].map(|name| cri.service(pod, name)))
        .collect();
    let all = cri.all_stats();
    let mut listed: Vec<String> = Vec::new();
    for stats in all {
        let memory = stats.memory.expect("memory");
        assert!(memory.working_set_bytes.expect("working set").value > 0);
        assert!(stats.cpu.expect("cpu").usage_core_nano_seconds.is_some());
        listed.push(stats.attributes.expect("attributes").id);
    }
    ids.sort();
    listed.sort();
    assert_eq!(listed, ids);
}

fn an_update_of_the_resources_arrives_in_the_cgroup(cri: &mut Cri) {
    let pod = cri.run("web");
    let id = cri.service(&pod, "a");
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let parent = cri.containerd.dir().file_name().expect("a name").to_owned();
    let file = |controller: &str, name: &str| -> PathBuf {
        let root = Path::new("/sys/fs/cgroup");
        let root = if unified {
            root.to_owned()
        } else {
            root.join(controller)
        };
        root.join(&parent).join(&id).join(name)
    };
    cri.update(
        &id,
        LinuxContainerResources {
            cpu_quota: 50_000,
            cpu_period: 100_000,
            memory_limit_in_bytes: 64 << 20,
            ..Default::default()
        },
    );
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        text.trim().to_owned()
    };
    let limit = (64 * MIB).to_string();
    if unified {
        assert_eq!(read(file("", "memory.max")), limit);
        assert_eq!(read(file("", "cpu.max")), "50000 100000");
    } else {
        assert_eq!(read(file("memory", "memory.limit_in_bytes")), limit);
        assert_eq!(read(file("cpu", "cpu.cfs_quota_us")), "50000");
    }
    let told = cri
        .container_status(&id)
        .resources
        .expect("resources")
        .linux;
    assert_eq!(told.expect("resources").memory_limit_in_bytes, 64 << 20);
}
