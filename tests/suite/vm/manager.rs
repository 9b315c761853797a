// SPDX-License-Identifier: Apache-2.0
//! `dunnage run` with the runtime's name.

use harness::image::{Image, Layer};
use harness::manager::Manager;
use harness::manager::net::Net;
use harness::{manager, peers, proc, program, wait};
use serde_json::json;
use std::fs;
use std::net::TcpStream;

const RUNTIME: &str = "io.containerd.vm.v2";

/// The shim and the image, where a manager's containers find them.
fn install(manager: &Manager) {
    let shim = manager.dir().join("bin/containerd-shim-vm-v2");
    program::copy(peers::shim(), &shim);
    crate::install_image(manager.dir());
}

/// With `on_death = "keep"` a VM outlives its shim, whatever that was doing: another goes on, execs run on
/// and end with their own status, and the journal has each exit once.
#[test]
fn a_container_in_a_vm_outlives_its_shims() {
    crate::prepare();
    manager::with("[shim]\non_death = \"keep\"\n", |manager| {
        install(manager);
        let options = ["-d", "--runtime", RUNTIME];
        manager.run(&options, "c", &["sleep", "100000"]).ok();
        let vm = manager.pid_of("c");
        let mut shim = manager.shim_of("c");
        let keeper = proc::stat(shim).expect("the shim").ppid;
        let script = ["exec", "-i", "c", "sh", "-c", "cat; exit 5"];
        let mut long = manager.spawn_dunnage(&script);
        manager.until("it runs", |it| {
            let found = it.dunnage(&["exec", "c", "pidof", "cat"]);
            (found.code == 0).then_some(())
        });
        for round in 0..3 {
            wait::signal(shim, libc::SIGKILL).unwrap();
            shim = manager.until("another shim", |_| {
                let children = proc::children(keeper).into_iter();
                let mut shims = children.filter(|pid| *pid != shim);
                shims.find(|pid| {
                    proc::words(*pid, "cmdline")
                        .last()
                        .is_some_and(|w| w == "adopt")
                })
            });
            let code = 20 + round;
            let script = format!("echo here; exit {code}");
            let ran = manager.dunnage(&["exec", "c", "sh", "-c", &script]);
            assert_eq!(ran.exits(code).stdout, "here\n", "round {round}");
            assert_eq!(manager.pid_of("c"), vm);
            assert_eq!(manager.status("c"), "running");
        }
        long.write("to the end\n");
        long.close_stdin();
        assert_eq!(long.finish().exits(5).stdout, "to the end\n");
        let exits = manager.json(&["exits", "c"]);
        let mut statuses: Vec<_> = exits.iter().map(|exit| exit["status"].as_u64()).collect();
        statuses.retain(|status| status.is_some_and(|status| status > 1));
        statuses.sort_unstable();
        assert_eq!(statuses, [5, 20, 21, 22].map(Some));

        // A new daemon finds the shim that was brought back.
        manager.kill();
        manager.restart();
        manager
            .dunnage(&["exec", "c", "sh", "-c", "exit 9"])
            .exits(9);
        manager.dunnage(&["stop", "-t", "100ms", "c"]).ok();
        assert_eq!(manager.exits("c").len(), 1);
        manager.dunnage(&["rm", "c"]).ok();
        for pid in [vm, shim, keeper] {
            manager.until("its end", |_| (!proc::alive(pid)).then_some(()));
        }
    });
}

#[test]
fn dunnage_runs_a_container_in_a_vm() {
    crate::prepare();
    manager::on(|manager| {
        install(manager);
        let runtime = ["--runtime", RUNTIME];
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
        install(manager);
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

/// The same overlay, mounted in the VM's share: what a container of it writes is its own there, too.
#[test]
fn an_images_container_has_its_own_root_in_a_vm() {
    crate::prepare();
    manager::on(|manager| {
        install(manager);
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
        // Files go in and out through the guest.
        let (host, back) = (manager.dir().join("host"), manager.dir().join("back"));
        fs::write(&host, "of the host\n").expect("a file");
        let [host, out] = [&host, &back].map(|path| path.display().to_string());
        manager.dunnage(&["cp", &host, "c:/copied"]).ok();
        manager.dunnage(&["stop", "-t", "0s", "c"]).ok();
        let at_rest = manager.dunnage(&["cp", "c:/copied", &out]).exits(1);
        assert!(at_rest.stderr.contains("does not run"), "{at_rest}");
        manager.dunnage(&["start", "c"]).ok();
        manager.dunnage(&["cp", "c:/copied", &out]).ok();
        assert_eq!(fs::read_to_string(&back).expect("a file"), "of the host\n");
        manager
            .dunnage(&["exec", "c", "cat", "/of"])
            .ok()
            .prints("mine\n");
        let fresh = ["run", "--rm", "box", "cat", "/of"];
        manager.dunnage(&fresh).ok().prints("the image\n");
    });
}
