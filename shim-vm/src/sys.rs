//! What the VM shim needs of the kernel and std has no safe name for.

#![allow(unsafe_code, reason = "pre_exec closures; each has its SAFETY comment")]

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use std::os::fd::OwnedFd;
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
