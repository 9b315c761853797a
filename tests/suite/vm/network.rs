// SPDX-License-Identifier: Apache-2.0
//! The network: that of the container's namespace, in the VM; and nothing else.

use crate::said;
use harness::bundle::Bundle;
use harness::stdio::Sum;
use harness::{Test, peers, wait};
use nix::sched::{CloneFlags, setns};
use protos::task::ExecProcessRequest;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::thread::{self, JoinHandle};

/// A network namespace by a name of this test's.
pub struct Namespace(pub String);

impl Namespace {
    pub fn new(test: &Test, suffix: &str) -> Self {
        let this = Self(format!("{}{suffix}", test.namespace()));
        command(&format!("ip netns add {}", this.0));
        this.run("ip link set lo up");
        this
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.0)
    }

    /// What a command says there; its words have no spaces in them.
    pub fn run(&self, words: &str) -> String {
        command(&format!("ip netns exec {} {words}", self.0))
    }

    /// Does something on a thread that is there.
    fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let file = File::open(self.path()).expect("namespace");
        thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).expect("setns");
            work()
        })
    }

    pub fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(work).join().expect("a thread in the namespace")
    }

    /// Gives the network namespace of process `pid` the device `name`, 10.9.`subnet`.2, whose other
    /// end is here, 10.9.`subnet`.1.
    pub fn give(&self, pid: u32, name: &str, subnet: u32) {
        let mac = format!("02:00:00:00:{subnet:02x}:02");
        self.run(&format!(
            "ip link add w{subnet} type veth peer name {name} address {mac} mtu 1400"
        ));
        self.run(&format!("ip link set {name} netns {pid}"));
        for words in [
            format!("ip address add 10.9.{subnet}.2/24 dev {name}"),
            format!("ip link set {name} up"),
            format!("ip route replace default via 10.9.{subnet}.1"),
        ] {
            command(&format!("nsenter -t {pid} -n {words}"));
        }
        self.run(&format!("ip address add 10.9.{subnet}.1/24 dev w{subnet}"));
        self.run(&format!("ip link set w{subnet} up"));
    }

    /// Asks `address` for an echo.
    pub fn ping(&self, address: &str) {
        let busybox = peers::rootfs().join("bin/busybox");
        self.run(&format!("{} ping -c 1 -W 20 {address}", busybox.display()));
    }

    /// As it is, without what changes by itself.
    pub fn devices(&self) -> String {
        let list = self.run("ip -o -br link show");
        let names = list
            .lines()
            .filter_map(|line| line.split_whitespace().next());
        let names: Vec<&str> = names.collect();
        let qdiscs = self.run("tc qdisc show");
        let ingress = qdiscs.matches("ingress").count();
        format!("{} with {ingress} ingress qdiscs", names.join(" "))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "delete", &self.0])
            .status();
    }
}

fn command(words: &str) -> String {
    let mut list = words.split(' ');
    let mut command = Command::new(list.next().expect("a program"));
    let output = command.args(list).output().expect("a program");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{words}: {text}");
    text
}

/// A container's namespace as CNI makes it, and the rest of the world.
pub fn pair(test: &Test) -> (Namespace, Namespace) {
    let (container, world) = (Namespace::new(test, "c"), Namespace::new(test, "w"));
    container.run(&format!(
        "ip link add eth0 address 02:00:00:00:00:02 mtu 1400 type veth peer name w0 netns {}",
        world.0
    ));
    for words in [
        "ip address add 10.9.0.2/24 dev eth0",
        "ip address add fd00:9::2/64 dev eth0 nodad",
        "ip link set eth0 up",
        "ip route add default via 10.9.0.1",
    ] {
        container.run(words);
    }
    world.run("ip address add 10.9.0.1/24 dev w0");
    world.run("ip address add fd00:9::1/64 dev w0 nodad");
    world.run("ip link set w0 up");
    (container, world)
}

pub fn namespaces(network: &Namespace) -> Value {
    let path = network.path();
    json!([{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
           {"type": "network", "path": path}])
}

/// A shell with what ping needs beside root.
fn shell(bundle: &Bundle, exec: &str, script: &str) -> ExecProcessRequest {
    let capabilities = ["CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW"];
    let mut process = harness::bundle::process(&bundle.test, &["sh", "-c", script]);
    for set in ["bounding", "effective", "permitted"] {
        process["capabilities"][set] = json!(capabilities);
    }
    bundle.exec_spec(exec, &process)
}

fn sysfs() -> Value {
    json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]})
}

/// Answers a question for an A record and one for any other (RFC 1035), whatever the name is.
fn answer_dns(socket: &UdpSocket) {
    let mut buffer = [0; 512];
    for _ in 0..2 {
        let (length, from) = socket.recv_from(&mut buffer).expect("a question");
        let question = &buffer[..length];
        let name = question[12..].iter().position(|byte| *byte == 0);
        let end = 12 + name.expect("a name") + 5;
        let is_a = question[end - 4..end] == [0, 1, 0, 1];
        let counts = [0, 1, 0, u8::from(is_a), 0, 0, 0, 0];
        let mut answer = [&question[..2], &[0x81, 0x80], &counts, &question[12..end]].concat();
        if is_a {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 9, 0, 77]);
        }
        socket.send_to(&answer, from).expect("an answer");
    }
}

/// Addresses, routes and MTU of the namespace's; ping, TCP and DNS both ways; nothing is left
/// after Delete, nor when shim and VM were killed.
#[test]
fn a_vm_has_the_network_of_its_containers_namespace() {
    crate::run(async |test| {
        let (container, world) = pair(test);
        let before = container.devices();
        let resolv = test.dir().join("resolv.conf");
        fs::write(&resolv, "nameserver 10.9.0.1\n").unwrap();
        let build = |id: &str| {
            test.bundle(id)
                .set("/linux/namespaces", namespaces(&container))
                .mount(sysfs())
                .mount(json!({"destination": "/etc", "type": "tmpfs", "source": "tmpfs"}))
                .mount(json!({"destination": "/etc/resolv.conf", "type": "bind",
                              "source": &resolv, "options": ["rbind", "ro"]}))
                .build()
        };
        let bundle = build("c");
        let shim = bundle.running().await;
        assert_eq!(container.devices().matches("dunnage").count(), 1);
        let script = "cd /sys/class/net; ls; cat eth0/address eth0/mtu; \
                      ip route | sed 's/ *$//'; ip -6 addr show eth0 | grep -c fd00:9::2/64";
        assert_eq!(
            said(&shim, &bundle, shell(&bundle, "look", script)).await,
            "eth0\nlo\n02:00:00:00:00:02\n1400\n\
             default via 10.9.0.1 dev eth0\n\
             10.9.0.0/24 dev eth0 scope link  src 10.9.0.2\n1\n"
        );

        // From the VM: ping with both versions of IP, a name, and TCP with a checksum over it.
        let told = said(
            &shim,
            &bundle,
            shell(&bundle, "ping", "ping -c 1 -W 20 10.9.0.1 | grep -c ' 0% '"),
        )
        .await;
        assert_eq!(told, "1\n");
        let told = said(
            &shim,
            &bundle,
            shell(
                &bundle,
                "ping6",
                "ping -c 1 -W 20 fd00:9::1 | grep -c ' 0% '",
            ),
        )
        .await;
        assert_eq!(told, "1\n");
        let socket = world.inside(|| UdpSocket::bind("10.9.0.1:53").unwrap());
        socket.set_read_timeout(Some(wait::DEADLINE)).unwrap();
        let server = thread::spawn(move || answer_dns(&socket));
        let told = said(
            &shim,
            &bundle,
            shell(&bundle, "dns", "nslookup host.example 2>&1"),
        )
        .await;
        server.join().expect("the name server");
        assert!(told.contains("10.9.0.77"), "{told}");
        let listener = world.inside(|| TcpListener::bind("10.9.0.1:7001").unwrap());
        let data: Vec<u8> = (0..2_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let sum = Sum::of(&data).sha256;
        let sender = thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let mut hello = [0; 6];
            stream.read_exact(&mut hello).unwrap();
            stream.write_all(&data).unwrap();
            hello
        });
        let script = "echo hello | nc 10.9.0.1 7001 | sha256sum";
        let told = said(&shim, &bundle, shell(&bundle, "tcp", script)).await;
        assert!(told.starts_with(&sum), "{told}");
        assert_eq!(&sender.join().expect("the sender"), b"hello\n");

        // To the VM.
        world.ping("10.9.0.2");
        shim.run(bundle.exec("echo", &["nc", "-l", "-p", "7002", "-e", "cat"]))
            .await;
        let reply = world.spawn(|| {
            let connect = || TcpStream::connect("10.9.0.2:7002").map_err(|e| e.to_string());
            let mut stream = wait::until_within(wait::DEADLINE, "the VM listens", connect);
            stream.write_all(b"from the world").unwrap();
            let mut reply = [0; 14];
            stream.read_exact(&mut reply).unwrap();
            reply
        });
        assert_eq!(&reply.join().expect("the client"), b"from the world");
        shim.wait("c", "echo").await.unwrap();

        shim.kill("c", "", 9, false).await.unwrap();
        shim.wait("c", "").await.unwrap();
        shim.delete("c", "").await.unwrap();
        assert_eq!(container.devices(), before);

        // The same namespace, and a shim that is killed.
        let bundle = build("d");
        let shim = bundle.running().await;
        let told = said(
            &shim,
            &bundle,
            shell(&bundle, "ping", "ping -c 1 -W 20 10.9.0.1 | grep -c ' 0% '"),
        )
        .await;
        assert_eq!(told, "1\n");
        shim.kill_process().await;
        bundle.start().deleted().await;
        assert_eq!(container.devices(), before);
    });
}

/// A namespace without a veth, as without CNI: the VM talks to itself alone.
#[test]
fn without_a_veth_there_is_the_loopback_device() {
    crate::run(async |test| {
        let empty = Namespace::new(test, "e");
        let before = empty.devices();
        let bundle = test
            .bundle("c")
            .set("/linux/namespaces", namespaces(&empty))
            .mount(sysfs())
            .build();
        let shim = bundle.running().await;
        let script = "ls /sys/class/net; ping -c 1 -W 20 127.0.0.1 | grep -c ' 0% '";
        assert_eq!(
            said(&shim, &bundle, shell(&bundle, "look", script)).await,
            "lo\n1\n"
        );
        assert_eq!(empty.devices(), before);
        shim.kill("c", "", 9, false).await.unwrap();
        shim.wait("c", "").await.unwrap();
        shim.delete("c", "").await.unwrap();
        assert_eq!(empty.devices(), before);
    });
}
