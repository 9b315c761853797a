// SPDX-License-Identifier: Apache-2.0
//! A network namespace that lives as long as it is mounted on a file.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{NSFS_MAGIC, statfs};
use std::fs::File;
use std::io;
use std::path::Path;
use std::thread;

/// Makes one there.
///
/// # Errors
/// The kernel's; then nothing is mounted.
pub fn make(path: &Path) -> io::Result<()> {
    File::create(path)?;
    let made = thread::scope(|scope| {
        let work = || -> io::Result<()> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let own = Some("/proc/thread-self/ns/net");
            mount(own, path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            Ok(())
        };
        scope.spawn(work).join()
    });
    made.unwrap_or_else(|_| Err(io::Error::other("the thread in it panicked")))
}

/// Whether one is mounted there.
pub fn is_there(path: &Path) -> bool {
    statfs(path).is_ok_and(|about| about.filesystem_type() == NSFS_MAGIC)
}

/// Takes it away, if it is there.
///
/// # Errors
/// The kernel's.
pub fn remove(path: &Path) -> io::Result<()> {
    while is_there(path) {
        umount2(path, MntFlags::MNT_DETACH)?;
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
