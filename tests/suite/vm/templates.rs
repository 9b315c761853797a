// SPDX-License-Identifier: Apache-2.0
//! VMs that go on as one that was saved (`templates = true`): they run containers as any other, have nothing
//! at random that another has, and where there is no such template, or none that is right, they boot.
//!
//! Each test's VMs have a size of their own, and so their own template.

use crate::network::{namespaces, pair};
use crate::{jail, said};
use harness::bundle::Bundle;
use harness::inspect::inspected;
use harness::wait::{self, Output};
use harness::{Shim, Test, peers, proc};
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DIR: &str = "/run/dunnage/templates";
/// A VM that boots, and one that is saved meanwhile, on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);
const CLONES: usize = 20;

/// Whether the tests' QEMU goes on with machines that have files.
pub fn qemu_can() -> bool {
    let config = std::env::var("DUNNAGE_VM_CONFIG").expect("set");
    let text = fs::read_to_string(config).expect("the configuration");
    let qemu = text.lines().find_map(|line| line.strip_prefix("qemu = "));
    let qemu = qemu.unwrap_or("qemu-system-x86_64").trim_matches('"');
    let said = Command::new(qemu).arg("--version").output().expect("QEMU");
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let version = said.split("version ").nth(1).expect("a version");
    let major = version.split('.').next().expect("a number");
    major.parse::<u32>().expect("a number") >= 10
}

/// A configuration of VMs with so many MiB.
fn config(test: &Test, memory: u32) -> PathBuf {
    let lines = [
        ("templates", "true".to_owned()),
        ("memory", memory.to_string()),
    ];
    jail::config(test, "templates.toml", &lines)
}

fn maker(config: &Path) -> Command {
    let mut command = Command::new(peers::shim());
    command.arg("template").env("DUNNAGE_VM_CONFIG", config);
    command
}

async fn try_to_make(config: &Path) -> Output {
    let making = wait::output(maker(config), None);
    wait::within(LIMIT, "the maker's end", making).await
}

/// Makes the template; its key.
async fn make(config: &Path) -> String {
    let output = try_to_make(config).await;
    assert_eq!(output.code(), Some(0), "{}", output.err());
    let out = output.out();
    let key = out.strip_prefix("template ").expect("so it begins");
    key.split_whitespace().next().expect("a key").to_owned()
}

fn file(key: &str, kind: &str) -> PathBuf {
    Path::new(DIR).join(format!("{key}.{kind}"))
}

/// What there is of this template.
fn files(key: &str) -> Vec<&'static str> {
    let mut kinds = vec!["failed", "json", "state"];
    kinds.retain(|kind| file(key, kind).exists());
    kinds
}

fn remove(key: &str) {
    for kind in files(key) {
        fs::remove_file(file(key, kind)).expect("it is there");
    }
}

/// A shim with a container that runs.
async fn running(bundle: &Bundle, config: &Path) -> Shim {
    let start = bundle.start();
    let start = start.env("DUNNAGE_VM_CONFIG", &config.to_string_lossy());
    let shim = start.shim().await;
    shim.create(bundle.create()).await.unwrap();
    shim.start(&bundle.id, "").await.unwrap();
    shim
}

async fn restored(test: &Test) -> Value {
    inspected(test).await["runtime"]["vm"]["restored"].clone()
}

/// Everything that a container has of its host: files, streams, execs, the time; and the template may go.
#[test]
fn a_vm_of_a_template_runs_containers_as_one_that_has_booted() {
    crate::run(async |test| {
        if !qemu_can() {
            return;
        }
        let config = config(test, 200);
        let key = make(&config).await;
        let volume = test.dir().join("volume");
        fs::create_dir(&volume).unwrap();
        fs::write(volume.join("in"), "of the host\n").unwrap();
        let mount =
            json!({"destination": "/mnt", "type": "bind", "source": volume, "options": ["rbind"]});
        let (container, world) = pair(test);
        let sysfs = json!({"destination": "/sys", "type": "sysfs", "source": "sysfs"});
        let bundle = test.bundle("c").mount(mount).mount(sysfs);
        let bundle = bundle.set("/linux/namespaces", namespaces(&container));
        let bundle = bundle.build();
        let shim = running(&bundle, &config).await;
        assert_eq!(restored(test).await, true);
        remove(&key);
        let script = "cat /mnt/in; echo of the guest >/mnt/out; hostname; \
                      ls /sys/class/net; cat /sys/class/net/eth0/address";
        let text = said(&shim, &bundle, bundle.exec_sh("look", script)).await;
        assert_eq!(text, "of the host\nbox\neth0\nlo\n02:00:00:00:00:02\n");
        assert_eq!(
            fs::read_to_string(volume.join("out")).unwrap(),
            "of the guest\n"
        );
        world.ping("10.9.0.2");
        let text = said(&shim, &bundle, bundle.exec_sh("date", "date +%s")).await;
        let guest: i64 = text.trim().parse().unwrap();
        let host = SystemTime::now().duration_since(UNIX_EPOCH);
        let off = host.unwrap().as_secs() as i64 - guest;
        assert!((-2..=20).contains(&off), "the guest is {off} s behind");
        shim.run(bundle.exec_sh("e", "exit 7")).await;
        assert_eq!(shim.wait("c", "e").await.unwrap().exit_status, 7);
        assert!(shim.log().is_empty(), "{}", shim.log());
        shim.stopped().await;
    });
}

/// Random bytes, UUIDs, the boot's id and the seeds of TCP's sequence numbers are each clone's own.
#[test]
fn twenty_clones_have_nothing_at_random_in_common() {
    crate::run(async |test| {
        if !qemu_can() {
            return;
        }
        let config = config(test, 204);
        let key = make(&config).await;
        let mut seen = BTreeSet::new();
        for n in 0..CLONES {
            let id = format!("c{n}");
            let bundle = test.bundle(&id).build();
            let shim = running(&bundle, &config).await;
            if n == 0 {
                assert_eq!(restored(test).await, true);
            }
            let text = said(
                &shim,
                &bundle,
                bundle.exec_sh("look", harness::bundle::RANDOM),
            )
            .await;
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(lines.len(), 4, "{text}");
            for line in lines {
                assert!(seen.insert(line.to_owned()), "clone {n} has {line}, too");
            }
            assert_eq!(files(&key), ["json", "state"], "clone {n}");
            shim.stopped().await;
        }
        remove(&key);
    });
}

/// The timestamp of the first TCP packet to port 5000 that comes to this socket: the guest's milliseconds
/// since its boot, and a number that its kernel makes of a seed and the two addresses (RFC 7323).
fn timestamp(packets: &OwnedFd) -> u32 {
    let mut packet = [0; 1500];
    loop {
        let length = recv(packets.as_raw_fd(), &mut packet, MsgFlags::empty());
        let length = length.expect("a packet");
        let is_tcp = length >= 40 && packet[0] >> 4 == 4 && packet[9] == 6;
        if !is_tcp || packet[12..16] != [10, 9, 0, 2] {
            continue;
        }
        let tcp = &packet[usize::from(packet[0] & 0xf) * 4..length];
        if tcp[2..4] == 5000_u16.to_be_bytes() && tcp[13] & 0x12 == 0x02 {
            let at = tcp.windows(2).position(|option| option == [8, 10]);
            let at = at.expect("a timestamp") + 2;
            return u32::from_be_bytes(tcp[at..at + 4].try_into().unwrap());
        }
    }
}

/// Between the same addresses, clones with the same seeds would have the same but for their time since boot,
/// which is that of their template and some seconds.
#[test]
fn the_seeds_of_tcp_are_each_clones_own() {
    const SAME: u32 = 1 << 20;
    crate::run(async |test| {
        if !qemu_can() {
            return;
        }
        let config = config(test, 228);
        let key = make(&config).await;
        let (container, world) = pair(test);
        let packets = world.inside(|| {
            let (flags, all) = (SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll);
            let packets = socket(AddressFamily::Packet, SockType::Datagram, flags, all);
            let packets = packets.expect("a packet socket");
            setsockopt(&packets, ReceiveTimeout, &TimeVal::seconds(20)).expect("a timeout");
            packets
        });
        let mut told = Vec::new();
        for n in 0..5 {
            let id = format!("c{n}");
            let bundle = test
                .bundle(&id)
                .set("/linux/namespaces", namespaces(&container));
            let bundle = bundle.build();
            let shim = running(&bundle, &config).await;
            assert_eq!(restored(test).await, true);
            // Nobody listens there.
            let script = "busybox nc -w 5 10.9.0.1 5000 </dev/null 2>&1; echo done";
            let text = said(&shim, &bundle, bundle.exec_sh("connect", script)).await;
            assert_eq!(
                text,
                "nc: can't connect to remote host (10.9.0.1): Connection refused\ndone\n"
            );
            told.push(timestamp(&packets));
            shim.stopped().await;
        }
        told.sort_unstable();
        let mut next = told.clone();
        next.rotate_left(1);
        let gaps = told
            .iter()
            .zip(&next)
            .map(|(one, next)| next.wrapping_sub(*one));
        let widest = gaps.max().expect("some");
        assert!(
            widest < u32::MAX - SAME,
            "they are all but the same: {told:?}"
        );
        remove(&key);
    });
}

/// A template that is cut, changed, of something else, or half gone: the VM boots, the log says why in one
/// line, and afterwards there is a new one.
#[test]
fn what_is_no_template_costs_a_boot() {
    crate::run(async |test| {
        if !qemu_can() {
            return;
        }
        let config = config(test, 208);
        let key = make(&config).await;
        let state = || {
            File::options()
                .write(true)
                .open(file(&key, "state"))
                .unwrap()
        };
        let manifest = |change: &dyn Fn(&mut Value)| {
            let path = file(&key, "json");
            let mut json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            change(&mut json);
            fs::write(path, json.to_string()).unwrap();
        };
        let cut = || state().set_len(1 << 20).unwrap();
        let bad: [(&str, &dyn Fn(), &str); 5] = [
            ("cut", &cut, "its state was changed"),
            (
                "changed",
                &|| state().write_all_at(b"x", 4096).unwrap(),
                "its state was changed",
            ),
            (
                "other",
                &|| manifest(&|json| json["about"] = json!("another QEMU")),
                "it is of something else",
            ),
            (
                "half",
                &|| fs::remove_file(file(&key, "state")).unwrap(),
                "its state: ",
            ),
            (
                "noise",
                &|| fs::write(file(&key, "json"), "{").unwrap(),
                ".json: ",
            ),
        ];
        for (id, spoil, why) in bad {
            spoil();
            let bundle = test.bundle(id).build();
            let shim = running(&bundle, &config).await;
            assert_eq!(restored(test).await, false, "{id}");
            let log = shim.log();
            let told = log
                .matches("it boots, because its template is none: ")
                .count();
            assert!(told == 1 && log.contains(why), "{id}: {log}");
            let is_whole = || {
                let output = maker(&config).stdin(Stdio::null()).output();
                let said = String::from_utf8_lossy(&output.expect("the maker").stdout).into_owned();
                match said.contains(&format!("{key} is there")) {
                    true => Ok(()),
                    false => Err(said),
                }
            };
            wait::until_within(LIMIT, "another template", is_whole);
            shim.stopped().await;
        }
        // What says that it is right, and is not: QEMU finds out.
        cut();
        let file_now = fs::metadata(file(&key, "state")).unwrap();
        manifest(&|json| {
            json["state"]["bytes"] = json!(file_now.size());
            json["state"]["changed"] = json!([file_now.ctime(), file_now.ctime_nsec()]);
        });
        let bundle = test.bundle("lie").build();
        let shim = running(&bundle, &config).await;
        assert_eq!(restored(test).await, false);
        let log = shim.log();
        assert!(
            log.contains("it boots, because the VM did not start: "),
            "{log}"
        );
        assert_eq!(files(&key), ["failed"], "it is not tried again for a while");
        let text = said(&shim, &bundle, bundle.exec_sh("look", "echo well")).await;
        assert_eq!(text, "well\n");
        shim.stopped().await;
        remove(&key);
    });
}

/// The first VM boots, and once its container runs a template is made for the next.
#[test]
fn the_first_vm_boots_and_the_next_need_not() {
    crate::run(async |test| {
        if !qemu_can() {
            return;
        }
        let config = config(test, 212);
        let first = test.bundle("first").build();
        let shim = running(&first, &config).await;
        assert_eq!(restored(test).await, false);
        let made = || {
            let makers = proc::children(shim.pid()).into_iter();
            let making =
                makers.filter(|pid| proc::words(*pid, "cmdline").iter().any(|w| w == "template"));
            match making.count() {
                0 => Ok(()),
                n => Err(format!("{n} makers")),
            }
        };
        wait::until_within(LIMIT, "the maker's end", made);
        let key = make(&config).await;
        shim.stopped().await;
        let next = test.bundle("next").build();
        let shim = running(&next, &config).await;
        assert_eq!(restored(test).await, true);
        shim.stopped().await;
        remove(&key);
    });
}

/// Killed while its machine boots, or with no room for what is saved: nothing is left.
#[test]
fn a_maker_that_fails_leaves_nothing() {
    crate::run(async |test| {
        if !qemu_can() {
            return;
        }
        let config = config(test, 216);
        let mut maker_that_dies = maker(&config).spawn().expect("the maker");
        let pid = maker_that_dies.id() as i32;
        let qemu = || {
            let mut children = proc::children(pid).into_iter();
            let qemu = children.find(|pid| {
                let words = proc::words(*pid, "cmdline");
                words.iter().any(|word| word == "guest=template")
            });
            qemu.ok_or_else(|| "none".to_owned())
        };
        let qemu = wait::until_within(LIMIT, "QEMU", qemu);
        maker_that_dies.kill().unwrap();
        maker_that_dies.wait().unwrap();
        wait::ended(qemu).await;
        let making = Path::new(DIR).join("making");
        assert_eq!(fs::read_dir(&making).unwrap().count(), 0);
        assert_eq!(proc::mounts_under(Path::new(DIR)), Vec::<String>::new());
        let full = "mount -t tmpfs -o size=24m full /run/dunnage/templates && exec \"$0\" template";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", full]);
        command.arg(peers::shim()).env("DUNNAGE_VM_CONFIG", &config);
        let output = wait::within(LIMIT, "the maker", wait::output(command, None)).await;
        assert_eq!(output.code(), Some(1), "{}", output.out());
        assert!(
            output.err().contains("it is not saved: "),
            "{}",
            output.err()
        );
        let key = make(&config).await;
        assert_eq!(files(&key), ["json", "state"]);
        remove(&key);
    });
}

/// Of a kernel or an image that has changed only the newest template is kept.
#[test]
fn an_older_template_of_the_same_goes() {
    crate::run(async |test| {
        if !qemu_can() {
            return;
        }
        crate::install_image(test.dir());
        let made = fs::canonicalize(test.dir().join("lib/dunnage/guest/distro")).unwrap();
        let own = test.dir().join("own/distro");
        fs::create_dir_all(&own).unwrap();
        for name in ["vmlinux", "guest.toml"] {
            std::os::unix::fs::symlink(made.join(name), own.join(name)).unwrap();
        }
        let renew = || {
            fs::copy(made.join("initrd"), own.join("initrd")).unwrap();
        };
        renew();
        let image = format!("{:?}", test.dir().join("own"));
        let lines = [("image", image), ("memory", "220".into())];
        let config = jail::config(test, "own.toml", &lines);
        let older = make(&config).await;
        assert_eq!(make(&config).await, older);
        renew();
        let newer = make(&config).await;
        assert_ne!(newer, older);
        assert_eq!(files(&older), Vec::<&str>::new());
        assert_eq!(files(&newer), ["json", "state"]);
        remove(&newer);
    });
}

/// QEMU before 10 goes on with no machine that has files: that is said once, and VMs boot.
#[test]
fn an_older_qemu_has_no_templates() {
    crate::run(async |test| {
        if qemu_can() {
            return;
        }
        let config = config(test, 224);
        let output = try_to_make(&config).await;
        assert_eq!(output.code(), Some(1), "{}", output.out());
        let why = output.err();
        assert!(
            why.contains("goes on with no machine that has files: 10"),
            "{why}"
        );
        let bundle = test.bundle("c").build();
        let shim = running(&bundle, &config).await;
        assert_eq!(restored(test).await, false);
        assert!(shim.log().is_empty(), "{}", shim.log());
        shim.stopped().await;
    });
}
