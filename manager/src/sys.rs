//! The unsafe list: every system call that the standard library and nix have no safe form for.
#![allow(
    unsafe_code,
    reason = "this file is the list of exceptions; each has its reason"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A file descriptor that becomes readable when process `pid` ends (pidfd_open(2)).
///
/// # Errors
/// From the kernel: ESRCH if there is no such process.
pub fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: takes two numbers and returns a new fd, which we then own.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, libc::PIDFD_NONBLOCK);
        match i32::try_from(fd) {
            Ok(fd) if fd >= 0 => Ok(OwnedFd::from_raw_fd(fd)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Takes over the fd that whoever started us left at `fd` (sd_listen_fds(3)). Call it once for
/// each, before any file is opened.
///
/// # Errors
/// If nothing is open there.
pub fn inherited_fd(fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD fails for a closed fd; the fd is ours by the protocol with our parent, and
    // nobody else in this process has opened anything yet.
    unsafe {
        if libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Sends `signal`, any number the kernel knows, to `pid` (kill(2)); 0 only asks.
///
/// # Errors
/// From the kernel.
pub fn kill(pid: u32, signal: u32) -> io::Result<()> {
    let number = |n: u32| i32::try_from(n).map_err(io::Error::other);
    let (pid, signal) = (number(pid)?, number(signal)?);
    // SAFETY: takes two numbers.
    if pid == 0 || unsafe { libc::kill(pid, signal) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Locks `file` (flock(2)) until it is closed here and wherever else it was passed on to: unlike
/// nix's lock, which is undone when ours goes away.
///
/// # Errors
/// From the kernel: EWOULDBLOCK if somebody else has it.
pub fn lock(file: &File) -> io::Result<()> {
    // SAFETY: takes two numbers; the fd is open for as long as the file is borrowed.
    match unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Locks `file` (flock(2)) beside all others that do this, and until it is closed everywhere.
///
/// # Errors
/// From the kernel: EWOULDBLOCK if somebody has [`lock`].
pub fn lock_shared(file: &File) -> io::Result<()> {
    // SAFETY: takes two numbers; the fd is open for as long as the file is borrowed.
    match unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_SH | libc::LOCK_NB) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends this process as SIGPIPE does (signal(7)), which Rust has writes fail instead of.
pub fn end_by_sigpipe() -> ! {
    // SAFETY: all take numbers; the first thread of a pid namespace survives the signal, and then
    // _exit ends it with the code that a shell would tell.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::raise(libc::SIGPIPE);
        libc::_exit(128 + libc::SIGPIPE)
    }
}

/// One malloc arena, and memory given back early (mallopt(3)).
pub fn keep_heap_small() {
    // SAFETY: sets two tunables of the allocator, before any other thread exists.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 << 10);
    }
}

/// Puts `fd`, which must be non-blocking, into the loop.
///
/// # Errors
/// From epoll_ctl(2): a regular file cannot be waited for.
pub fn watch(fd: OwnedFd) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, and stays the same fd, for as long as the AsyncFd has it.
    let watched = unsafe {
        tokio::io::unix::AsyncFd::register_with_interest(fd, tokio::io::Interest::READABLE)
    };
    watched.map_err(io::Error::from)
}

/// Columns and rows of the terminal that is our stdin (ioctl_tty(2), TIOCGWINSZ).
pub fn window_size() -> Option<(u16, u16)> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the ioctl writes one winsize, which lives until it returns.
    let done = unsafe { libc::ioctl(0, libc::TIOCGWINSZ, &raw mut size) };
    (done == 0).then_some((size.ws_col, size.ws_row))
}
