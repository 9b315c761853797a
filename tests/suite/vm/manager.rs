//! `dunnage run` with the runtime's name.

use harness::image::{Image, Layer};
use harness::{manager, peers, program};
use serde_json::json;
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

/// The same overlay, mounted in the VM's share: what a container of it writes is its own there, too.
#[test]
fn an_images_container_has_its_own_root_in_a_vm() {
    crate::prepare();
    manager::on(|manager| {
        let shim = manager.dir().join("bin/containerd-shim-vm-v2");
        program::copy(peers::shim(), &shim);
        crate::install_image(manager.dir());
        let layers = [
            Layer::of_rootfs(),
            Layer::default().file("of", "the image\n"),
        ];
        let config = json!({"Cmd": ["sleep", "1000"], "User": "nobody"});
        let layout = manager.dir().join("layout");
        Image::new(&layers, config).layout(&layout, "box");
        let load = ["image", "load", &layout.display().to_string()];
        manager.dunnage(&load).ok();
        let run = [
            "run",
            "-d",
            "--runtime",
            "io.containerd.vm.v2",
            "--name",
            "c",
            "box",
        ];
        manager.dunnage(&run).ok();
        let said = manager
            .dunnage(&["exec", "c", "sh", "-c", "id -u; cat /of; uname -r"])
            .ok();
        let lines: Vec<&str> = said.stdout.lines().collect();
        let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        assert!(
            lines[..2] == ["65534", "the image"] && lines[2] != host.trim(),
            "{said}"
        );
        manager
            .dunnage(&["exec", "--user", "0", "c", "sh", "-c", "echo mine >/of"])
            .ok();
        manager.dunnage(&["stop", "-t", "0s", "c"]).ok();
        manager.dunnage(&["start", "c"]).ok();
        manager
            .dunnage(&["exec", "c", "cat", "/of"])
            .ok()
            .prints("mine\n");
        let fresh = ["run", "--rm", "box", "cat", "/of"];
        manager.dunnage(&fresh).ok().prints("the image\n");
    });
}
