// SPDX-License-Identifier: Apache-2.0
//! Networks by CNI, with the plugins that Debian has.

mod faults;

use harness::containerd::ctr::{Output, ends_within};
use harness::image::{Image, Layer};
use harness::manager::net::Net;
use harness::manager::{self, Manager};
use harness::{peers, proc, wait};
use nix::sched::{CloneFlags, setns};
use serde_json::json;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

fn on(test: impl FnOnce(&mut Manager, &Net)) {
    let net = Net::make();
    manager::with(&net.config(), |manager| {
        test(manager, &net);
        for row in manager.json(&["ls"]) {
            let id = row["id"].as_str().expect("id");
            manager.dunnage(&["rm", "-f", id]).ok();
        }
        net.is_clean(manager);
    });
}

/// A server of its own files.
const SERVER: [&str; 6] = ["httpd", "-f", "-p", "80", "-h", "/etc"];

fn serve(manager: &Manager, net: &Net, options: &[&str], id: &str) -> Output {
    let name = net.name();
    let options = [&["-d", "--net", &name], options].concat();
    manager.run(&options, id, &SERVER)
}

/// What a server says of /etc/hostname; none if nobody listens.
fn get(ip: &str, port: u16) -> Option<String> {
    let mut stream = TcpStream::connect((ip, port)).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("a timeout");
    stream.write_all(b"GET /hostname HTTP/1.0\r\n\r\n").ok()?;
    let mut said = String::new();
    stream.read_to_string(&mut said).ok()?;
    Some(said.rsplit("\r\n\r\n").next()?.trim().to_owned())
}

fn exec(manager: &Manager, id: &str, script: &str) -> String {
    manager
        .dunnage(&["exec", id, "sh", "-c", script])
        .ok()
        .stdout
}

fn address(manager: &Manager, id: &str) -> String {
    let script = "ip -4 -o addr show eth0 | sed 's/.*inet \\([0-9.]*\\).*/\\1/'";
    exec(manager, id, script).trim().to_owned()
}

/// What a datagram to a port of the host's becomes, when who has `pid`'s network answers at `inside`.
fn echo(pid: i32, inside: u16, outside: u16) -> String {
    let netns = fs::File::open(format!("/proc/{pid}/ns/net")).expect("a namespace");
    let server = std::thread::spawn(move || {
        setns(netns, CloneFlags::CLONE_NEWNET).expect("setns");
        UdpSocket::bind(("0.0.0.0", inside)).expect("a socket")
    });
    let server = server.join().expect("a server");
    let client = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    for socket in [&server, &client] {
        let patience = Some(Duration::from_secs(20));
        socket.set_read_timeout(patience).expect("a timeout");
    }
    client.connect(("127.0.0.1", outside)).expect("an address");
    client.send(b"over").expect("a datagram");
    let mut bytes = [0; 64];
    let (n, from) = server.recv_from(&mut bytes).expect("a datagram");
    let answer = [&bytes[..n], b" there"].concat();
    server.send_to(&answer, from).expect("a datagram");
    let n = client.recv(&mut bytes).expect("an answer");
    String::from_utf8_lossy(&bytes[..n]).into_owned()
}

#[test]
fn a_published_port_leads_to_the_container() {
    on(|manager, net| {
        let every = format!("{}:80", net.port(0));
        let one = format!("127.0.0.1:{}:80/tcp", net.port(1));
        let udp = format!("{}:53/udp", net.port(2));
        let options = ["-p", &every, "-p", &one, "-p", &udp, "--hostname", "web"];
        serve(manager, net, &options, "x").ok();
        manager.until("it answers", |_| get("127.0.0.1", net.port(0)));
        assert_eq!(get("127.0.0.1", net.port(0)).as_deref(), Some("web"));
        assert_eq!(get("127.0.0.1", net.port(1)).as_deref(), Some("web"));
        let gateway = format!("{}.1", net.prefix());
        assert_eq!(get(&gateway, net.port(0)).as_deref(), Some("web"));
        assert_eq!(get(&gateway, net.port(1)), None);
        let left = net.left(manager).join("\n");
        assert!(
            left.contains(&format!("-p udp -m udp --dport {}", net.port(2))),
            "{left}"
        );
        assert_eq!(echo(manager.pid_of("x"), 53, net.port(2)), "over there");
        // Another container reaches it by its address, and the host's ports from inside.
        let asked = format!(
            "wget -qO- http://{}/hostname http://{gateway}:{}/hostname",
            address(manager, "x"),
            net.port(0)
        );
        let name = net.name();
        let said = manager.run(&["--rm", "--net", &name], "y", &["sh", "-c", &asked]);
        said.ok().prints("web\nweb\n");
        let inspected = &manager.json(&["inspect", "x"])[0]["network"];
        assert_eq!(inspected["addresses"], json!(net.leases()));
        assert_eq!(inspected["ports"][0], every);
        manager.dunnage(&["rm", "-f", "x"]).ok();
        net.is_clean(manager);
        assert_eq!(get("127.0.0.1", net.port(0)), None);
    });
}

/// A container of an image, and one that gets another name: each keeps its address and its ports.
#[test]
fn a_network_is_the_containers_whatever_it_is_of_and_called() {
    on(|manager, net| {
        let layout = manager.dir().join("layout");
        let layers = [
            Layer::of_rootfs(),
            Layer::default().file("etc/hostname", ""),
        ];
        Image::new(&layers, json!({"Cmd": SERVER})).layout(&layout, "web");
        let load = ["image", "load", &layout.display().to_string()];
        manager.dunnage(&load).ok();
        let (name, port) = (net.name(), format!("{}:80", net.port(0)));
        let words = [
            "run",
            "-d",
            "--net",
            &name,
            "-p",
            &port,
            "--hostname",
            "web",
            "--name",
            "old",
            "web",
        ];
        manager.dunnage(&words).ok();
        manager.until("it answers", |_| get("127.0.0.1", net.port(0)));
        assert_eq!(get("127.0.0.1", net.port(0)).as_deref(), Some("web"));
        let leases = net.leases();
        manager.dunnage(&["stop", "-t", "0s", "old"]).ok();
        manager.dunnage(&["rename", "old", "new"]).ok();
        manager.dunnage(&["start", "new"]).ok();
        manager.until("it answers", |_| get("127.0.0.1", net.port(0)));
        assert_eq!(net.leases().len(), leases.len());
        manager.dunnage(&["rm", "-f", "new"]).ok();
        net.is_clean(manager);
    });
}

/// With Debian's plugins, and nothing else to be done.
#[test]
fn the_example_works_as_it_is() {
    on(|manager, net| {
        let example = peers::workspace().join("manager/etc/dunnage.conflist");
        let place = net.dir.join("net.d/dunnage.conflist");
        fs::copy(example, place).expect("the example");
        let bridge = Path::new("/sys/class/net/dunnage-br");
        let was_there = bridge.exists();
        let port = format!("{}:80", net.port(0));
        let options = ["-d", "--net", "dunnage", "-p", &port];
        manager.run(&options, "web", &SERVER).ok();
        manager.until("it answers", |_| get("127.0.0.1", net.port(0)));
        let address = address(manager, "web");
        let lease = Path::new("/var/lib/cni/networks/dunnage").join(address);
        assert!(lease.exists());
        manager.dunnage(&["rm", "-f", "web"]).ok();
        assert!(!lease.exists());
        if !was_there {
            let _ = Command::new("ip")
                .args(["link", "delete", "dunnage-br"])
                .output();
        }
    });
}

#[test]
fn names_are_found_as_the_command_line_says() {
    on(|manager, net| {
        let options = "--hostname web --dns 9.9.9.9 --dns fd00::53 --dns-search a.b --dns-search c \
                       --add-host db:10.1.1.1 --add-host six:fd00::1 --add-host gate:host-gateway";
        let options: Vec<&str> = options.split_whitespace().collect();
        serve(manager, net, &options, "x").ok();
        let said = exec(
            manager,
            "x",
            "hostname; cat /etc/hostname /etc/resolv.conf /etc/hosts",
        );
        let own = address(manager, "x");
        let expected = format!(
            "web\nweb\nnameserver 9.9.9.9\nnameserver fd00::53\nsearch a.b c\n\
             127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             {own}\tweb\n10.1.1.1\tdb\nfd00::1\tsix\n{}.1\tgate\n",
            net.prefix()
        );
        assert_eq!(said, expected);
        exec(
            manager,
            "x",
            "ping -c 1 -w 20 127.0.0.1 && ping -c 1 -w 20 gate",
        );
        manager.dunnage(&["rm", "-f", "x"]).ok();
        // As it is with the host's network: the host's own, which a container does not change.
        let host = fs::read_to_string("/etc/resolv.conf").expect("the host's");
        let script =
            "cat /etc/resolv.conf; echo x 2>/dev/null >>/etc/resolv.conf && echo written; true";
        let said = manager.run(&["--rm", "--net", "host"], "x", &["sh", "-c", script]);
        said.ok().prints(&host);
    });
}

fn netns(manager: &Manager, id: &str) -> PathBuf {
    fs::read_link(format!("/proc/{}/ns/net", manager.pid_of(id))).expect("a namespace")
}

#[test]
fn a_network_outlives_restarts() {
    on(|manager, net| {
        let port = format!("{}:80", net.port(0));
        serve(manager, net, &["-p", &port, "--restart", "always"], "x").ok();
        let (before, own) = (netns(manager, "x"), address(manager, "x"));
        let pid = manager.pid_of("x");
        wait::signal(pid, libc::SIGKILL).expect("kill");
        manager.until("another task", |it| {
            (it.status("x") == "running" && it.pid_of("x") != pid).then_some(())
        });
        assert_eq!(
            (netns(manager, "x"), address(manager, "x")),
            (before.clone(), own.clone())
        );
        manager.dunnage(&["stop", "-t", "0s", "x"]).ok();
        manager.kill();
        manager.restart();
        assert_eq!(net.leases(), std::slice::from_ref(&own));
        manager.dunnage(&["start", "x"]).ok();
        assert_eq!((netns(manager, "x"), address(manager, "x")), (before, own));
        manager.until("it answers", |_| get("127.0.0.1", net.port(0)));
        // Nothing of it is the task's: another network is not made for it.
        assert_eq!(net.leases().len(), 1);
    });
}

#[test]
fn after_a_reboot_a_container_has_its_network_again() {
    on(|manager, net| {
        let port = format!("{}:80", net.port(0));
        serve(manager, net, &["-p", &port, "--restart", "always"], "x").ok();
        serve(manager, net, &[], "y").ok();
        let pids = [manager.pid_of("x"), manager.pid_of("y")];
        net.forget_rules();
        manager.reboot(&pids);
        manager.until("it answers", |_| get("127.0.0.1", net.port(0)));
        manager.dunnage(&["start", "y"]).ok();
        let mut leases = net.leases();
        leases.sort_unstable();
        let mut own = vec![address(manager, "x"), address(manager, "y")];
        own.sort_unstable();
        assert_eq!(leases, own);
    });
}

#[test]
fn a_container_that_goes_by_itself_takes_its_network_along() {
    on(|manager, net| {
        let name = net.name();
        manager
            .run(&["-d", "--rm", "--net", &name], "x", &["true"])
            .ok();
        manager.until("it is gone", |it| (it.status("x") == "none").then_some(()));
        net.is_clean(manager);
        // Nor is anything left of what could not be run.
        manager.run(&["--net", &name], "x", &["/none"]).exits(127);
        manager
            .run(&["-d", "--net", &name], "x", &["/none"])
            .exits(127);
        net.is_clean(manager);
    });
}

#[test]
fn what_cannot_be_is_refused_by_name_and_leaves_nothing() {
    on(|manager, net| {
        let name = net.name();
        net.write("broken", &[json!({"type": "nosuch"})]);
        let failing = json!({"type": "bandwidth", "ingressBurst": 5});
        net.write("failing", &[failing]);
        let plain = json!({"cniVersion": "1.0.0", "name": "plain", "type": "loopback"});
        fs::write(net.dir.join("net.d/plain.conf"), plain.to_string()).expect("a file");
        let taken = TcpListener::bind(("0.0.0.0", net.port(5))).expect("a port");
        let (busy, free) = (format!("{}:80", net.port(5)), format!("{}:80", net.port(6)));
        let refuses = |options: &[&str], words: &[&str]| {
            let options = [&["-d"], options].concat();
            let refused = manager.run(&options, "x", &["true"]).exits(125);
            for word in words {
                assert!(refused.stderr.contains(word), "{word}: {refused}");
            }
            assert!(manager.json(&["ls"]).is_empty());
            net.is_clean(manager);
        };
        for (option, value) in [
            ("--publish", "80"),
            ("--publish", "0:80"),
            ("--publish", "80:80/sctp"),
            ("--publish", "nobody:80:80"),
            ("--publish", "80:65536"),
            ("--dns", "one.one"),
            ("--dns-search", "a b"),
            ("--add-host", "db"),
            ("--add-host", "db:1.2.3"),
        ] {
            refuses(&["--net", &name, option, value], &[option, value]);
        }
        refuses(&["--net", "no/net"], &["--net", "no/net"]);
        let domain = "x".repeat(255);
        let long = ["--dns-search", &domain].repeat(17);
        let long = [&["--net", &name], &long[..]].concat();
        refuses(&long, &["--dns-search", "bytes"]);
        refuses(&["--net", "absent"], &["--net absent", "net.d", &name]);
        refuses(&["-p", &free], &["--publish", &free, "--net none"]);
        refuses(
            &["--net", "host", "--dns", "1.1.1.1"],
            &["--dns 1.1.1.1", "--net host"],
        );
        refuses(
            &["--net", "plain", "-p", &free],
            &["--publish", &free, "plain"],
        );
        refuses(
            &["--net", &name, "-p", &free, "-p", &free],
            &["--publish", &free, "twice"],
        );
        refuses(&["--net", &name, "-p", &busy], &[&busy, "in use"]);
        refuses(&["--net", "broken"], &["broken", "nosuch", "not in"]);
        refuses(&["--net", "failing"], &["failing", "bandwidth", "rate"]);
        drop(taken);
        serve(manager, net, &["-p", &busy], "x").ok();
        let again = format!("127.0.0.1:{busy}");
        let refused = serve(manager, net, &["-p", &again], "y").exits(125);
        assert!(refused.stderr.contains(&again), "{refused}");
        assert_eq!(net.leases().len(), 1);
    });
}

#[test]
fn networks_are_listed() {
    on(|manager, net| {
        fs::write(net.dir.join("net.d/torn.conf"), "{").expect("a file");
        let all = manager.json(&["network", "ls"]);
        assert_eq!(all[0]["name"], net.name());
        assert_eq!(all[0]["plugins"], "bridge,portmap,firewall");
        assert_eq!(all[1]["name"], "-");
        assert!(
            all[1]["plugins"]
                .as_str()
                .is_some_and(|it| it.contains("torn.conf"))
        );
    });
}
