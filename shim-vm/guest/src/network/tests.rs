// SPDX-License-Identifier: Apache-2.0
//! Tests of the VM's network devices: a real namespace with a veth in it stands for the VM.

#![allow(
    clippy::disallowed_methods,
    reason = "a test may wait for ip; nothing else here waits for children"
)]

use super::*;
use nix::sched::{CloneFlags, unshare};
use std::process::Command;

/// What a command prints, in this thread's namespace; its words have no spaces in them.
fn run(command: &str) -> String {
    let mut words = command.split(' ');
    let mut process = Command::new(words.next().unwrap());
    let output = process.args(words).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(text).unwrap();
    assert!(output.status.success(), "{command}: {text}");
    text
}

/// Gives this test's thread, and what it runs, a namespace of its own with a device in it.
fn machine() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    run("ip link add virtio0 address 02:00:00:00:00:02 type veth peer name outside");
    run("ip link set outside up");
}

fn interface(addresses: &[&str]) -> Interface {
    Interface {
        name: "eth0".into(),
        mac: "02:00:00:00:00:02".into(),
        mtu: 1400,
        addresses: addresses.iter().map(|text| (*text).into()).collect(),
        device: String::new(),
    }
}

fn route(destination: &str, gateway: &str) -> Route {
    Route {
        destination: destination.into(),
        gateway: gateway.into(),
        interface: "eth0".into(),
        ..Route::default()
    }
}

#[test]
fn devices_get_what_the_host_says() {
    machine();
    let routes = [
        // The gateway's own route comes after it, as the kernel may list them.
        route("0.0.0.0/0", "10.9.0.1"),
        Route {
            source: "10.9.0.2".into(),
            ..route("10.9.0.0/24", "")
        },
        Route {
            metric: 50,
            onlink: true,
            ..route("10.0.0.0/8", "192.168.7.1")
        },
        route("::/0", "fd00:9::1"),
        route("fd00:9::/64", ""),
    ];
    let neighbour = Neighbour {
        address: "10.9.0.1".into(),
        mac: "02:00:00:00:00:01".into(),
        interface: "eth0".into(),
    };
    let eth0 = interface(&["10.9.0.2/24", "fd00:9::2/64"]);
    // The second time nothing changes, and nothing fails.
    for _ in 0..2 {
        apply(
            std::slice::from_ref(&eth0),
            &routes,
            std::slice::from_ref(&neighbour),
        )
        .unwrap();
        let link = run("ip -o link show eth0");
        assert!(link.contains("mtu 1400") && link.contains(",UP"), "{link}");
        assert!(run("ip -o link show lo").contains(",UP"));
        let addresses = run("ip -o address show eth0");
        assert!(
            addresses.contains("10.9.0.2/24 brd 10.9.0.255"),
            "{addresses}"
        );
        assert!(addresses.contains("fd00:9::2/64"), "{addresses}");
        assert!(!run("ip -6 address show eth0 tentative").contains("fd00:9::2"));
        assert_eq!(
            run("ip -4 route show").replace(" \n", "\n"),
            "default via 10.9.0.1 dev eth0\n\
             10.0.0.0/8 via 192.168.7.1 dev eth0 metric 50 onlink\n\
             10.9.0.0/24 dev eth0 scope link src 10.9.0.2\n"
        );
        let six = run("ip -6 route show");
        assert!(six.contains("default via fd00:9::1 dev eth0"), "{six}");
        assert!(six.contains("fd00:9::/64 dev eth0"), "{six}");
        let neighbours = run("ip neighbour show dev eth0 nud permanent");
        assert!(
            neighbours.contains("10.9.0.1 lladdr 02:00:00:00:00:01"),
            "{neighbours}"
        );
    }
}

/// As when the network has come after the device.
#[test]
fn a_device_in_store_becomes_the_interface() {
    machine();
    let eth0 = Interface {
        mac: "02:00:00:00:00:07".into(),
        device: "02:00:00:00:00:02".into(),
        ..interface(&["10.9.0.2/24"])
    };
    apply(&[eth0], &[], &[]).unwrap();
    let link = run("ip -o link show eth0");
    assert!(link.contains("02:00:00:00:00:07"), "{link}");
    assert!(link.contains("mtu 1400") && link.contains(",UP"), "{link}");
    assert!(run("ip -o address show eth0").contains("10.9.0.2/24"));
}

#[test]
fn without_interfaces_there_is_the_loopback_device() {
    machine();
    apply(&[], &[], &[]).unwrap();
    assert!(run("ip -o link show lo").contains(",UP"));
    assert!(run("ip -o link show virtio0").contains("state DOWN"));
    run("ip route get 127.0.0.1");
}

#[test]
fn wrong_values_are_named() {
    machine();
    let eth0 = interface(&["10.9.0.2/24"]);
    let none = Interface {
        mac: "02:00:00:00:00:09".into(),
        ..eth0.clone()
    };
    let error = apply(&[none], &[], &[]).unwrap_err();
    assert_eq!(
        error,
        "interface eth0: no device has the MAC 02:00:00:00:00:09"
    );
    for wrong in ["10.9.0.2", "10.9.0.2/33", "ten/8"] {
        let error = apply(&[interface(&[wrong])], &[], &[]).unwrap_err();
        let expected = format!("interface eth0: \"{wrong}\" is not an address with a length");
        assert_eq!(error, expected);
    }
    let eth0 = std::slice::from_ref(&eth0);
    for (route, expected) in [
        (
            route("", "10.9.0.1"),
            "route to : \"\" is not an address with a length",
        ),
        (
            route("10.1.0.0/16", "here"),
            "route to 10.1.0.0/16: \"here\" is not an address",
        ),
        (
            Route {
                interface: "eth7".into(),
                ..route("10.1.0.0/16", "")
            },
            "route to 10.1.0.0/16: there is no interface \"eth7\"",
        ),
        (
            route("10.2.0.0/16", "10.77.0.1"),
            "route to 10.2.0.0/16: Network is unreachable (os error 101)",
        ),
    ] {
        assert_eq!(apply(eth0, &[route], &[]).unwrap_err(), expected);
    }
    let neighbour = Neighbour {
        address: "10.9.0.1".into(),
        mac: "none".into(),
        interface: "eth0".into(),
    };
    let error = apply(eth0, &[], &[neighbour]).unwrap_err();
    assert_eq!(
        error,
        "neighbour 10.9.0.1: \"none\" is not a hardware address"
    );
}
