// SPDX-License-Identifier: Apache-2.0
//! The limit on open files (getrlimit(2), RLIMIT_NOFILE): ours is raised as far as may be, and what
//! we start has the one that we were started with. And which numbers we use.
//!
//! systemd gives every service 1,024 files, and as many as it wants if it asks: the low one is for
//! programs that still use select(2). A daemon of ours does not, and has several files open for
//! each process of a container's. A container's programs, loggers and hooks may.

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, getrlimit};
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::OnceLock;

/// What a command gives its child by number is below.
const ABOVE: i32 = 256;

/// The soft limit that we were started with, once ours is another.
static GIVEN: OnceLock<libc::rlim_t> = OnceLock::new();

/// Has the kernel make its table of this process's open files as large as [`above`] needs it: once there
/// are two threads, that waits until no processor may be reading the old table, for some 8 ms.
///
/// # Errors
/// As for [`above`].
pub fn make_room(fd: impl AsFd) -> io::Result<()> {
    above(fd).map(drop)
}

/// `fd` once more, above all numbers that a command gives its child.
///
/// # Errors
/// From fcntl(2): there are no such numbers.
pub fn above(fd: impl AsFd) -> io::Result<OwnedFd> {
    from(fd, ABOVE)
}

/// `fd` once more, under the first free number that is not below `first`.
///
/// # Errors
/// As for [`above`].
pub fn from(fd: impl AsFd, first: RawFd) -> io::Result<OwnedFd> {
    let number = fcntl(fd.as_fd(), FcntlArg::F_DUPFD_CLOEXEC(first))?;
    super::adopt(number)
}

/// Raises the soft limit of this process to the hard one; without the right to it stays as it is.
pub fn raise_open_files() {
    match set_soft(libc::RLIM_INFINITY) {
        Ok(given) => drop(GIVEN.set(given)),
        Err(e) => log::warn!("the limit on open files stays as it is: {e}"),
    }
}

/// The limit that we were started with: soft and hard.
///
/// # Errors
/// From getrlimit(2).
pub fn given_open_files() -> io::Result<(u64, u64)> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok((GIVEN.get().copied().unwrap_or(soft), hard))
}

/// Sets the limit that we were started with again, for a program that is to take our place.
///
/// # Errors
/// From setrlimit(2).
pub fn restore_open_files() -> io::Result<()> {
    GIVEN
        .get()
        .map_or(Ok(()), |given| set_soft(*given).map(drop))
}

/// The limit that a child is to have instead of ours, if it is another.
///
/// # Errors
/// From getrlimit(2).
pub fn to_restore() -> io::Result<Option<libc::rlimit>> {
    let Some(&given) = GIVEN.get() else {
        return Ok(None);
    };
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(Some(libc::rlimit {
        rlim_cur: given.min(hard),
        rlim_max: hard,
    }))
}

/// Has `command`'s process start with the limit that we were started with.
pub fn give_open_files(command: &mut Command) {
    if GIVEN.get().is_some() {
        // SAFETY: between fork and exec only getrlimit and setrlimit run, which are no more than
        // system calls.
        unsafe { command.pre_exec(restore_open_files) };
    }
}

/// Sets the soft limit, to the hard one at most, which others may have changed meanwhile; gives the
/// soft limit before.
fn set_soft(soft: libc::rlim_t) -> io::Result<libc::rlim_t> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the call writes one rlimit, which lives until it returns.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let before = limit.rlim_cur;
    limit.rlim_cur = soft.min(limit.rlim_max);
    // SAFETY: the call reads one rlimit, which lives until it returns.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } {
        0 => Ok(before),
        _ => Err(io::Error::last_os_error()),
    }
}
