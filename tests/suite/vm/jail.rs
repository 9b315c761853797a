// SPDX-License-Identifier: Apache-2.0
//! QEMU is shut in: what it is and sees, and what a program in its place can do, which is nothing.

use crate::child;
use harness::bundle::Bundle;
use harness::{Test, proc, refused, wait};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The tests' configuration with `lines` in place of what it says of the same.
pub fn config(test: &Test, name: &str, lines: &[(&str, String)]) -> PathBuf {
    let ours = std::env::var("DUNNAGE_VM_CONFIG").expect("set");
    let dir = Path::new(&ours).parent().expect("a file");
    let text = fs::read_to_string(&ours).expect("the tests' configuration");
    let text = text.replace("\"../", &format!("\"{}/../", dir.display()));
    let other = |line: &&str| {
        !lines
            .iter()
            .any(|(key, _)| line.starts_with(&format!("{key} =")))
    };
    let kept = text.lines().filter(other).map(str::to_owned);
    let added = lines.iter().map(|(key, value)| format!("{key} = {value}"));
    let text: Vec<String> = kept.chain(added).collect();
    let path = test.dir().join(name);
    fs::write(&path, text.join("\n")).expect("a configuration");
    path
}

/// A configuration with the tests' probe in QEMU's place.
pub fn probe(test: &Test) -> PathBuf {
    let program = format!("\"{}\"", env!("CARGO_BIN_EXE_probe"));
    config(test, "probe.toml", &[("qemu", program)])
}

/// The numbers in a line of /proc/PID/status.
fn numbers(pid: i32, key: &str) -> Vec<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let line = line.unwrap_or_else(|| panic!("no {key}: {status}"));
    let numbers = line.split_whitespace();
    numbers
        .map(|n| {
            u32::from_str_radix(n, if key.starts_with("Cap") { 16 } else { 10 }).expect("a number")
        })
        .collect()
}

fn text(pid: i32, file: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{file}")).expect("a process")
}

fn namespace(pid: i32, kind: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("a process")
}

/// Issue 16, point 3: each VM's QEMU has a user, a group and namespaces of its own, a root with what
/// it begins with and nothing else, two lists of system calls, and leaves no memory behind.
#[test]
fn each_vms_qemu_has_a_user_namespaces_and_a_root_of_its_own() {
    crate::run(async |test| {
        let (a, b) = (test.bundle("a").build(), test.bundle("b").build());
        let shims = [a.running().await, b.running().await];
        let qemus = shims.each_ref().map(|shim| child(shim, "-no-user-config"));
        for (shim, qemu) in shims.iter().zip(qemus) {
            assert_eq!(shim.pid(), proc::stat(qemu).expect("QEMU").ppid);
            let (uid, gid) = (numbers(qemu, "Uid:"), numbers(qemu, "Gid:"));
            assert!(uid[0] > 65535, "{uid:?}");
            assert_eq!((&uid, uid[0]), (&vec![uid[0]; 4], gid[0]));
            assert_eq!(numbers(qemu, "Groups:"), [0; 0], "without KVM");
            for set in ["CapPrm:", "CapEff:", "CapInh:", "CapAmb:"] {
                assert_eq!(numbers(qemu, set), [0], "{set}");
            }
            assert_eq!(numbers(qemu, "NoNewPrivs:"), [1]);
            let filters = numbers(qemu, "Seccomp_filters:")[0];
            assert!(filters >= 2, "ours and QEMU's own: {filters}");
            assert_eq!(numbers(qemu, "NSpid:")[1..], [1], "the first in its own");
            for kind in ["mnt", "pid", "ipc", "uts", "net"] {
                let others = [shim.pid(), qemus[0].min(qemus[1])];
                let own = namespace(qemu, kind);
                let shared = others
                    .iter()
                    .any(|&pid| pid != qemu && namespace(pid, kind) == own);
                assert!(!shared, "{kind}");
            }
            let limits = text(qemu, "limits");
            let core = limits.lines().find(|line| line.starts_with("Max core"));
            let core: Vec<&str> = core.expect("a limit").split_whitespace().collect();
            assert_eq!(
                core[4..6],
                ["1", "1"],
                "no dump into a file, nor into a pipe"
            );
            let maps = text(qemu, "smaps");
            let guest = maps.split("memfd:").nth(1).expect("the guest's memory");
            let flags = guest.lines().find_map(|line| line.strip_prefix("VmFlags:"));
            let flags = flags.expect("flags");
            assert!(
                flags.split(' ').any(|flag| flag == "dd"),
                "no dump: {flags}"
            );

            for name in ["etc", "proc", "dev", "run", "sys", "home", "root", "tmp"] {
                let path = PathBuf::from(format!("/proc/{qemu}/root/{name}"));
                // The program itself may be somewhere below.
                let its = text(qemu, "maps").contains(&format!(" /{name}/"));
                assert!(its || !path.exists(), "{name}");
            }
            for mount in text(qemu, "mountinfo").lines() {
                let options: Vec<&str> = mount
                    .split(' ')
                    .nth(5)
                    .expect("options")
                    .split(',')
                    .collect();
                for option in ["ro", "nosuid", "nodev"] {
                    assert!(options.contains(&option), "{option}: {mount}");
                }
            }
        }
        assert_ne!(numbers(qemus[0], "Uid:"), numbers(qemus[1], "Uid:"));
    });
}

/// What the probe said, `name=value` each.
fn said(message: &str) -> HashMap<String, String> {
    let words = message.split_whitespace();
    let pairs = words.filter_map(|word| word.split_once('='));
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// Issue 16, point 3: a program in QEMU's place, of the same user, in the same namespaces and with
/// the same system calls, finds nothing that it can do to the host or to another VM.
#[test]
fn a_program_in_qemus_place_reaches_nothing() {
    crate::run(async |test| {
        let victim = test.bundle("victim").build();
        let shim = victim.running().await;
        let qemu = child(&shim, "-no-user-config");
        let bundle = test.bundle(&format!("probe-{qemu}")).build();
        let told = said(&told(test, &bundle).await);
        let done: Vec<_> = told.iter().filter(|(_, value)| *value == "done").collect();
        assert!(done.is_empty(), "{done:?}");
        let number = |name: &str| -> i32 {
            let value = told
                .get(name)
                .unwrap_or_else(|| panic!("no {name}: {told:?}"));
            value.parse().unwrap_or_else(|_| panic!("{name}={value}"))
        };
        for call in [
            "ptrace",
            "process_vm_readv",
            "pidfd_open",
            "bpf",
            "io_uring_setup",
            "kill",
            "socket_unix",
            "socket_inet",
            "socket_netlink",
            "fork",
            "clone3",
            "mount",
            "unshare_user",
            "pdeathsig",
            "limits",
            "keyctl",
            "userfaultfd",
            "execveat",
        ] {
            assert_eq!(number(call), libc::ENOSYS, "{call}");
        }
        assert!(told.len() > 70, "all of them: {told:?}");
        assert_eq!(number("/etc/passwd"), libc::ENOENT);
        assert_eq!(number(&format!("/proc/{qemu}/mem")), libc::ENOENT);
        assert_eq!(number("/kernel"), libc::EACCES);
        assert_eq!(number("pid"), 1);
        assert_eq!(number("uid"), number("gid"));
        assert_eq!(told["core"], "1,1");
        // Its own, the console, the agent's port, and the file server.
        assert_eq!(told["fds"], "0,1,2,3,4,5");
        assert!(
            told["root"].contains("initrd") && told["root"].contains("kernel"),
            "{told:?}"
        );
        assert!(proc::alive(qemu), "nothing has happened to the other VM");
    });
}

/// A /dev/kvm that is only root's is QEMU's, too, though that is not root: what it can't do there is what
/// nobody can.
#[test]
fn a_kvm_that_is_only_roots_is_qemus_too() {
    const KVM: &str = "/dev/kvm";
    crate::run(async |test| {
        let open = fs::File::options().read(true).write(true).open(KVM);
        let expected = match open.map_err(|e| e.raw_os_error()) {
            Ok(_) => "done".to_owned(),
            Err(errno) => errno.unwrap_or_default().to_string(),
        };
        let bundle = test.bundle("probe-1");
        let bundle = bundle.annotation("io.dunnage.vm.accel", "kvm").build();
        let told = said(&told(test, &bundle).await);
        assert_eq!(told[KVM], expected, "{told:?}");
    });
}

/// What the probe says when it is run for `bundle`'s VM: the reason why that does not start.
async fn told(test: &Test, bundle: &Bundle) -> String {
    let config = probe(test);
    let start = bundle
        .start()
        .env("DUNNAGE_VM_CONFIG", &config.to_string_lossy());
    let shim = start.shim().await;
    let create = shim.create(bundle.create());
    let status = refused(wait::within(wait::DEADLINE, "the refusal", create).await);
    assert!(
        status.message.contains("QEMU ended: exit status 0"),
        "{status}"
    );
    status.message
}
