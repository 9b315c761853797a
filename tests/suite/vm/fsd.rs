// SPDX-License-Identifier: Apache-2.0
//! What the file server of a VM can't do, though it were the guest's: system calls are made in its
//! place, in its namespaces, with its powers and its filter.

use harness::inject::Arg::{Bytes, Number, Text};
use harness::inject::{Arg, Injected, Outcome};
use harness::{Shim, peers, proc, wait};
use nix::sys::signal::Signal;
use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

const HERE: Arg = Number(libc::AT_FDCWD as i64);
/// Its capabilities, as capabilities(7) numbers them: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID,
/// SETUID, MKNOD, SETFCAP.
const POWERS: [u32; 8] = [0, 1, 3, 4, 6, 7, 27, 31];

fn status(pid: i32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.unwrap_or_else(|| panic!("{key} in {text}"))[1..]
        .trim()
        .to_owned()
}

/// Its own namespaces; nothing of the host's open, mounted or inherited; few powers and no new ones.
fn is_shut_in(shim: &Shim, pid: i32) {
    for name in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let of = |pid| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
        assert_ne!(of(pid), of(shim.pid()), "{name}");
    }
    let powers: u64 = POWERS.into_iter().map(|number| 1 << number).sum();
    for (key, value) in [
        ("CapEff", format!("{powers:016x}")),
        ("CapPrm", format!("{powers:016x}")),
        ("CapInh", format!("{:016x}", 0)),
        ("CapBnd", format!("{:016x}", 0)),
        ("CapAmb", format!("{:016x}", 0)),
        ("NoNewPrivs", "1".to_owned()),
        ("Seccomp", "2".to_owned()),
        ("NSpid", format!("{pid}\t1")),
        ("Groups", String::new()),
    ] {
        assert_eq!(status(pid, key), value, "{key}");
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core"));
    let core: Vec<&str> = core.unwrap().split_whitespace().collect();
    assert_eq!(core[4..6], ["1", "1"]);
    assert_eq!(proc::words(pid, "environ"), [] as [String; 0]);
    for (number, target) in proc::fds(pid).unwrap() {
        let kinds = [
            "pipe:",
            "socket:",
            "anon_inode:",
            "/memfd:memory-backend-memfd",
            // Where it writes what it saves.
            "/memfd:state",
        ];
        let kind = kinds.iter().any(|kind| target.starts_with(kind));
        let share = ["/", "/c", "/.volumes"].contains(&target.as_str())
            || ["/c/", "/.volumes/"]
                .iter()
                .any(|at| target.starts_with(at));
        let stdio = number < 2 && target == "/dev/null";
        assert!(kind || share || stdio, "fd {number}: {target}");
    }
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let options: Vec<&str> = fields[5].split(',').collect();
        for option in ["nosuid", "nodev", "noexec"] {
            assert!(options.contains(&option), "{line}");
        }
        let share = fields[4].starts_with("/c/") || fields[4].starts_with("/.volumes/");
        assert!(share || fields[4] == "/" && options[0] == "ro", "{line}");
        assert!(line.contains(" master:"), "{line}");
    }
}

/// In a real VM: whoever has taken over the file server has the share's files, and nothing else of
/// the host. The first thing that is not about files ends it, and the VM with it.
#[test]
fn a_file_server_that_was_taken_over_has_the_share_alone() {
    crate::run(async |test| {
        let canary = test.dir().join("canary");
        fs::write(&canary, "alive").unwrap();
        let bundle = test.bundle("c").share().build();
        let shim = bundle.running().await;
        let pid = crate::child(&shim, "fsd");
        is_shut_in(&shim, pid);

        let mut it = Injected::into(pid).unwrap();
        let read = Number(libc::O_RDONLY.into());
        let canary_path = canary.to_str().unwrap();
        let up = format!("../../../../../../../..{canary_path}");
        for path in [canary_path, &up, "/etc/passwd", "/proc/1/root", "/dev/sda"] {
            let opened = it.call(libc::SYS_openat, &[HERE, Text(path), read]);
            assert_eq!(opened, Outcome::Refused(libc::ENOENT), "{path}");
        }
        // Every directory that it has open, and what is above it.
        for (number, target) in proc::fds(pid).unwrap() {
            let above = [
                Number(number.into()),
                Text("../../../../../../etc/passwd"),
                read,
            ];
            let opened = it.call(libc::SYS_openat, &above);
            assert!(
                matches!(opened, Outcome::Refused(_)),
                "{target}: {opened:?}"
            );
            let above = [
                Number(number.into()),
                Text("../../sys/kernel/core_pattern"),
                read,
            ];
            let opened = it.call(libc::SYS_openat, &above);
            assert!(
                matches!(opened, Outcome::Refused(_)),
                "{target}: {opened:?}"
            );
        }
        let mode = Number(0o777);
        for path in [
            "/evil",
            "/c/evil",
            "/.volumes/evil",
            "/.volumes/0/evil",
            "/c/rootfs/evil",
        ] {
            let made = it.call(libc::SYS_mkdirat, &[HERE, Text(path), mode]);
            assert_eq!(made, Outcome::Refused(libc::EROFS), "{path}");
            let linked = [Text(canary_path), HERE, Text(path)];
            let linked = it.call(libc::SYS_symlinkat, &linked);
            assert_eq!(linked, Outcome::Refused(libc::EROFS), "{path}");
        }
        // A device that it makes is none.
        let device = "/.volumes/0/v/disk";
        let disk =
            fs::metadata("/dev/null").map(|file| std::os::linux::fs::MetadataExt::st_rdev(&file));
        let kind = Number((libc::S_IFCHR | 0o666).into());
        let number = Number(disk.unwrap() as i64);
        let made = it.call(libc::SYS_mknodat, &[HERE, Text(device), kind, number]);
        assert_eq!(
            made,
            Outcome::Returned(0),
            "as a container with the right may"
        );
        let opened = it.call(libc::SYS_openat, &[HERE, Text(device), read]);
        assert_eq!(opened, Outcome::Refused(libc::EACCES));

        let killed = it.call(libc::SYS_kill, &[Number(-1), Number(libc::SIGKILL.into())]);
        assert_eq!(killed, Outcome::Killed(Signal::SIGSYS));
        drop(it);
        assert_eq!(test.events().exit("c", "c").await.exit_status, 137);
        assert!(shim.alive());
        assert_eq!(fs::read_to_string(&canary).unwrap(), "alive");
        shim.delete("c", "").await.unwrap();
        shim.stopped().await;
        let log = shim.log();
        assert!(
            log.contains("the file server ended: signal: signal 31"),
            "{log}"
        );
    });
}

/// A file server without a VM, in a share with nothing in it.
struct Alone {
    unshare: Child,
    pid: i32,
    _client: UnixStream,
}

impl Alone {
    fn start(dir: &Path) -> Self {
        let socket = dir.join("files.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let client = UnixStream::connect(&socket).unwrap();
        fs::remove_file(&socket).unwrap();
        let share = dir.join("share");
        fs::create_dir_all(&share).unwrap();
        let script = "mount -t tmpfs share \"$1\" && exec \"$0\" fsd \"$1\" 4096 3<&0 </dev/null";
        let mut command = Command::new("unshare");
        command
            .args([
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "sh",
                "-c",
                script,
            ])
            .arg(peers::vm_shim())
            .arg(&share)
            .stdin(std::os::fd::OwnedFd::from(listener));
        let unshare = command.spawn().unwrap();
        let parent = unshare.id() as i32;
        let shut = || {
            let child = *proc::children(parent).first().ok_or("no child")?;
            let shut = status(child, "Seccomp") == "2" && proc::words(child, "cmdline")[1] == "fsd";
            // Its first thread waits for the others.
            let waits = proc::stat(child).is_some_and(|stat| stat.state == 'S' && stat.threads > 1);
            (shut && waits).then_some(child).ok_or("not yet".to_owned())
        };
        let pid = wait::until_within(wait::DEADLINE, "a file server", shut);
        Self {
            unshare,
            pid,
            _client: client,
        }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

/// Each of these ends it.
#[test]
fn what_is_not_about_files_ends_the_file_server() {
    crate::prepare();
    let dir = tempfile::tempdir().unwrap();
    let dir: PathBuf = dir.path().into();
    let zero = Number(0);
    let code = Number((libc::PROT_READ | libc::PROT_EXEC).into());
    let page = [0; 64];
    let anonymous = Number((libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).into());
    let length = Number(4096);
    let calls: &[(&str, i64, &[Arg])] = &[
        ("execve", libc::SYS_execve, &[Text("/bin/sh"), zero, zero]),
        (
            "execveat",
            libc::SYS_execveat,
            &[HERE, Text("/sh"), zero, zero],
        ),
        ("fork", libc::SYS_fork, &[]),
        ("vfork", libc::SYS_vfork, &[]),
        ("clone", libc::SYS_clone, &[Number(libc::SIGCHLD.into())]),
        (
            "clone in a namespace",
            libc::SYS_clone,
            &[Number((libc::CLONE_THREAD | libc::CLONE_NEWUSER).into())],
        ),
        ("ptrace", libc::SYS_ptrace, &[Number(16), Number(1)]),
        ("process_vm_readv", libc::SYS_process_vm_readv, &[Number(1)]),
        (
            "process_vm_writev",
            libc::SYS_process_vm_writev,
            &[Number(1)],
        ),
        ("pidfd_open", libc::SYS_pidfd_open, &[Number(1)]),
        ("pidfd_getfd", libc::SYS_pidfd_getfd, &[zero, zero]),
        (
            "tgkill of another",
            libc::SYS_tgkill,
            &[Number(2), Number(2), zero],
        ),
        ("socket", libc::SYS_socket, &[Number(1), Number(1)]),
        ("socketpair", libc::SYS_socketpair, &[Number(1), Number(1)]),
        (
            "connect",
            libc::SYS_connect,
            &[zero, Bytes(&page), Number(16)],
        ),
        (
            "mount",
            libc::SYS_mount,
            &[Text("x"), Text("/"), Text("proc")],
        ),
        ("umount2", libc::SYS_umount2, &[Text("/"), Number(2)]),
        (
            "unshare",
            libc::SYS_unshare,
            &[Number(libc::CLONE_NEWUSER.into())],
        ),
        ("setns", libc::SYS_setns, &[zero]),
        ("chroot", libc::SYS_chroot, &[Text("/")]),
        ("chdir", libc::SYS_chdir, &[Text("..")]),
        ("pivot_root", libc::SYS_pivot_root, &[Text("/"), Text("/")]),
        ("open_tree", libc::SYS_open_tree, &[HERE, Text("/")]),
        ("move_mount", libc::SYS_move_mount, &[zero]),
        ("fsopen", libc::SYS_fsopen, &[Text("proc")]),
        ("mount_setattr", libc::SYS_mount_setattr, &[HERE, Text("/")]),
        ("open_by_handle_at", libc::SYS_open_by_handle_at, &[HERE]),
        ("bpf", libc::SYS_bpf, &[zero]),
        ("io_uring_setup", libc::SYS_io_uring_setup, &[Number(1)]),
        ("userfaultfd", libc::SYS_userfaultfd, &[zero]),
        ("perf_event_open", libc::SYS_perf_event_open, &[zero]),
        ("keyctl", libc::SYS_keyctl, &[zero]),
        ("add_key", libc::SYS_add_key, &[zero]),
        ("finit_module", libc::SYS_finit_module, &[zero]),
        ("kexec_load", libc::SYS_kexec_load, &[zero]),
        ("reboot", libc::SYS_reboot, &[zero]),
        ("prlimit64", libc::SYS_prlimit64, &[Number(1)]),
        ("ioctl", libc::SYS_ioctl, &[zero]),
        ("memfd_create", libc::SYS_memfd_create, &[Text("x")]),
        (
            "mmap of code",
            libc::SYS_mmap,
            &[zero, length, code, anonymous],
        ),
        (
            "mprotect to code",
            libc::SYS_mprotect,
            &[zero, length, code],
        ),
        (
            "prctl",
            libc::SYS_prctl,
            &[Number(libc::PR_SET_DUMPABLE.into())],
        ),
        ("seccomp", libc::SYS_seccomp, &[zero]),
        ("fanotify_init", libc::SYS_fanotify_init, &[zero]),
        (
            "sethostname",
            libc::SYS_sethostname,
            &[Text("x"), Number(1)],
        ),
        ("clock_settime", libc::SYS_clock_settime, &[zero]),
        ("iopl", libc::SYS_iopl, &[Number(3)]),
        ("acct", libc::SYS_acct, &[zero]),
        ("a number to come", 600, &[]),
        ("one of x32", 0x4000_0000, &[]),
    ];
    for (name, number, args) in calls {
        let alone = Alone::start(&dir);
        let mut it = Injected::into(alone.pid).unwrap();
        let outcome = it.call(*number, args);
        assert_eq!(outcome, Outcome::Killed(Signal::SIGSYS), "{name}");
    }
    // What a C library tries before it takes another.
    let alone = Alone::start(&dir);
    let mut it = Injected::into(alone.pid).unwrap();
    let missing = Outcome::Refused(libc::ENOSYS);
    assert_eq!(it.call(libc::SYS_clone3, &[]), missing);
    assert_eq!(it.call(libc::SYS_getpid, &[]), Outcome::Returned(1));
}
