// SPDX-License-Identifier: Apache-2.0
//! What a guest has freed of its memory is the host's again.

use crate::said;
use harness::{Code, refused, wait};
use serde_json::json;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

/// How much of the guest's memory the host holds, in bytes: the blocks of the file in memory that it is.
fn held(qemu: i32) -> u64 {
    let fds = fs::read_dir(format!("/proc/{qemu}/fd")).expect("QEMU");
    let paths = fds.map(|entry| entry.expect("an entry").path());
    let is_memory = |path: &std::path::PathBuf| {
        fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains("memfd:memory-backend"))
    };
    let memory = { paths }.find(is_memory).expect("the guest's memory");
    fs::metadata(memory).expect("a file").blocks() * 512
}

/// A container that is resized in place, in a VM that was booted for what it may become: what it may use
/// grows and shrinks, in the guest and on the host, and what is beyond the VM is refused by name.
#[test]
fn limits_grow_and_shrink_as_far_as_the_vm_was_booted_for() {
    crate::run(async |test| {
        let memory = json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"});
        let namespaces = ["pid", "ipc", "uts", "mount", "cgroup"].map(|n| json!({ "type": n }));
        let sysfs = json!({"destination": "/sys", "type": "sysfs", "source": "sysfs"});
        let cgroups = json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                             "options": ["ro"]});
        let bundle = test
            .bundle("c")
            .annotation("io.dunnage.vm.memory", "768")
            .memory_limit(64 << 20)
            .set("/linux/namespaces", json!(namespaces))
            .set(
                "/linux/resources/cpu",
                json!({"quota": 50_000, "period": 100_000}),
            )
            .mount(memory)
            .mount(sysfs)
            .mount(cgroups)
            .build();
        let shim = bundle.running().await;
        let used = "dd if=/dev/zero of=/tmp/x bs=1M count=200 2>/dev/null && echo used || echo not; \
            rm /tmp/x; cd /sys/fs/cgroup; cat memory.max cpu.max; nproc";
        let exec = |id, script| bundle.exec_sh(id, script);
        let small = said(&shim, &bundle, exec("e", "cat /sys/fs/cgroup/memory.max")).await;
        assert_eq!(small, "67108864\n");
        let update = r#"{"memory":{"limit":536870912},"cpu":{"quota":100000,"period":100000}}"#;
        shim.update("c", update).await.unwrap();
        let grown = said(&shim, &bundle, exec("f", used)).await;
        assert_eq!(grown, "used\n536870912\n100000 100000\n1\n");
        for (update, why) in [
            (
                r#"{"memory":{"limit":1073741824}}"#,
                "memory limit of 1024 MiB: the VM was booted with 768 MiB",
            ),
            (
                r#"{"cpu":{"quota":150000,"period":100000}}"#,
                "cpu quota of 2 processors: the VM was booted with 1",
            ),
        ] {
            let status = refused(shim.update("c", update).await);
            assert_eq!(status.code, Code::InvalidArgument);
            assert!(status.message.contains(why), "{}", status.message);
        }
        let update = r#"{"memory":{"limit":134217728},"cpu":{"quota":50000,"period":100000}}"#;
        shim.update("c", update).await.unwrap();
        let limits = "cd /sys/fs/cgroup; cat memory.max cpu.max";
        let shrunk = said(&shim, &bundle, exec("g", limits)).await;
        assert_eq!(shrunk, "134217728\n50000 100000\n");
    });
}

#[test]
fn what_a_container_has_freed_is_the_hosts_again() {
    const USED: u64 = 100 << 20;
    crate::run(async |test| {
        let memory = json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"});
        let bundle = test.bundle("c").mount(memory).build();
        let shim = bundle.running().await;
        let qemu = crate::death::qemu(&shim);
        let before = held(qemu);
        let script = "dd if=/dev/zero of=/tmp/x bs=1M count=100 2>/dev/null; echo used";
        let exec = |id, script| bundle.exec_sh(id, script);
        assert_eq!(said(&shim, &bundle, exec("e", script)).await, "used\n");
        let most = held(qemu);
        assert!(most > before + USED / 2, "{before} {most}");
        shim.delete("c", "e").await.unwrap();
        said(&shim, &bundle, exec("f", "rm /tmp/x")).await;
        wait::until_within(Duration::from_secs(60), "the memory", || {
            let now = held(qemu);
            let is_back = most.saturating_sub(now) >= USED / 10 * 9;
            is_back
                .then_some(())
                .ok_or_else(|| format!("{now} of {most}"))
        });
    });
}
