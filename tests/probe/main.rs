// SPDX-License-Identifier: Apache-2.0
//! A program in QEMU's place, which tries what QEMU must not do, and says on stderr what came of
//! each: `<what>=<error number>`, or `<what>=done`.
//!
//! It is given QEMU's arguments. Of those it reads `guest=<namespace>/<what>-<pid>`: with `probe`
//! it tries, the process to attack being `<pid>`; with `stay` it waits until it is killed.
//!
//! As `watch DIR` it is a program in a guest that watches a directory by inotify(7); as `files DIR` one that
//! says what can be done in a directory beside the usual; as `allow FILE UID` it lets another user read.
#![allow(unsafe_code, reason = "system calls, mostly such as must fail")]

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::ffi::CString;
use std::fmt::Write as _;
use std::io::Write as _;

/// As many system calls as a line may have; longer lines are cut.
const LINE: usize = 15;

type Call = (&'static str, libc::c_long, [usize; 6]);

/// Makes the system call.
fn call((_, number, a): &Call) -> Result<(), i32> {
    // SAFETY: each call is one that fails, or whose arguments point to what lives for as long as
    // this process; that is what is tested.
    match unsafe { libc::syscall(*number, a[0], a[1], a[2], a[3], a[4], a[5]) } {
        -1 => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        0 if *number == libc::SYS_fork || *number == libc::SYS_clone => {
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) }
        }
        _ => Ok(()),
    }
}

/// What looks into other processes, changes who or where this one is, reaches others, or gets at
/// rarer parts of the kernel.
fn calls(victim: usize, page: usize) -> Vec<Call> {
    let user = libc::CLONE_NEWUSER as usize;
    let (unix, inet) = (libc::AF_UNIX as usize, libc::AF_INET as usize);
    let (netlink, vsock) = (libc::AF_NETLINK as usize, libc::AF_VSOCK as usize);
    let (stream, chld) = (libc::SOCK_STREAM as usize, libc::SIGCHLD as usize);
    let root = c"/".as_ptr() as usize;
    let x = c"/x".as_ptr() as usize;
    let none = usize::MAX;
    let at = libc::AT_FDCWD as usize;
    vec![
        (
            "ptrace",
            libc::SYS_ptrace,
            [libc::PTRACE_ATTACH as usize, victim, 0, 0, 0, 0],
        ),
        (
            "process_vm_readv",
            libc::SYS_process_vm_readv,
            [victim, page, 1, page, 1, 0],
        ),
        (
            "process_vm_writev",
            libc::SYS_process_vm_writev,
            [victim, page, 1, page, 1, 0],
        ),
        (
            "process_madvise",
            libc::SYS_process_madvise,
            [0, page, 1, 21, 0, 0],
        ),
        ("pidfd_open", libc::SYS_pidfd_open, [victim, 0, 0, 0, 0, 0]),
        ("pidfd_open_self", libc::SYS_pidfd_open, [1, 0, 0, 0, 0, 0]),
        ("pidfd_getfd", libc::SYS_pidfd_getfd, [0, 0, 0, 0, 0, 0]),
        ("kill", libc::SYS_kill, [victim, 0, 0, 0, 0, 0]),
        ("tgkill", libc::SYS_tgkill, [victim, victim, 0, 0, 0, 0]),
        ("kcmp", libc::SYS_kcmp, [1, 1, 0, 0, 0, 0]),
        (
            "perf_event_open",
            libc::SYS_perf_event_open,
            [page, 0, none, none, 0, 0],
        ),
        ("bpf", libc::SYS_bpf, [0, page, 64, 0, 0, 0]),
        (
            "io_uring_setup",
            libc::SYS_io_uring_setup,
            [8, page, 0, 0, 0, 0],
        ),
        ("userfaultfd", libc::SYS_userfaultfd, [1, 0, 0, 0, 0, 0]),
        ("keyctl", libc::SYS_keyctl, [0, none - 2, 1, 0, 0, 0]),
        (
            "add_key",
            libc::SYS_add_key,
            [root, root, page, 1, none - 2, 0],
        ),
        ("socket_unix", libc::SYS_socket, [unix, stream, 0, 0, 0, 0]),
        ("socket_inet", libc::SYS_socket, [inet, stream, 0, 0, 0, 0]),
        ("socket_netlink", libc::SYS_socket, [netlink, 3, 0, 0, 0, 0]),
        (
            "socket_vsock",
            libc::SYS_socket,
            [vsock, stream, 0, 0, 0, 0],
        ),
        (
            "socketpair_tipc",
            libc::SYS_socketpair,
            [30, stream, 0, page, 0, 0],
        ),
        ("bind", libc::SYS_bind, [2, page, 2, 0, 0, 0]),
        ("connect", libc::SYS_connect, [2, page, 2, 0, 0, 0]),
        ("fork", libc::SYS_fork, [0; 6]),
        ("clone", libc::SYS_clone, [chld, 0, 0, 0, 0, 0]),
        ("clone_user", libc::SYS_clone, [chld | user, 0, 0, 0, 0, 0]),
        ("clone3", libc::SYS_clone3, [page, 64, 0, 0, 0, 0]),
        ("unshare_user", libc::SYS_unshare, [user, 0, 0, 0, 0, 0]),
        (
            "unshare_mounts",
            libc::SYS_unshare,
            [libc::CLONE_NEWNS as usize, 0, 0, 0, 0, 0],
        ),
        ("setns", libc::SYS_setns, [0, 0, 0, 0, 0, 0]),
        (
            "mount",
            libc::SYS_mount,
            [root, root, root, libc::MS_BIND as usize, 0, 0],
        ),
        ("umount2", libc::SYS_umount2, [root, 2, 0, 0, 0, 0]),
        ("chroot", libc::SYS_chroot, [root, 0, 0, 0, 0, 0]),
        ("pivot_root", libc::SYS_pivot_root, [root, root, 0, 0, 0, 0]),
        (
            "open_by_handle_at",
            libc::SYS_open_by_handle_at,
            [0, page, 0, 0, 0, 0],
        ),
        ("setuid", libc::SYS_setuid, [0, 0, 0, 0, 0, 0]),
        ("setgroups", libc::SYS_setgroups, [0, 0, 0, 0, 0, 0]),
        ("capset", libc::SYS_capset, [page, page, 0, 0, 0, 0]),
        (
            "limits",
            libc::SYS_prlimit64,
            [0, libc::RLIMIT_CORE as usize, page, 0, 0, 0],
        ),
        (
            "pdeathsig",
            libc::SYS_prctl,
            [libc::PR_SET_PDEATHSIG as usize, 0, 0, 0, 0, 0],
        ),
        (
            "dumpable",
            libc::SYS_prctl,
            [libc::PR_SET_DUMPABLE as usize, 1, 0, 0, 0, 0],
        ),
        ("personality", libc::SYS_personality, [0, 0, 0, 0, 0, 0]),
        ("sethostname", libc::SYS_sethostname, [root, 1, 0, 0, 0, 0]),
        (
            "init_module",
            libc::SYS_init_module,
            [page, 1, root, 0, 0, 0],
        ),
        ("inotify", libc::SYS_inotify_init1, [0, 0, 0, 0, 0, 0]),
        ("fanotify", libc::SYS_fanotify_init, [0, 0, 0, 0, 0, 0]),
        ("shmget", libc::SYS_shmget, [0, 4096, 0o1600, 0, 0, 0]),
        ("execveat", libc::SYS_execveat, [at, x, page, page, 0, 0]),
        ("mkdir", libc::SYS_mkdirat, [at, x, 0o700, 0, 0, 0]),
        (
            "mknod",
            libc::SYS_mknodat,
            [at, x, libc::S_IFIFO as usize, 0, 0, 0],
        ),
        ("symlink", libc::SYS_symlinkat, [root, at, x, 0, 0, 0]),
        (
            "setpriority",
            libc::SYS_setpriority,
            [0, 0, none - 4, 0, 0, 0],
        ),
        (
            "sched_setaffinity",
            libc::SYS_sched_setaffinity,
            [0, 8, page, 0, 0, 0],
        ),
    ]
}

/// What is opened: a path, and how.
fn files(victim: usize) -> Vec<(String, i32)> {
    let read = libc::O_RDONLY;
    let mut files: Vec<(String, i32)> = [
        "/etc/passwd",
        "/proc/self/mem",
        "/sys/kernel",
        "/dev/null",
        "/run/dunnage",
        "/../../etc/passwd",
        "/tmp",
        "/root",
    ]
    .map(|path| (path.to_owned(), read))
    .into();
    files.push((format!("/proc/{victim}/mem"), libc::O_RDWR));
    files.push(("/dev/kvm".into(), libc::O_RDWR));
    files.push(("/new".into(), libc::O_CREAT | libc::O_WRONLY));
    files.push(("/kernel".into(), libc::O_WRONLY));
    files.push(("/".into(), libc::O_TMPFILE | libc::O_WRONLY));
    files
}

fn open(path: &str, how: i32) -> Result<(), i32> {
    let Ok(path) = CString::new(path) else {
        return Err(0);
    };
    // SAFETY: the path lives until the call returns.
    match unsafe { libc::open(path.as_ptr(), how, 0o600) } {
        -1 => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        _ => Ok(()),
    }
}

fn told(what: &str, done: Result<(), i32>) -> String {
    match done {
        Ok(()) => format!("{what}=done"),
        Err(error) => format!("{what}={error}"),
    }
}

fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The names in the root, the open files, and what this process is.
fn about() -> String {
    let names = std::fs::read_dir("/").into_iter().flatten().flatten();
    let mut names: Vec<String> = names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    // SAFETY: only asks.
    let is_open = |fd: &i32| unsafe { libc::fcntl(*fd, libc::F_GETFD) } != -1;
    let open: Vec<String> = (0..2048).filter(is_open).map(|fd| fd.to_string()).collect();
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: only asks, into a place that lives until the call returns.
    let (uid, gid, pid) = unsafe {
        libc::getrlimit(libc::RLIMIT_CORE, &raw mut limit);
        (libc::getuid(), libc::getgid(), libc::getpid())
    };
    let mut text = format!("root={} fds={}", names.join(","), open.join(","));
    let _ = write!(text, " uid={uid} gid={gid} pid={pid}");
    let _ = write!(text, " core={},{}", limit.rlim_cur, limit.rlim_max);
    text
}

/// Says of each rename in the directory `dir` what it is of, and before that that it does.
fn watch(dir: &str) {
    let inotify = Inotify::init(InitFlags::empty()).expect("inotify");
    let watched = inotify.add_watch(dir, AddWatchFlags::IN_MOVED_TO);
    watched.expect("a directory to watch");
    say("ready");
    while let Ok(events) = inotify.read_events() {
        for event in events {
            say(&event.name.unwrap_or_default().to_string_lossy());
        }
    }
}

/// Gives the attribute to the file.
fn set(file: &str, name: &str, value: &[u8]) -> Result<(), i32> {
    let text = |text: &str| CString::new(text).expect("a text");
    let (file, name, data) = (text(file), text(name), value.as_ptr().cast());
    // SAFETY: all of it lives until the call returns.
    match unsafe { libc::setxattr(file.as_ptr(), name.as_ptr(), data, value.len(), 0) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)),
    }
}

/// Says what of files that have no name, and of attributes, there is in the directory `dir`.
fn attributes(dir: &str) {
    let file = format!("{dir}/attributes");
    std::fs::write(&file, "").expect("a file");
    let anonymous = open(dir, libc::O_TMPFILE | libc::O_RDWR);
    let mut line = told("tmpfile", anonymous);
    for name in ["user.mine", "trusted.mine"] {
        let _ = write!(line, " {}", told(name, set(&file, name, b"1")));
    }
    say(&line);
}

/// A list (acl(5), as linux/posix_acl_xattr.h has it) by which the owner may read and write `file`, the user
/// `uid` read, and nobody else anything.
fn allow(file: &str, uid: &str) {
    const ANY: u32 = u32::MAX;
    let uid: u32 = uid.parse().expect("a user");
    let entries = [
        (0x01, 6, ANY),
        (0x02, 4, uid),
        (0x04, 0, ANY),
        (0x10, 4, ANY),
        (0x20, 0, ANY),
    ];
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, may, id) in entries {
        list.extend(u16::to_le_bytes(tag));
        list.extend(u16::to_le_bytes(may));
        list.extend(u32::to_le_bytes(id));
    }
    say(&told("allow", set(file, "system.posix_acl_access", &list)));
}

fn main() {
    let mut args = std::env::args().skip(1);
    let mut next = || args.next().unwrap_or_default();
    match next().as_str() {
        "watch" => return watch(&next()),
        "files" => return attributes(&next()),
        "allow" => return allow(&next(), &next()),
        _ => {}
    }
    let name = std::env::args().find_map(|word| Some(word.strip_prefix("guest=")?.to_owned()));
    let name = name.unwrap_or_default();
    let name = name.rsplit('/').next().unwrap_or_default().to_owned();
    let (what, victim) = name.split_once('-').unwrap_or_default();
    let victim = victim.parse().unwrap_or_default();
    if what == "stay" {
        loop {
            std::thread::park();
        }
    }
    // First, as fds are opened later.
    say(&about());
    // Zeros, which are no good argument of anything.
    let page = Box::leak(Box::new([0_u64; 512])).as_ptr() as usize;
    let all = calls(victim, page);
    for line in all.chunks(LINE) {
        let line = line.iter().map(|one| told(one.0, call(one)));
        say(&line.collect::<Vec<_>>().join(" "));
    }
    let opened = files(victim).into_iter();
    let opened = opened.map(|(path, how)| told(&path, open(&path, how)));
    say(&opened.collect::<Vec<_>>().join(" "));
}
