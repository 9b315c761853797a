//! What the VM shim needs of the kernel and std has no safe name for.

#![allow(unsafe_code, reason = "pre_exec closures; each has its SAFETY comment")]

use std::os::unix::process::CommandExt;
use std::process::Command;

/// `command`'s process never gets privileges it does not have (prctl(2), PR_SET_NO_NEW_PRIVS).
pub fn no_new_privileges(command: &mut Command) {
    // SAFETY: between fork and exec only prctl runs, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| Ok(nix::sys::prctl::set_no_new_privs()?));
    }
}
