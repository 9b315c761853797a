//! The limit on open files (getrlimit(2), RLIMIT_NOFILE): ours is raised as far as may be, and what
//! we start has the one that we were started with.
//!
//! systemd gives every service 1,024 files, and as many as it wants if it asks: the low one is for
//! programs that still use select(2). A daemon of ours does not, and has several files open for
//! each process of a container's. A container's programs, loggers and hooks may.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::OnceLock;

/// What we were started with, once ours is another.
static GIVEN: OnceLock<libc::rlimit> = OnceLock::new();

/// Raises the soft limit of this process to the hard one, once; without the right to it stays as
/// it is.
pub fn raise_open_files() {
    let mut given = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the call writes one rlimit, which lives until it returns.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut given) } == 0;
    if known && given.rlim_cur < given.rlim_max {
        let raised = libc::rlimit {
            rlim_cur: given.rlim_max,
            ..given
        };
        match set(&raised) {
            Ok(()) => drop(GIVEN.set(given)),
            Err(e) => log::warn!("no more than {} open files: {e}", given.rlim_cur),
        }
    }
}

/// Sets the limit that we were started with again, for a program that is to take our place.
///
/// # Errors
/// From setrlimit(2).
pub fn restore_open_files() -> io::Result<()> {
    GIVEN.get().map_or(Ok(()), set)
}

/// Has `command`'s process start with the limit that we were started with.
pub fn give_open_files(command: &mut Command) {
    if let Some(given) = GIVEN.get() {
        // SAFETY: between fork and exec only setrlimit runs, which is no more than a system call.
        unsafe { command.pre_exec(|| set(given)) };
    }
}

fn set(limit: &libc::rlimit) -> io::Result<()> {
    // SAFETY: the call reads one rlimit, which lives until it returns.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
