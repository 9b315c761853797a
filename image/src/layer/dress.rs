// SPDX-License-Identifier: Apache-2.0
//! What an entry says of itself, beside its data: whose it is, and what may be done with it.

use super::attributes;
use super::place::Place;
use crate::failure::Failure;
use crate::tarball::Entry;
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmodat, utimensat};
use nix::unistd::{Gid, Uid, fchownat};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use tar::EntryType;

/// Owner, attributes, mode and time; in this order, for each may take away what comes after.
pub fn dress(entry: &Entry, place: &Place) -> std::result::Result<(), Made> {
    let (dir, name) = (place.dir.as_fd(), place.name.as_os_str());
    own(dir, name, entry.uid, entry.gid)?;
    for (key, value) in &entry.xattrs {
        attributes::give(dir, name, OsStr::from_bytes(key), value)?;
    }
    if entry.kind != EntryType::Symlink {
        let mode = Mode::from_bits_truncate(entry.mode);
        fchmodat(dir, name, mode, FchmodatFlags::FollowSymlink)?;
    }
    if entry.kind != EntryType::Directory {
        let time = &entry.mtime;
        utimensat(dir, name, time, time, UtimensatFlags::NoFollowSymlink)?;
    }
    Ok(())
}

/// Changes the owner of what is `name` in `dir`, be it a link.
///
/// # Errors
/// From fchownat(2).
pub fn own(dir: BorrowedFd<'_>, name: &OsStr, uid: u32, gid: u32) -> nix::Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    fchownat(dir, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)
}

/// Why an entry could not be made.
pub enum Made {
    Errno(Errno),
    Failure(Failure),
}

impl From<Errno> for Made {
    fn from(e: Errno) -> Self {
        Self::Errno(e)
    }
}

impl From<Failure> for Made {
    fn from(e: Failure) -> Self {
        Self::Failure(e)
    }
}
