// SPDX-License-Identifier: Apache-2.0
//! The cgroup of a VM, with version 2. There is no VM in the VM, which would take minutes: the shim is
//! real, and in QEMU's place is `tests/hostile`, which is as honest as a guest until it is told to
//! eat. What is looked at, the shim's part and the kernel's, does not know the difference.

use crate::{cgroup, field, read};
use harness::events::{Event, Kind};
use harness::vm::{image, with_cgroup2};
use harness::{Code, Shim, Test, peers, proc, refused};
use serde_json::json;
use std::fs;
use std::path::Path;

/// MiB that the configuration gives beside the container's limit.
const OVERHEAD: u64 = 24;

/// With the test's double in QEMU's place.
async fn shim(test: &Test, id: &str) -> (harness::Bundle, Shim) {
    let config = test.dir().join("shim-vm.toml");
    let (kernel, initrd) = (image().join("vmlinux"), image().join("initrd"));
    let text = format!(
        "accel = \"tcg\"\nqemu = {:?}\nkernel = {kernel:?}\ninitrd = {initrd:?}\n\
         overhead_memory = {OVERHEAD}\n",
        env!("CARGO_BIN_EXE_hostile")
    );
    fs::write(&config, text).expect("a configuration");
    let bundle = test
        .bundle(id)
        .set(
            "/linux/resources/memory",
            json!({"limit": 16 << 20, "swap": 24 << 20}),
        )
        .set("/linux/resources/pids", json!({"limit": 20}))
        .set(
            "/linux/resources/cpu",
            json!({"quota": 150_000, "period": 100_000, "shares": 512}),
        )
        .build();
    let start = bundle.start().binary(&peers::vm_shim());
    let start = start.env("DUNNAGE_VM_CONFIG", &config.to_string_lossy());
    (bundle.clone(), start.shim().await)
}

/// The VM's two processes.
fn processes(shim: &Shim) -> Vec<i32> {
    let is = |pid: &i32| {
        let words = proc::words(*pid, "cmdline");
        ["-no-user-config", "fsd"]
            .iter()
            .any(|own| words.iter().any(|word| word == own))
    };
    let mut found = proc::children(shim.pid());
    found.retain(is);
    found.sort_unstable();
    found
}

fn members(dir: &Path) -> Vec<i32> {
    let list = read(dir, "cgroup.procs");
    let pids = list.lines().map(|pid| pid.parse().expect("a pid"));
    let mut pids: Vec<i32> = pids.collect();
    pids.sort_unstable();
    pids
}

/// Issue 16, point 7: the cgroup is made, has the processes and the limits, and goes with the VM.
#[test]
fn a_vms_cgroup_has_its_processes_and_limits() {
    with_cgroup2(async |test| {
        let (bundle, shim) = shim(test, "honest").await;
        let dir = cgroup(test, "honest");
        shim.create(bundle.create()).await.unwrap();
        shim.start("honest", "").await.unwrap();
        let own = processes(&shim);
        assert_eq!((own.len(), &own), (2, &members(&dir)));
        let limits = |expected: &[(&str, String)]| {
            for (file, value) in expected {
                assert_eq!(&read(&dir, file), value, "{file}");
            }
        };
        limits(&[
            ("memory.max", ((16 + OVERHEAD) << 20).to_string()),
            ("memory.swap.max", (8 << 20).to_string()),
            ("pids.max", "1044".into()),
            ("cpu.max", "175000 100000".into()),
            ("cpu.weight", "20".into()),
        ]);
        let memory = json!({"limit": 20 << 20, "swap": 20 << 20});
        let update = json!({"memory": memory, "pids": {"limit": 30}, "cpu": {"quota": -1}});
        shim.update("honest", &update.to_string()).await.unwrap();
        limits(&[
            ("memory.max", ((20 + OVERHEAD) << 20).to_string()),
            ("memory.swap.max", "0".into()),
            ("pids.max", "1054".into()),
            ("cpu.max", "max 100000".into()),
        ]);
        // Which of them there are is the kernel's to say.
        for (file, weight) in [("io.bfq.weight", "500"), ("io.weight", "4950")] {
            if dir.join(file).exists() {
                let update = json!({"blockIO": {"weight": 500}});
                shim.update("honest", &update.to_string()).await.unwrap();
                assert_eq!(field(&dir, file, "default").to_string(), weight);
                break;
            }
        }
        let rate = json!([{"major": 4095, "minor": 77, "rate": 1}]);
        let update = json!({"blockIO": {"throttleReadBpsDevice": rate}});
        let status = refused(shim.update("honest", &update.to_string()).await);
        assert_eq!(status.code, Code::Unknown);
        assert!(
            status.message.contains("4095:77 rbps=1"),
            "{}",
            status.message
        );
        shim.kill("honest", "", 9, false).await.unwrap();
        shim.wait("honest", "").await.unwrap();
        shim.delete("honest", "").await.unwrap();
        assert!(!dir.exists());
    });
}

/// Issue 16, point 7: the kernel kills for lack of memory whoever is in QEMU's place, which TaskOOM
/// tells before the exits.
#[test]
fn a_vm_that_is_killed_for_lack_of_memory_tells_so() {
    with_cgroup2(async |test| {
        let (bundle, shim) = shim(test, "eats").await;
        let dir = cgroup(test, "eats");
        shim.create(bundle.create()).await.unwrap();
        shim.start("eats", "").await.unwrap();
        shim.exec(bundle.exec("go", &["x"])).await.unwrap();
        // The VM may end before the answer comes.
        let _ = shim.start("eats", "go").await;
        assert_eq!(test.events().exit("eats", "eats").await.exit_status, 137);
        let about = test.events().about("eats");
        let oom = |event: &Event| matches!(&event.kind, Kind::Oom(of) if of.container_id == "eats");
        let place = |of: &dyn Fn(&Event) -> bool| about.iter().position(of).expect("an event");
        assert!(place(&oom) < place(&|event| event.exit_of("eats", "go").is_some()));
        assert!(place(&oom) < place(&|event| event.exit_of("eats", "eats").is_some()));
        assert!(field(&dir, "memory.events", "oom_kill") > 0);
        shim.delete("eats", "").await.unwrap();
        assert!(!dir.exists());
    });
}
