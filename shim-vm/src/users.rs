// SPDX-License-Identifier: Apache-2.0
//! The users that VMs run as: each is one VM's, whichever shim's it is, for as long as that lives.
//!
//! A user is taken by a lock on the byte of its number in a file that all shims of the machine
//! have: the kernel lets go of it when the shim ends, however it does.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use task::handover::Kept;

const LOCKS: &str = "/run/dunnage/users";

/// A user, and the group of the same number, that nobody else has.
#[derive(Debug)]
pub struct User {
    pub id: u32,
    /// Locked until it is closed.
    lock: File,
}

/// A user, for another process image.
#[derive(Debug, Serialize, Deserialize)]
pub struct Moved {
    id: u32,
    lock: i32,
}

impl User {
    /// Describes it for another process image.
    ///
    /// # Errors
    /// If no fd is free.
    pub fn hand_over(&self, kept: &mut Kept) -> io::Result<Moved> {
        let lock = kept.keep(&self.lock)?;
        Ok(Moved { id: self.id, lock })
    }

    /// Goes on with that of another process image.
    ///
    /// # Errors
    /// If nothing is open there.
    pub fn take_over(moved: &Moved) -> io::Result<Self> {
        let lock = task::sys::adopt(moved.lock)?.into();
        Ok(Self { id: moved.id, lock })
    }
}

/// Takes one of the `count` users from `first` on.
///
/// # Errors
/// If all are taken, or the locks can't be had.
pub fn take(first: u32, count: u32) -> Result<User, String> {
    take_at(Path::new(LOCKS), first, count)
}

fn take_at(locks: &Path, first: u32, count: u32) -> Result<User, String> {
    let failed = |e: io::Error| format!("{}: {e}", locks.display());
    let mut options = File::options();
    let file = options.read(true).write(true).create(true).truncate(false);
    let file = file.mode(0o600).open(locks).map_err(failed)?;
    // Each shim begins somewhere else, so that it seldom meets another's.
    let begin = std::process::id() % count.max(1);
    for n in 0..count {
        let id = first + (begin + n) % count;
        match lock(&file, id) {
            Ok(()) => return Ok(User { id, lock: file }),
            Err(Errno::EAGAIN | Errno::EACCES) => {}
            Err(e) => return Err(failed(e.into())),
        }
    }
    Err(format!("all {count} users from {first} on have a VM"))
}

/// Locks byte `id`, without waiting, for as long as `file` is open (fcntl(2), F_OFD_SETLK).
fn lock(file: &File, id: u32) -> nix::Result<()> {
    let byte = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: id.into(),
        l_len: 1,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&byte)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_user_is_taken_twice_and_each_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let locks = dir.path().join("users");
        let take = || take_at(&locks, 1000, 3);
        let taken = [take().unwrap(), take().unwrap(), take().unwrap()];
        let mut ids = taken.each_ref().map(|user| user.id);
        ids.sort_unstable();
        assert_eq!(ids, [1000, 1001, 1002]);
        let why = take().unwrap_err();
        assert!(why.contains("all 3 users from 1000 on"), "{why}");
        let [one, ..] = taken;
        let id = one.id;
        drop(one);
        assert_eq!(take().unwrap().id, id);
    }
}
