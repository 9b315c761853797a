// SPDX-License-Identifier: Apache-2.0
//! The part of the unsafe list that makes a process of a container what it is to be.

use nix::errno::Errno;
use std::ffi::CStr;
use std::io;

/// The most capabilities that a set has room for.
const CAPABILITIES: u64 = 64;

/// Forks this process, which has one thread. The child is its parent's child, and not its own (clone(2),
/// `CLONE_PARENT`); its pid, or `None` in it.
///
/// # Errors
/// From clone(2).
pub fn fork_sibling() -> nix::Result<Option<u32>> {
    let flags = libc::c_long::from(libc::CLONE_PARENT | libc::SIGCHLD);
    let none = 0 as libc::c_long;
    // SAFETY: without CLONE_VM the child has its own copy of all memory, as after fork; there is no other
    // thread that could hold a lock.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) };
    let pid = Errno::result(pid)?;
    Ok((pid != 0).then_some(pid as u32))
}

/// Sets a limit by the kernel's number of its resource (setrlimit(2)).
///
/// # Errors
/// From setrlimit(2).
pub fn set_limit(resource: u32, soft: u64, hard: u64) -> nix::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: the call reads one rlimit, which lives until it returns.
    let done = unsafe { libc::setrlimit(resource, &raw const limit) };
    Errno::result(done).map(drop)
}

/// Has a session keyring of this name, a new one unless this process may use one that is there
/// (keyctl(2), `KEYCTL_JOIN_SESSION_KEYRING`).
///
/// # Errors
/// From keyctl(2).
pub fn join_session_keyring(name: &CStr) -> nix::Result<()> {
    const JOIN: libc::c_long = 1;
    // SAFETY: the call reads a text that lives until it returns.
    let done = unsafe { libc::syscall(libc::SYS_keyctl, JOIN, name.as_ptr()) };
    Errno::result(done).map(drop)
}

/// Closes every fd from `first` on (close_range(2)).
///
/// # Errors
/// From close_range(2), which Linux has since 5.9.
pub fn close_from(first: u32) -> nix::Result<()> {
    // SAFETY: who calls this has nothing open there that it still uses.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    Errno::result(done).map(drop)
}

/// Gives up whatever a program could get beyond `keep`, a bit for each capability (prctl(2),
/// PR_CAPBSET_DROP).
///
/// # Errors
/// From prctl(2).
pub fn bound_capabilities(keep: u64) -> nix::Result<()> {
    for capability in (0..CAPABILITIES).filter(|n| keep & 1 << n == 0) {
        // SAFETY: the call takes numbers.
        let done = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        match Errno::result(done) {
            // The kernel has no more.
            Err(Errno::EINVAL) => break,
            dropped => drop(dropped?),
        }
    }
    Ok(())
}

/// `struct __user_cap_header_struct`, and the halves of `struct __user_cap_data_struct` (capset(2)).
#[repr(C)]
struct Header {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Sets what this thread may do, a bit for each capability.
///
/// # Errors
/// From capset(2).
pub fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> nix::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let half = |shift: u32| Data {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: the call reads one header and, of this version, two halves, which live until it returns.
    let done = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    Errno::result(done).map(drop)
}

/// Sets what a program gets that has no capabilities of its own, a bit for each.
///
/// # Errors
/// From prctl(2).
pub fn set_ambient_capabilities(ambient: u64) -> nix::Result<()> {
    let set = |what: libc::c_int, capability: u64| {
        // SAFETY: takes numbers.
        let done = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, what, capability, 0, 0) };
        Errno::result(done).map(drop)
    };
    set(libc::PR_CAP_AMBIENT_CLEAR_ALL, 0)?;
    let mut wanted = (0..CAPABILITIES).filter(|n| ambient & 1 << n != 0);
    wanted.try_for_each(|capability| set(libc::PR_CAP_AMBIENT_RAISE, capability))
}

/// Has signals mean what they mean to a fresh process: a Rust program ignores SIGPIPE.
///
/// # Errors
/// From sigaction(2).
pub fn forget_handlers() -> io::Result<()> {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: the default action runs no code of ours.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }?;
    Ok(())
}

/// Ends this process at once, and runs nothing of it to its end.
pub fn end_now(status: i32) -> ! {
    // SAFETY: takes a number.
    unsafe { libc::_exit(status) }
}
