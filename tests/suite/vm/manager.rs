//! `dunnage run` with the runtime's name.

use harness::manager::net::Net;
use harness::{manager, peers, program};
use std::fs;
use std::net::TcpStream;

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

/// Its filter of system calls, its network by CNI with a port of the host's, and its names.
#[test]
fn a_container_in_a_vm_is_confined_and_has_its_network() {
    crate::prepare();
    let net = Net::make();
    manager::with(&net.config(), |manager| {
        let shim = manager.dir().join("bin/containerd-shim-vm-v2");
        program::copy(peers::shim(), &shim);
        crate::install_image(manager.dir());
        let (name, port) = (net.name(), format!("{}:80", net.port(0)));
        let options =
            "-d --runtime io.containerd.vm.v2 --hostname web --dns 9.9.9.9 --add-host db:10.1.1.1";
        let mut options: Vec<&str> = options.split_whitespace().collect();
        options.extend(["--net", &name, "-p", &port]);
        let server = ["httpd", "-f", "-p", "80", "-h", "/etc"];
        manager.run(&options, "c", &server).ok();
        let about = "grep Seccomp: /proc/self/status | tr -d '\\t'; unshare -U true 2>/dev/null; \
                     cat /etc/hostname /etc/resolv.conf /proc/interrupts; tail -n 2 /etc/hosts; hostname";
        let said = manager
            .dunnage(&["exec", "c", "sh", "-c", about])
            .ok()
            .stdout;
        let lease = net.leases().pop().expect("an address");
        let expected =
            format!("Seccomp:2\nweb\nnameserver 9.9.9.9\n{lease}\tweb\n10.1.1.1\tdb\nweb\n");
        assert_eq!(said, expected);
        let connects = || TcpStream::connect(("127.0.0.1", net.port(0))).is_ok();
        manager.until("it listens", |_| connects().then_some(()));
        manager.dunnage(&["stop", "-t", "0s", "c"]).ok();
        manager.dunnage(&["start", "c"]).ok();
        manager.until("it listens again", |_| connects().then_some(()));
        assert_eq!(net.leases(), [lease]);
        manager.dunnage(&["rm", "-f", "c"]).ok();
        net.is_clean(manager);
    });
}
