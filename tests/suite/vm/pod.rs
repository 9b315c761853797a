// SPDX-License-Identifier: Apache-2.0
//! The VM is inside its pod's limits: the host's cgroup that config.json names.

use crate::child;
use crate::jail;
use harness::events::{Event, Kind};
use harness::{Code, Shim, Test, refused, wait};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

/// What the default configuration gives a VM beside its containers' limits, in MiB.
const OVERHEAD: u64 = 384;

/// The cgroup of container `id`, as the controller `controller` has it.
fn cgroup(test: &Test, id: &str, controller: &str) -> PathBuf {
    let name = format!("{}-{id}", test.namespace());
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return root.join(name);
    }
    root.join(controller).join(name)
}

/// What is in the first of these files that is there: that of version 1, or 2.
fn limit(dir: &Path, files: [&str; 2]) -> String {
    let mut found = files
        .iter()
        .map(|file| dir.join(file))
        .filter(|file| file.exists());
    let file = found
        .next()
        .unwrap_or_else(|| panic!("{files:?} in {}", dir.display()));
    fs::read_to_string(file).expect("a limit").trim().to_owned()
}

fn memory(test: &Test, id: &str) -> u64 {
    let limit = limit(
        &cgroup(test, id, "memory"),
        ["memory.limit_in_bytes", "memory.max"],
    );
    limit.parse().expect("a limit of memory")
}

fn processes(shim: &Shim) -> [i32; 2] {
    ["-no-user-config", "fsd"].map(|word| child(shim, word))
}

/// Issue 16, point 7: QEMU and the file server are in the cgroup, which has the containers' limits
/// and the VM's own needs, and their oomScoreAdj. An Update is the VM's too. It goes with the VM.
#[test]
fn a_vm_is_in_the_cgroup_that_its_container_names() {
    crate::run(async |test| {
        let group = "io.containerd.runc.v2.group";
        let bundle = test
            .bundle("c")
            .annotation(group, "g")
            .memory_limit(96 << 20)
            .set(
                "/linux/resources/cpu",
                json!({"quota": 150_000, "period": 100_000, "shares": 512}),
            )
            .set("/process/oomScoreAdj", json!(321))
            .build();
        let shim = bundle.running().await;
        for controller in ["memory", "cpu", "pids", "freezer"] {
            let dir = cgroup(test, "c", controller);
            let procs = fs::read_to_string(dir.join("cgroup.procs")).expect("a cgroup");
            let mut members: Vec<i32> = procs
                .lines()
                .map(|pid| pid.parse().expect("a pid"))
                .collect();
            let mut expected = processes(&shim);
            members.sort_unstable();
            expected.sort_unstable();
            assert_eq!(members, expected, "{controller}");
        }
        for pid in processes(&shim) {
            let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"));
            assert_eq!(score.expect("a process").trim(), "321");
        }
        assert_eq!(memory(test, "c"), (96 + OVERHEAD) << 20);
        let cpu = cgroup(test, "c", "cpu");
        let quota = limit(&cpu, ["cpu.cfs_quota_us", "cpu.max"]);
        assert_eq!(quota.split(' ').next(), Some("175000"));
        let weight = limit(&cpu, ["cpu.shares", "cpu.weight"]);
        assert!(["512", "20"].contains(&&*weight), "{weight}");

        shim.update(
            "c",
            r#"{"memory":{"limit":134217728},"cpu":{"quota":50000}}"#,
        )
        .await
        .unwrap();
        assert_eq!(memory(test, "c"), (128 + OVERHEAD) << 20);
        let quota = limit(&cpu, ["cpu.cfs_quota_us", "cpu.max"]);
        assert_eq!(quota.split(' ').next(), Some("75000"));

        let status = refused(shim.update("c", r#"{"memory":{"limit":1073741824}}"#).await);
        assert_eq!(status.code, Code::InvalidArgument);
        let why = "memory limit of 1024 MiB: the VM was booted with";
        assert!(status.message.contains(why), "{}", status.message);
        assert_eq!(memory(test, "c"), (128 + OVERHEAD) << 20);

        // Another container's limits are added; what the VM may have had is not taken away.
        let other = test
            .bundle("d")
            .annotation(group, "g")
            .memory_limit(32 << 20)
            .build();
        other.start().answer().await;
        shim.create(other.create()).await.unwrap();
        assert_eq!(memory(test, "c"), (160 + OVERHEAD) << 20);
        assert!(!cgroup(test, "d", "memory").exists());
        shim.start("d", "").await.unwrap();
        // The guest's kernel may fail if a program is killed before it was read (VFS: Busy inodes).
        shim.run(other.exec("up", &["true"])).await;
        shim.wait("d", "up").await.unwrap();
        for id in ["d", "c"] {
            shim.kill(id, "", 9, false).await.unwrap();
            shim.wait(id, "").await.unwrap();
            shim.delete(id, "").await.unwrap();
        }
        for controller in ["memory", "cpu", "pids", "freezer"] {
            assert!(!cgroup(test, "c", controller).exists(), "{controller}");
        }
    });
}

/// The number of a block device of this machine's.
fn device() -> [u64; 2] {
    let devices = fs::read_dir("/sys/block").expect("devices");
    let text = |dir: fs::DirEntry| fs::read_to_string(dir.path().join("dev")).ok();
    let mut numbers = devices.filter_map(|dir| text(dir.ok()?));
    let number = numbers.next().expect("a block device");
    let (major, minor) = number.trim().split_once(':').expect("major:minor");
    [major, minor].map(|n| n.parse().expect("a number"))
}

/// Issue 16, point 7: pids, swap and block devices. The containers' processes are the guest's, and
/// the VM's threads have room beside them. The guest is not told of swap and devices. What can't be
/// is refused, and changes nothing.
#[test]
fn a_vms_cgroup_has_the_limits_of_pids_swap_and_devices() {
    crate::run(async |test| {
        let [major, minor] = device();
        let throttle = |rate: u64| {
            let device = json!([{"major": major, "minor": minor, "rate": rate}]);
            json!({"throttleReadBpsDevice": device, "throttleWriteIOPSDevice": device})
        };
        let bundle = test
            .bundle("c")
            .set(
                "/linux/resources/memory",
                json!({"limit": 96 << 20, "swap": 128 << 20}),
            )
            .set("/linux/resources/pids", json!({"limit": 8}))
            .set("/linux/resources/blockIO", throttle(1 << 40))
            .build();
        let shim = bundle.running().await;
        let pids = || limit(&cgroup(test, "c", "pids"), ["pids.max"; 2]);
        let swap = || {
            let files = ["memory.memsw.limit_in_bytes", "memory.swap.max"];
            let both = limit(&cgroup(test, "c", "memory"), files);
            both.parse::<u64>().expect("bytes")
        };
        let io = |v1: &str| {
            let files = [&format!("blkio.throttle.{v1}_device"), "io.max"];
            limit(&cgroup(test, "c", "blkio"), files)
        };
        let version_1 = cgroup(test, "c", "memory")
            .join("memory.memsw.limit_in_bytes")
            .exists();
        let beside = if version_1 { 96 + OVERHEAD } else { 0 };
        assert_eq!(pids(), "1032");
        assert_eq!(swap(), (32 + beside) << 20);
        for kind in ["read_bps", "write_iops"] {
            assert!(io(kind).starts_with(&format!("{major}:{minor} ")), "{kind}");
        }
        assert!(io("read_bps").contains(&(1u64 << 40).to_string()));
        let script = "for n in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done";
        shim.run(bundle.exec_sh("forks", script)).await;
        let ended = shim.wait("c", "forks").await.unwrap();
        assert_ne!(ended.exit_status, 0, "its own limit is the guest's to keep");

        let both = json!({"limit": 96 << 20, "swap": 160 << 20});
        let update = json!({"pids": {"limit": 20}, "memory": both, "blockIO": throttle(1 << 41)});
        shim.update("c", &update.to_string()).await.unwrap();
        assert_eq!(pids(), "1044");
        assert_eq!(swap(), (64 + beside) << 20);
        assert!(io("read_bps").contains(&(1u64 << 41).to_string()));
        for (update, why) in [
            (json!({"pids": {"limit": "20"}}), "pids.limit: \"20\""),
            (json!({"memory": {"swap": 1}}), "memory.swap: 1: less than"),
            (json!({"blockIO": {"weight": 1001}}), "blockIO.weight: 1001"),
        ] {
            let status = refused(shim.update("c", &update.to_string()).await);
            assert_eq!(status.code, Code::InvalidArgument);
            let why = format!("linux.resources.{why}");
            assert!(status.message.contains(&why), "{}", status.message);
        }
        let nothing = json!([{"major": 4095, "minor": 77, "rate": 1}]);
        let update = json!({"pids": {"limit": 30}, "blockIO": {"throttleReadBpsDevice": nothing}});
        let status = refused(shim.update("c", &update.to_string()).await);
        assert!(status.message.contains("4095:77"), "{}", status.message);
        assert_eq!(pids(), "1044");
        // A rate of 0 is no throttle.
        let update = json!({"pids": {"limit": -1}, "memory": {"swap": -1}, "blockIO": throttle(0)});
        shim.update("c", &update.to_string()).await.unwrap();
        assert_eq!((pids().as_str(), io("read_bps").as_str()), ("max", ""));
    });
}

/// Issue 16, point 7: QEMU killed for lack of the host's memory is TaskOOM of its containers, told
/// before their exits. After that, and a shim that is killed, `delete` takes the cgroup away.
#[test]
fn a_vm_that_is_killed_for_lack_of_memory_tells_so() {
    crate::run(async |test| {
        let bundle = test.bundle("c").memory_limit(400 << 20).build();
        let shim = bundle.running().await;
        let dir = cgroup(test, "c", "memory");
        let used = limit(&dir, ["memory.usage_in_bytes", "memory.current"]);
        let little = used.parse::<u64>().expect("bytes") + (24 << 20);
        let files = ["memory.limit_in_bytes", "memory.max"].map(|file| dir.join(file));
        let file = files.iter().find(|file| file.exists()).expect("a limit");
        fs::write(file, little.to_string()).expect("a limit");
        shim.run(bundle.exec_sh("eats", "exec tail /dev/zero"))
            .await;
        assert_eq!(test.events().exit("c", "c").await.exit_status, 137);
        let about = test.events().about("c");
        let oom = |event: &Event| matches!(&event.kind, Kind::Oom(oom) if oom.container_id == "c");
        let place = |of: &dyn Fn(&Event) -> bool| about.iter().position(of).expect("an event");
        assert!(place(&oom) < place(&|event| event.exit_of("c", "eats").is_some()));
        assert!(place(&oom) < place(&|event| event.exit_of("c", "c").is_some()));
        assert_eq!(about.iter().filter(|event| oom(event)).count(), 1);
        assert!(dir.exists());
        shim.kill_process().await;
        bundle.start().deleted().await;
        assert!(!dir.exists());
    });
}

/// Issue 16, point 7: an operator's maxima hold against annotations; 1 TiB was accepted.
#[test]
fn annotations_stay_below_the_operators_maxima() {
    crate::run(async |test| {
        let most = [
            ("max_memory", "300".to_owned()),
            ("max_vcpus", "1".to_owned()),
            ("memory", "256".to_owned()),
        ];
        let config = jail::config(test, "most.toml", &most);
        let ours = std::env::var("DUNNAGE_VM_CONFIG").expect("set");
        for (id, config, name, value) in [
            ("tib", ours.as_ref(), "memory", "1048576"),
            ("cpus", ours.as_ref(), "vcpus", "65"),
            ("memory", config.as_path(), "memory", "301"),
            ("vcpus", config.as_path(), "vcpus", "2"),
        ] {
            let annotation = format!("io.dunnage.vm.{name}");
            let bundle = test.bundle(id).annotation(&annotation, value).build();
            let start = bundle
                .start()
                .env("DUNNAGE_VM_CONFIG", &config.to_string_lossy());
            let shim = start.shim().await;
            let create = shim.create(bundle.create());
            let status = refused(wait::within(wait::DEADLINE, "the refusal", create).await);
            let text = &status.message;
            assert!(
                text.contains(&format!("{annotation}=\"{value}\"")),
                "{text}"
            );
            assert!(text.contains("not within"), "{text}");
            shim.shutdown(id).await.unwrap();
            shim.stopped().await;
        }
    });
}
