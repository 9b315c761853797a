// SPDX-License-Identifier: Apache-2.0
//! `containerd-shim-vm-v2 hold`: what a spare becomes whose VM was taken.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::read;
use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;

/// What it is called as.
pub const HOLD: &str = "hold";
/// The connection to who has taken the VM.
pub const LEASH_FD: i32 = 3;
/// What `ps` shows.
const NAME: &std::ffi::CStr = c"shim-holder";

/// Holds the processes `pids`, this one's children, until the other end of the leash is closed; then it
/// kills them, and waits until they are gone.
///
/// # Errors
/// If there is no leash.
pub fn hold(pids: &[&str]) -> Result<ExitCode, String> {
    let failed = |e: io::Error| format!("{HOLD}: {e}");
    let leash = task::sys::adopt(LEASH_FD).map_err(failed)?;
    let _ = nix::sys::prctl::set_name(NAME);
    let mut said = [0; 64];
    // Nothing is ever said.
    while let Ok(1..) | Err(Errno::EINTR) = read(&leash, &mut said) {}
    for pid in pids.iter().filter_map(|pid| pid.parse().ok()) {
        // Nobody else reaps it.
        if let Ok(pidfd) = task::sys::pidfd(pid) {
            let _ = task::sys::pidfd_kill(&pidfd);
            let mut end = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            while poll(&mut end, PollTimeout::NONE) == Err(Errno::EINTR) {}
            let _ = task::sys::wait::reap(Some(pid));
        }
    }
    Ok(ExitCode::SUCCESS)
}
