// SPDX-License-Identifier: Apache-2.0
//! Tests of a network namespace's way into a VM: real namespaces and veths; the VM is played by
//! frames at its tap.

#![allow(
    clippy::disallowed_methods,
    reason = "a test may wait for ip and tc; nothing else here waits for children"
)]

use super::*;
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// Longer than anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);

/// A network namespace that lives as long as this.
struct Namespace(File);

impl Namespace {
    fn new() -> Self {
        let made = thread::spawn(|| {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let this = Self(made.join().unwrap());
        this.run("ip link set lo up");
        this
    }

    fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }

    /// Does something on a thread that is there.
    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let done = thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join()
        });
        done.unwrap()
    }

    /// What a command prints there; its words have no spaces in them.
    fn run(&self, command: &str) -> String {
        let output = self.inside(|| {
            let mut words = command.split(' ');
            let mut process = Command::new(words.next().unwrap());
            process.args(words).output().unwrap()
        });
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8(text).unwrap();
        assert!(output.status.success(), "{command}: {text}");
        text
    }

    fn devices(&self) -> Vec<Link> {
        self.inside(|| Netlink::open().unwrap().links().unwrap())
    }

    /// A process that another test is just starting may have the tap open until it executes.
    fn wait_without_tap(&self) {
        let deadline = Instant::now() + DEADLINE;
        while self.run("ip -o link show type tun").contains("dunnage") {
            assert!(Instant::now() < deadline, "somebody has the tap open");
        }
    }

    fn socket(&self, address: &str) -> UdpSocket {
        let socket = self.inside(|| UdpSocket::bind(address).unwrap());
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket
    }
}

/// A container's namespace as CNI makes it, and the host's side of it.
fn pair() -> (Namespace, Namespace) {
    let (container, host) = (Namespace::new(), Namespace::new());
    connect_by_veth(&container, &host);
    (container, host)
}

fn connect_by_veth(container: &Namespace, host: &Namespace) {
    host.run("ip link add host0 type veth peer name eth0 address 02:00:00:00:00:02 mtu 1400");
    give_device(container, host);
}

fn connect_by_macvlan(container: &Namespace, host: &Namespace) {
    for command in [
        "ip link add host0 type veth peer name lower0 mtu 1400",
        "ip link set lower0 up",
        "ip link add eth0 link lower0 address 02:00:00:00:00:02 type macvlan mode bridge",
    ] {
        host.run(command);
    }
    give_device(container, host);
}

fn give_device(container: &Namespace, host: &Namespace) {
    let (pid, fd) = (std::process::id(), container.0.as_raw_fd());
    host.run(&format!("ip link set eth0 netns /proc/{pid}/fd/{fd}"));
    for command in [
        "ip address add 10.9.0.2/24 dev eth0",
        "ip address add fd00:9::2/64 dev eth0 nodad",
        "ip link set eth0 up",
    ] {
        container.run(command);
    }
    host.run("ip address add 10.9.0.1/24 dev host0");
    host.run("ip link set host0 address 02:00:00:00:00:01 up");
}

const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 2];
const HOST: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// sizeof(struct virtio_net_hdr), all zeroes: nothing is left to be done to the frame.
const OFFLOADS: usize = 10;

/// The next frame of this EtherType at the tap.
fn receive(tap: &mut File, kind: [u8; 2]) -> Vec<u8> {
    let deadline = Instant::now() + DEADLINE;
    let mut frame = vec![0; 65536];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut wait = [nix::poll::PollFd::new(
            std::os::fd::AsFd::as_fd(tap),
            nix::poll::PollFlags::POLLIN,
        )];
        let timeout = nix::poll::PollTimeout::try_from(left).unwrap();
        let ready = nix::poll::poll(&mut wait, timeout).unwrap();
        assert!(ready > 0, "no frame of type {kind:x?} came");
        let length = tap.read(&mut frame).unwrap();
        let ethernet = &frame[OFFLOADS..length];
        if ethernet[12..14] == kind {
            return ethernet.to_vec();
        }
    }
}

fn send(tap: &mut File, kind: [u8; 2], payload: &[u8]) {
    let frame = [&[0; OFFLOADS], &HOST[..], &GUEST[..], &kind[..], payload].concat();
    assert_eq!(tap.write(&frame).unwrap(), frame.len());
}

/// The 16-bit sum of RFC 1071.
fn checksum(words: &[u8]) -> [u8; 2] {
    let pairs = words
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let mut sum: u32 = pairs.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

#[test]
fn what_the_veth_gets_the_vm_gets_and_what_the_vm_sends_the_veth_sends() {
    let (container, host) = pair();
    let mut network = attach(&container.path()).unwrap();
    talk(&host, network.taps.remove(0));
}

#[test]
fn a_macvlan_is_as_good_as_a_veth() {
    let (container, host) = (Namespace::new(), Namespace::new());
    connect_by_macvlan(&container, &host);
    let mut network = attach(&container.path()).unwrap();
    talk(&host, network.taps.remove(0));
    detach(&container.path()).unwrap();
}

/// A namespace as a VM is booted with where nobody names one.
fn own() -> (Namespace, Tap) {
    let mut network = prepare(&Where::Own).unwrap();
    assert!(network.interfaces.is_empty());
    let namespace = Namespace(network.namespace.unwrap().into());
    (namespace, network.taps.remove(0))
}

#[test]
fn a_veth_that_comes_later_has_the_tap_in_store() {
    let ((container, tap), host) = (own(), Namespace::new());
    assert!(join(&container.path()).unwrap().is_none());
    connect_by_veth(&container, &host);
    // Again, as when the guest has failed to do its part.
    for _ in 0..2 {
        let network = join(&container.path()).unwrap().expect("a network");
        assert_eq!(network.interfaces.len(), 1);
        let interface = &network.interfaces[0];
        assert_eq!(interface.device, tap.mac);
        assert_eq!(interface.mac, "02:00:00:00:00:02");
        assert_eq!(interface.mtu, 1400);
        assert_eq!(network.routes.len(), 2, "one of each version of IP");
    }
    talk(&host, tap);
}

#[test]
fn of_two_that_come_later_none_is_joined() {
    let ((container, _tap), host) = (own(), Namespace::new());
    connect_by_veth(&container, &host);
    container.run("ip link add eth1 link eth0 type macvlan mode bridge");
    let error = join(&container.path()).unwrap_err().to_string();
    let expected = "eth0 and eth1: a VM has room for one that comes after its boot";
    assert!(error.ends_with(expected), "{error}");
    assert!(!container.run("tc qdisc show dev eth0").contains("ingress"));
}

#[test]
fn an_ipvlan_is_refused_by_name() {
    let link = |name: &str, kind| Link {
        index: 2,
        name: name.into(),
        mac: "02:00:00:00:00:02".into(),
        mtu: 1500,
        kind,
    };
    let error = veths(&[link("eth0", Kind::Veth), link("eth1", Kind::IpVlan)]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "device eth1: an ipvlan can't be moved into a VM"
    );
}

/// Plays the VM behind `tap`: gets a packet from `host`, and sends one back.
fn talk(host: &Namespace, tap: Tap) {
    let mut tap = File::from(tap.fd);
    let socket = host.socket("10.9.0.1:0");
    socket.send_to(b"to the VM", "10.9.0.2:9").unwrap();

    // The host asks who has the address; nobody but the VM answers.
    let question = receive(&mut tap, [0x08, 0x06]);
    assert_eq!(question[20..22], [0, 1], "an ARP request");
    assert_eq!(question[38..42], [10, 9, 0, 2]);
    let mut answer = question[14..22].to_vec();
    answer[7] = 2;
    answer.extend([&GUEST[..], &[10, 9, 0, 2], &HOST[..], &[10, 9, 0, 1]].concat());
    send(&mut tap, [0x08, 0x06], &answer);
    let packet = receive(&mut tap, [0x08, 0x00]);
    assert!(packet.ends_with(b"to the VM"));

    // And back: the packet with the addresses and ports the other way round.
    let text = b"to the host";
    let mut ip = packet[14..34].to_vec();
    ip[2..4].copy_from_slice(&((28 + text.len()) as u16).to_be_bytes());
    ip[10..12].fill(0);
    ip[12..16].copy_from_slice(&[10, 9, 0, 2]);
    ip[16..20].copy_from_slice(&[10, 9, 0, 1]);
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    let length = ((8 + text.len()) as u16).to_be_bytes();
    // Without a checksum of its own (RFC 768).
    let udp = [&[0, 9], &packet[34..36], &length[..], &[0, 0], &text[..]].concat();
    send(&mut tap, [0x08, 0x00], &[ip, udp].concat());
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], text);
    assert_eq!(from.to_string(), "10.9.0.2:9");
}

#[test]
fn the_vm_is_told_all_that_the_veth_has() {
    let (container, _host) = pair();
    for command in [
        "ip neighbour add 10.9.0.1 lladdr 02:00:00:00:00:01 dev eth0",
        "ip route add default via 10.9.0.1",
        "ip route add 10.0.0.0/8 via 192.168.7.1 dev eth0 onlink metric 50 src 10.9.0.2",
        "ip -6 route add default via fd00:9::1",
        // None of these is the VM's affair.
        "ip route add blackhole 10.66.0.0/16",
        "ip route add 10.67.0.0/16 dev eth0 table 77",
        "ip link add other type bridge",
    ] {
        container.run(command);
    }
    let mut network = attach(&container.path()).unwrap();
    network
        .routes
        .sort_by(|a, b| a.destination.cmp(&b.destination));
    let route = |destination: &str, gateway: &str| Route {
        destination: destination.into(),
        gateway: gateway.into(),
        interface: "eth0".into(),
        ..Route::default()
    };
    let expected = [
        route("0.0.0.0/0", "10.9.0.1"),
        Route {
            source: "10.9.0.2".into(),
            metric: 50,
            onlink: true,
            ..route("10.0.0.0/8", "192.168.7.1")
        },
        Route {
            source: "10.9.0.2".into(),
            ..route("10.9.0.0/24", "")
        },
        Route {
            metric: 1024,
            ..route("::/0", "fd00:9::1")
        },
        Route {
            metric: 256,
            ..route("fd00:9::/64", "")
        },
    ];
    assert_eq!(network.routes, expected);
    let neighbour = Neighbour {
        address: "10.9.0.1".into(),
        mac: "02:00:00:00:00:01".into(),
        interface: "eth0".into(),
    };
    assert_eq!(network.neighbours, [neighbour]);
    let interface = Interface {
        name: "eth0".into(),
        mac: "02:00:00:00:00:02".into(),
        mtu: 1400,
        addresses: vec!["10.9.0.2/24".into(), "fd00:9::2/64".into()],
        device: String::new(),
    };
    assert_eq!(network.interfaces, [interface]);
    assert_eq!(network.taps.len(), 1);
    assert_eq!(network.taps[0].mac, "02:00:00:00:00:02");
    let tap = container.run("ip -o link show type tun");
    assert!(tap.contains("mtu 1400") && tap.contains("UP"), "{tap}");
}

#[test]
fn detach_leaves_the_namespace_as_it_was() {
    let (container, host) = pair();
    let before = container.devices();
    let network = attach(&container.path()).unwrap();
    // A VM that lives keeps its network.
    detach(&container.path()).unwrap();
    assert!(
        container
            .run("tc filter show dev eth0 ingress")
            .contains("mirred")
    );
    let refused = attach(&container.path()).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ResourceBusy);
    assert!(
        refused
            .to_string()
            .contains("device eth0: another VM has its network"),
        "{refused}"
    );

    // As when QEMU and the shim are killed.
    drop(network);
    container.wait_without_tap();
    assert!(container.run("tc qdisc show dev eth0").contains("ingress"));
    for _ in 0..2 {
        detach(&container.path()).unwrap();
        assert!(!container.run("tc qdisc show dev eth0").contains("ingress"));
    }
    assert_eq!(container.devices(), before);

    // The namespace's own network works again.
    let (inside, outside) = (container.socket("10.9.0.2:9"), host.socket("10.9.0.1:0"));
    outside.send_to(b"hello", "10.9.0.2:9").unwrap();
    assert_eq!(inside.recv_from(&mut [0; 8]).unwrap().0, 5);
}

#[test]
fn a_vm_takes_over_from_one_that_was_killed() {
    let (container, _host) = pair();
    drop(attach(&container.path()).unwrap());
    container.wait_without_tap();
    let network = attach(&container.path()).unwrap();
    assert_eq!(network.taps.len(), 1);
    let filters = container.run("tc filter show dev eth0 ingress");
    assert_eq!(filters.matches("mirred").count(), 1, "{filters}");
    assert!(!filters.contains("not in the system"), "{filters}");
}

#[test]
fn a_namespace_without_a_veth_has_no_network() {
    let namespace = Namespace::new();
    let network = attach(&namespace.path()).unwrap();
    assert!(network.taps.is_empty() && network.interfaces.is_empty() && network.routes.is_empty());
    detach(&namespace.path()).unwrap();
}

#[test]
fn two_veths_are_two_taps() {
    let (container, _host) = pair();
    container.run("ip link add eth1 address 02:00:00:00:00:04 type veth peer name eth2");
    let network = attach(&container.path()).unwrap();
    let macs: Vec<&str> = network.taps.iter().map(|tap| tap.mac.as_str()).collect();
    let given: Vec<&str> = network
        .interfaces
        .iter()
        .map(|one| one.mac.as_str())
        .collect();
    assert_eq!(macs, given);
    assert_eq!(macs.len(), 3);
}

#[test]
fn an_ingress_qdisc_of_somebody_else_stays_and_is_named() {
    let (container, _host) = pair();
    container.run("ip link add eth1 type veth peer name eth2");
    container.run("tc qdisc add dev eth2 ingress");
    let error = attach(&container.path()).unwrap_err().to_string();
    assert!(
        error.ends_with("device eth2: it has an ingress qdisc of its own"),
        "{error}"
    );
    // What was done to the devices before it is undone.
    assert!(!container.run("tc qdisc show dev eth0").contains("ingress"));
    container.wait_without_tap();
    assert!(container.run("tc qdisc show dev eth2").contains("ingress"));
    detach(&container.path()).unwrap();
    assert!(container.run("tc qdisc show dev eth2").contains("ingress"));
}

#[test]
fn the_hosts_own_namespace_and_none_at_all_are_refused_by_name() {
    let error = attach(Path::new("/proc/self/ns/net"))
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "network namespace /proc/self/ns/net: it is the host's own"
    );
    let error = attach(Path::new("/nonexistent/ns"))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("network namespace /nonexistent/ns: "),
        "{error}"
    );
    detach(Path::new("/nonexistent/ns")).unwrap();
    let error = attach(Path::new("/proc/self/ns/uts"))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("network namespace /proc/self/ns/uts: "),
        "{error}"
    );
}
