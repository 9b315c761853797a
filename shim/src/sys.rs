// SPDX-License-Identifier: Apache-2.0
//! The unsafe list of this crate.
#![allow(
    unsafe_code,
    reason = "this file is the list of exceptions; each has its reason"
)]

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// Makes a new core-scheduling cookie for our process group, which children inherit
/// (prctl(2), PR_SCHED_CORE; B37).
///
/// # Errors
/// From the kernel: EINVAL or ENODEV where it has no core scheduling.
pub fn create_sched_core() -> io::Result<()> {
    const PIDTYPE_PGID: libc::c_ulong = 2;
    // SAFETY: takes numbers; the cookie's address is 0 because none is read back.
    let done = unsafe {
        libc::prctl(
            libc::PR_SCHED_CORE,
            libc::PR_SCHED_CORE_CREATE,
            0,
            PIDTYPE_PGID,
            0,
        )
    };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Has this thread run before all others of the usual priority (nice(2)), so that calls are answered
/// while OCI runtimes keep every processor busy. What it forks gets the usual priority again (sched(7),
/// `SCHED_RESET_ON_FORK`), containers too. All stays as it is where somebody has chosen another
/// priority or policy, which containers inherit as from Go's shim, or where this may not be.
pub fn run_first() {
    const USUAL: libc::c_int = 0;
    /// Three times as much of a processor as others have. With more, its group of processes (sched(7),
    /// autogroups and cgroups) is given all of the group's share on its own processor, and next to none on
    /// those where its runtimes run: on a busy host an exec with crun took five times as long at -20.
    const FIRST: libc::c_int = -5;
    let param = libc::sched_param { sched_priority: 0 };
    let policy = libc::SCHED_OTHER | libc::SCHED_RESET_ON_FORK;
    // SAFETY: takes numbers, and a struct that lives until the call returns; 0 is this thread.
    unsafe {
        if libc::sched_getscheduler(0) == libc::SCHED_OTHER
            && libc::getpriority(libc::PRIO_PROCESS, 0) == USUAL
            && libc::sched_setscheduler(0, policy, &raw const param) == 0
        {
            libc::setpriority(libc::PRIO_PROCESS, 0, FIRST);
        }
    }
}

/// Forks this process, which has one thread; true in the child, which dies with its parent.
///
/// # Errors
/// From fork(2) or prctl(2).
pub fn fork_child() -> io::Result<bool> {
    let parent = nix::unistd::getpid();
    // SAFETY: there is no other thread that could hold a lock.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { .. } => Ok(false),
        nix::unistd::ForkResult::Child => {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            match nix::unistd::getppid() == parent {
                true => Ok(true),
                false => Err(io::Error::other("the keeper is gone")),
            }
        }
    }
}

/// Has `fd` open in the next program of this process too, or not.
///
/// # Errors
/// From fcntl(2).
pub fn survive_exec(fd: BorrowedFd<'_>, yes: bool) -> io::Result<()> {
    let flags = match yes {
        true => FdFlag::empty(),
        false => FdFlag::FD_CLOEXEC,
    };
    Ok(fcntl(fd, FcntlArg::F_SETFD(flags)).map(drop)?)
}

/// Moves `fd` to `number`, closing what that named before.
///
/// # Errors
/// From dup2(2).
pub fn move_fd(fd: OwnedFd, number: i32) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() == number {
        return Ok(fd);
    }
    // SAFETY: whoever calls this knows that nothing of ours uses `number`.
    let done = unsafe { libc::dup2(fd.as_raw_fd(), number) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        task::sys::adopt(number)
    }
}

/// What glibc can be told in no other way (GNU C Library manual, Tunables): to keep no freed memory
/// by its size, which is 60 KiB after a few execs and never goes back, and no stacks of threads that
/// have ended, each some 20 KiB.
const TUNABLES: (&str, &str) = (
    "GLIBC_TUNABLES",
    "glibc.malloc.tcache_count=0:glibc.pthread.stack_cache_size=0",
);

/// The variable that a daemon's environment needs for a small heap; none if somebody has set it.
pub fn heap_tunables() -> Option<(&'static str, &'static str)> {
    std::env::var_os(TUNABLES.0).is_none().then_some(TUNABLES)
}

/// Keeps the heap small: many shims run side by side. What [`heap_tunables`] gave is for this process,
/// not for its children.
pub fn keep_heap_small() {
    task::sys::keep_heap_small();
    if std::env::var_os(TUNABLES.0).is_some_and(|value| value == TUNABLES.1) {
        // SAFETY: changes the environment before any other thread exists.
        unsafe { std::env::remove_var(TUNABLES.0) };
    }
}
