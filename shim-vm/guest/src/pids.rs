// SPDX-License-Identifier: Apache-2.0
//! The pid namespace that containers share: how it is made, and its first process, which reaps what
//! they leave and does nothing else.

use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Gid, Uid, chdir, chroot, setgid, setgroups, setuid};
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// What it is called, which containers see.
pub const NAME: &str = "/pause";
/// Its root: containers that may look into other processes find nothing there.
const EMPTY: &str = "/run/empty";
const NOBODY: u32 = 65_534;

/// Makes the namespace; its first process. The thread that calls this can only end: what it starts is
/// in the namespace.
///
/// # Errors
/// The kernel's.
pub fn make() -> io::Result<u32> {
    fs::create_dir_all(EMPTY)?;
    unshare(CloneFlags::CLONE_NEWPID)?;
    let child = Command::new("/proc/self/exe")
        .arg0(NAME)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Ok(child.id())
}

/// What that process does, for ever.
///
/// # Errors
/// The kernel's.
pub fn reap() -> nix::Result<()> {
    prctl::set_name(c"pause")?;
    chroot(EMPTY)?;
    chdir("/")?;
    setgroups(&[])?;
    setgid(Gid::from_raw(NOBODY))?;
    setuid(Uid::from_raw(NOBODY))?;
    let mut ended = SigSet::empty();
    ended.add(Signal::SIGCHLD);
    ended.thread_block()?;
    loop {
        while !matches!(
            waitpid(None, Some(WaitPidFlag::WNOHANG)),
            Ok(WaitStatus::StillAlive) | Err(_)
        ) {}
        ended.wait()?;
    }
}
