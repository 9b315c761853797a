// SPDX-License-Identifier: Apache-2.0
//! A network that is made when there is a VM already, in the namespace of the VM's process, as Docker
//! and `ctr run --cni` do it.

use crate::network::Namespace;
use crate::said;
use harness::bundle::Bundle;
use harness::{Test, wait};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// A container in a network namespace that nobody names.
fn own(test: &Test, id: &str) -> Bundle {
    let kinds = ["pid", "ipc", "uts", "mount", "network"];
    let namespaces: Value = kinds.iter().map(|kind| json!({ "type": kind })).collect();
    let sysfs = json!({"destination": "/sys", "type": "sysfs", "source": "sysfs"});
    let bundle = test.bundle(id).set("/linux/namespaces", namespaces);
    bundle.mount(sysfs).build()
}

/// A namespace ends with its only process, a little later, and with it both ends of its veths.
fn wait_for_no_devices(world: &Namespace) {
    wait::until_within(wait::DEADLINE, "the end of the veths", || {
        let devices = world.devices();
        match devices.as_str() {
            "lo with 0 ingress qdiscs" => Ok(()),
            _ => Err(devices),
        }
    });
}

/// Between Create and Start a veth comes into the namespace; the container has it.
#[test]
fn a_network_that_comes_after_create_is_the_containers() {
    crate::run(async |test| {
        let world = Namespace::new(test, "w");
        let bundle = own(test, "c");
        let shim = bundle.start().shim().await;
        let pid = shim.create(bundle.create()).await.unwrap().pid;
        world.give(pid, "eth0", 2);
        shim.start("c", "").await.unwrap();
        let script = "cd /sys/class/net; ls; cat eth0/address eth0/mtu; \
                      ip route | sed 's/ *$//'; ping -c 1 -W 20 10.9.2.1 | grep -c ' 0% '";
        let mut look = harness::bundle::process(test, &["sh", "-c", script]);
        for set in ["bounding", "effective", "permitted"] {
            look["capabilities"][set] = json!(["CAP_NET_RAW"]);
        }
        assert_eq!(
            said(&shim, &bundle, bundle.exec_spec("look", &look)).await,
            "eth0\nlo\n02:00:00:00:02:02\n1400\n\
             default via 10.9.2.1 dev eth0\n\
             10.9.2.0/24 dev eth0 scope link  src 10.9.2.2\n1\n"
        );
        world.ping("10.9.2.2");
        shim.kill("c", "", 9, false).await.unwrap();
        shim.wait("c", "").await.unwrap();
        shim.delete("c", "").await.unwrap();
        wait_for_no_devices(&world);
    });
}

/// Nobody makes a network: there is none. Two come: there is room for one, and Start says so.
#[test]
fn a_vm_has_room_for_one_network_that_comes_late() {
    crate::run(async |test| {
        let bundle = own(test, "none");
        let shim = bundle.running().await;
        // A kernel that has the driver built in shows the device in store, but it is down.
        let look = bundle.exec_sh("look", "ip -o link show up | cut -d: -f2; ip route");
        assert_eq!(said(&shim, &bundle, look).await, " lo\n");

        let world = Namespace::new(test, "w");
        let bundle = own(test, "two");
        let shim = bundle.start().shim().await;
        let pid = shim.create(bundle.create()).await.unwrap().pid;
        world.give(pid, "eth0", 2);
        world.give(pid, "eth1", 3);
        let status = harness::refused(shim.start("two", "").await);
        let expected = "eth0 and eth1: a VM has room for one that comes after its boot";
        assert!(status.message.ends_with(expected), "{status}");
        shim.delete("two", "").await.unwrap();
        wait_for_no_devices(&world);
    });
}

/// Who makes a network once there is a task looks for its namespace as that of the task's process:
/// it is the one that the container was to join, or one of its own, and never the host's.
#[test]
fn a_vms_process_is_never_in_the_hosts_network() {
    crate::run(async |test| {
        let (container, _world) = crate::network::pair(test);
        let joins = test
            .bundle("joins")
            .set("/linux/namespaces", crate::network::namespaces(&container));
        let (joins, host) = (joins.build(), test.bundle("host").build());
        let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
        let network = |pid: u32| inode(format!("/proc/{pid}/ns/net").into());
        let shim = joins.running().await;
        let there = shim.state("joins", "").await.unwrap().pid;
        assert_eq!(network(there), inode(container.path()));
        for bundle in [host, own(test, "own")] {
            let shim = bundle.running().await;
            let pid = shim.state(&bundle.id, "").await.unwrap().pid;
            assert_ne!(network(pid), network(std::process::id()), "{}", bundle.id);
        }
    });
}
