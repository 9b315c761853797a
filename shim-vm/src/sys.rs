// SPDX-License-Identifier: Apache-2.0
//! What the VM shim needs of the kernel and std has no safe name for.

#![allow(
    unsafe_code,
    reason = "pre_exec closures, seccomp, and what confines a process; each has its SAFETY comment"
)]

use crate::jail::{Jail, Part};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::{set_no_new_privs, set_pdeathsig};
use nix::sys::resource::setrlimit;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, SFlag, mknod, umask};
use nix::unistd::{Gid, Uid, chdir, chown, mkdir, pivot_root, setgid, setgroups, setuid};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// `command`'s process is shut into `jail`, and dies with this thread. What is set of it after this
/// must be among the system calls that the jail allows. Which step failed is said on its stderr.
pub fn confine(command: &mut Command, jail: Jail) {
    // SAFETY: between fork and exec only system calls run, all of them async-signal-safe; paths are
    // short enough that nix puts them on the stack.
    unsafe {
        command.pre_exec(move || {
            enter(&jail).map_err(|(step, e)| {
                let _ = io::stderr().write_all(step.as_bytes());
                e.into()
            })
        });
    }
}

fn enter(jail: &Jail) -> Result<(), (&'static str, Errno)> {
    let at = |step: &'static str| move |e: Errno| (step, e);
    let mut own = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    match &jail.network {
        Some(network) => setns(network, CloneFlags::CLONE_NEWNET).map_err(at("network"))?,
        None => own |= CloneFlags::CLONE_NEWNET,
    }
    unshare(own).map_err(at("namespaces"))?;
    root(jail).map_err(at("root"))?;
    close_on_exec(jail.fds).map_err(at("files"))?;
    for (resource, most) in jail.limits {
        setrlimit(resource, most, most).map_err(at("limits"))?;
    }
    let groups = jail.group.map(Gid::from_raw);
    setgroups(groups.as_slice()).map_err(at("groups"))?;
    setgid(Gid::from_raw(jail.user)).map_err(at("group"))?;
    setuid(Uid::from_raw(jail.user)).map_err(at("user"))?;
    // Undone by a change of the user, so not before.
    if !jail.outlives_parent {
        set_pdeathsig(Signal::SIGKILL).map_err(at("parent"))?;
    }
    // Whose parent is dead by now will not be told any more. In another pid namespace than its
    // parent a process does not know it by a number.
    let mut parent = [PollFd::new(jail.parent.as_fd(), PollFlags::POLLIN)];
    if poll(&mut parent, PollTimeout::ZERO) != Ok(0) {
        return Err(("parent", Errno::ESRCH));
    }
    set_no_new_privs().map_err(at("privileges"))?;
    set_filter(&jail.filter).map_err(at("system calls"))
}

/// Every fd from `first` on is closed when a program is executed (close_range(2), Linux 5.11; who is
/// older has what std gives it).
fn close_on_exec(first: i32) -> nix::Result<()> {
    let (first, mark) = (first.cast_unsigned(), libc::CLOSE_RANGE_CLOEXEC);
    // SAFETY: the call takes numbers, and closes nothing now.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, mark) };
    match Errno::result(done) {
        Err(Errno::ENOSYS | Errno::EINVAL) => Ok(()),
        done => done.map(drop),
    }
}

/// Makes the jail's root, and leaves all others behind.
fn root(jail: &Jail) -> nix::Result<()> {
    const NONE: Option<&str> = None;
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    // Nothing that is mounted here is for anybody else.
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    // No more than places to mount on.
    let size = Some("mode=0755,size=64k,nr_inodes=256");
    mount(Some("jail"), &jail.place, Some("tmpfs"), plain, size)?;
    chdir(&jail.place)?;
    for part in &jail.parts {
        match part {
            Part::Directory(path) => mkdir(path, Mode::from_bits_truncate(0o755))?,
            Part::File(path) => {
                let new = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
                drop(open(path, new, Mode::from_bits_truncate(0o444))?);
            }
            Part::Bind { from, to, flags } => {
                mount(Some(from), to, NONE, MsFlags::MS_BIND, NONE)?;
                let again = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | *flags;
                mount(NONE, to, NONE, again, NONE)?;
            }
            Part::Node { to, device } => {
                let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
                let dir = to.parent().ok_or(Errno::EINVAL)?;
                let size = Some("mode=0755,size=4k,nr_inodes=8");
                mount(Some("device"), dir, Some("tmpfs"), flags, size)?;
                let mode = Mode::S_IRUSR | Mode::S_IWUSR;
                mknod(to, SFlag::S_IFCHR, mode, *device)?;
                chown(to, Some(Uid::from_raw(jail.user)), None)?;
                let again = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
                mount(NONE, dir, NONE, again | flags, NONE)?;
            }
        }
    }
    let again = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(NONE, ".", NONE, again | plain, NONE)?;
    // The old root comes to lie upon the new one, and is taken away there (pivot_root(2)).
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")
}

/// How far this thread is behind others (getpriority(2)).
pub fn nice() -> io::Result<i32> {
    Errno::clear();
    // SAFETY: the call takes numbers.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    match Errno::last_raw() {
        0 => Ok(nice),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Sets how far a thread is behind others (setpriority(2)); 0: this one.
pub fn set_nice(thread: u32, nice: i32) -> io::Result<()> {
    // SAFETY: the call takes numbers.
    let done = unsafe { libc::setpriority(libc::PRIO_PROCESS, thread, nice) };
    Ok(Errno::result(done).map(drop)?)
}

/// From now on only the system calls that `filter` allows (seccomp(2)).
pub fn set_filter(filter: &[libc::sock_filter]) -> nix::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| Errno::E2BIG)?,
        filter: filter.as_ptr().cast_mut(),
    };
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the kernel reads the program and its instructions, which live until it returns.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, mode, 0, &raw const program) };
    Errno::result(done).map(drop)
}

/// Does something, spawning a process for example, whose children are the first in a pid namespace
/// of their own; those of what is done later are in ours again.
///
/// # Errors
/// From unshare(2) or setns(2).
pub fn with_new_pids<T>(work: impl FnOnce() -> T) -> io::Result<T> {
    let ours = File::open("/proc/self/ns/pid")?;
    unshare(CloneFlags::CLONE_NEWPID)?;
    let done = work();
    setns(ours, CloneFlags::CLONE_NEWPID)?;
    Ok(done)
}

/// Does `work` on this thread as the user and group `who`, which the kernel asks for rights, and then is root
/// again. Other threads stay what they are.
///
/// # Errors
/// From setresuid(2) and setresgid(2): nothing was done, or this thread can't be root again.
pub fn as_user<T>((uid, gid): (u32, u32), work: impl FnOnce() -> T) -> io::Result<T> {
    let set = |call: libc::c_long, id: u32| {
        // SAFETY: the call has numbers alone; -1 leaves one as it is. The C library's would change all
        // threads.
        let done = unsafe { libc::syscall(call, -1_i64, libc::c_long::from(id), -1_i64) };
        Errno::result(done).map(drop)
    };
    set(libc::SYS_setresgid, gid)?;
    if let Err(e) = set(libc::SYS_setresuid, uid) {
        set(libc::SYS_setresgid, 0)?;
        return Err(e.into());
    }
    let done = work();
    set(libc::SYS_setresuid, 0)?;
    set(libc::SYS_setresgid, 0)?;
    Ok(done)
}
