// SPDX-License-Identifier: Apache-2.0
//! The part of the unsafe list that forks, for a program whose process takes steps of its own before it
//! executes it; others are spawned.

use super::{NotExecuted, limits};
use nix::unistd::ForkResult;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Has `command`'s process killed when this thread ends (prctl(2), PR_SET_PDEATHSIG): what serves a VM
/// must not go on without its shim.
pub fn die_with_parent(command: &mut Command) {
    let parent = nix::unistd::getpid();
    // SAFETY: between fork and exec only prctl and getppid run, which are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            // Whose parent is dead by now will not be told any more. In a pid namespace of its own
            // it has none that it could name: it must find out by what it is connected to.
            let now = nix::unistd::getppid();
            if now != parent && now.as_raw() != 0 {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}

/// Forks a child that executes `command`, and does not wait until it does.
///
/// # Errors
/// From pipe(2) or fork(2).
pub fn fork(command: &mut Command) -> io::Result<(u32, NotExecuted)> {
    let (read, write) = NotExecuted::pipe()?;
    let mut write = match limits::above(&write) {
        Ok(above) => io::PipeWriter::from(above),
        // There are no such numbers here.
        Err(_) => write,
    };
    // SAFETY: the child goes on with a copy of this thread alone. What it calls until it executes
    // takes no lock that another thread may have held but malloc's, which fork(3) looks after; it
    // leaves by exec(3) or _exit(2), so nothing of the parent's is ever run to its end there.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => {
            Ok((child.as_raw().cast_unsigned(), NotExecuted::of(read, None)))
        }
        ForkResult::Child => {
            let error = command.exec().raw_os_error().unwrap_or(libc::EINVAL);
            let _ = write.write_all(&error.to_ne_bytes());
            // SAFETY: ends the process, and takes a number.
            unsafe { libc::_exit(127) }
        }
    }
}

/// Gives `command`'s process what a fresh process has, for a container inherits it: ours blocks the
/// signals that we wait for, and has another limit on open files.
pub fn start_afresh(command: &mut Command) {
    limits::give_open_files(command);
    // SAFETY: between fork and exec only sigprocmask runs, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| Ok(nix::sys::signal::SigSet::empty().thread_set_mask()?));
    }
}
