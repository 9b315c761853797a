//! What the VM shim needs of the kernel and std has no safe name for.

#![allow(
    unsafe_code,
    reason = "pre_exec closures, and what confines a process; each has its SAFETY comment"
)]

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use std::fs::File;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// `command`'s process never gets privileges it does not have (prctl(2), PR_SET_NO_NEW_PRIVS).
pub fn no_new_privileges(command: &mut Command) {
    // SAFETY: between fork and exec only prctl runs, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| Ok(nix::sys::prctl::set_no_new_privs()?));
    }
}

/// `command`'s process is in the network namespace `network`, or without one in an empty one of its
/// own, and then `user` of `group` and of no other (setns(2), unshare(2), setuid(2)).
pub fn confine(command: &mut Command, network: Option<OwnedFd>, user: u32, group: u32) {
    // SAFETY: between fork and exec only system calls run; each is async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            match &network {
                Some(network) => setns(network, CloneFlags::CLONE_NEWNET)?,
                None => unshare(CloneFlags::CLONE_NEWNET)?,
            }
            setgroups(&[])?;
            setgid(Gid::from_raw(group))?;
            Ok(setuid(Uid::from_raw(user))?)
        });
    }
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

/// Closes every fd from `first` on (close_range(2)); nothing of this process may own one.
pub fn close_from(first: RawFd) -> nix::Result<()> {
    let first = first.cast_unsigned();
    // SAFETY: the call takes numbers; the caller answers for the fds.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    Errno::result(done).map(drop)
}

/// No program that this process executes has any capability (prctl(2), PR_CAPBSET_DROP).
pub fn drop_bounding_set() -> nix::Result<()> {
    const NONE: libc::c_ulong = 0;
    for capability in NONE.. {
        // SAFETY: the call takes numbers.
        let done = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, NONE, NONE, NONE) };
        match Errno::result(done) {
            // The kernel has no more.
            Err(Errno::EINVAL) => break,
            dropped => drop(dropped?),
        }
    }
    Ok(())
}
