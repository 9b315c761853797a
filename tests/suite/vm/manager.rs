//! `dunnage run` with the runtime's name.

use harness::{manager, peers, program};
use std::fs;

#[test]
fn dunnage_runs_a_container_in_a_vm() {
    crate::prepare();
    manager::on(|manager| {
        let shim = manager.dir().join("bin/containerd-shim-vm-v2");
        program::copy(peers::shim(), &shim);
        crate::install_image(manager.dir());
        let runtime = ["--runtime", "io.containerd.vm.v2"];
        let ran = manager
            .run(&runtime, "c", &["sh", "-c", "uname -r; exit 6"])
            .exits(6);
        let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let guest = ran.stdout.trim();
        assert!(!guest.is_empty() && guest != host.trim(), "kernel {guest}");

        let detached = ["-d", runtime[0], runtime[1]];
        manager.run(&detached, "d", &["sleep", "1000"]).ok();
        let stats = manager.json(&["stats", "--no-stream"]);
        let bytes = stats[0]["vm_memory_bytes"].as_u64().expect("a size");
        assert!(bytes > 48 << 20, "{bytes}");
        manager.dunnage(&["stop", "d"]).ok();
    });
}
