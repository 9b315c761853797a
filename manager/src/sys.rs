// SPDX-License-Identifier: Apache-2.0
//! The unsafe list: what only the manager asks of the kernel and nobody has a safe form for; the rest
//! is in `task::sys`.
#![allow(
    unsafe_code,
    reason = "this file is the list of exceptions; each has its reason"
)]

use nix::errno::Errno;
use std::fs::File;
use std::os::fd::AsRawFd;

/// Locks `file` (flock(2)) until it is closed here and wherever else it was passed on to: unlike
/// nix's lock, which is undone when ours goes away.
///
/// # Errors
/// From the kernel: EWOULDBLOCK if somebody else has it.
pub fn lock(file: &File) -> nix::Result<()> {
    flock(file, libc::LOCK_EX)
}

/// Locks `file` (flock(2)) beside all others that do this, and until it is closed everywhere.
///
/// # Errors
/// From the kernel: EWOULDBLOCK if somebody has [`lock`].
pub fn lock_shared(file: &File) -> nix::Result<()> {
    flock(file, libc::LOCK_SH)
}

fn flock(file: &File, how: libc::c_int) -> nix::Result<()> {
    // SAFETY: takes two numbers; the fd is open for as long as the file is borrowed.
    let done = unsafe { libc::flock(file.as_raw_fd(), how | libc::LOCK_NB) };
    Errno::result(done).map(drop)
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
