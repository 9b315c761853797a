// SPDX-License-Identifier: Apache-2.0
//! Extended attributes: those of a layer's files, and the marks of the kernel's overlays, which no
//! layer may bring along.

use nix::errno::Errno;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// On a directory that hides what is below.
pub const OPAQUE: &str = "trusted.overlay.opaque";
/// What the kernel's overlays keep for themselves.
const OF_OVERLAYS: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// The way to `name` in a directory that is open; it is not followed if it is a link.
fn way(dir: BorrowedFd, name: &OsStr) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name)
}

fn errno(e: &io::Error) -> Errno {
    Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO))
}

/// # Errors
/// From lsetxattr(2).
pub fn set(dir: BorrowedFd, name: &OsStr, key: &str, value: &[u8]) -> nix::Result<()> {
    xattr::set(way(dir, name), key, value).map_err(|e| errno(&e))
}

/// Sets an attribute of a layer's file, if this file system has its kind and that kind of file may
/// have it.
///
/// # Errors
/// From lsetxattr(2).
pub fn give(dir: BorrowedFd, name: &OsStr, key: &OsStr, value: &[u8]) -> nix::Result<()> {
    let begins = |with: &[u8]| key.as_bytes().starts_with(with);
    if OF_OVERLAYS.iter().any(|with| begins(with)) {
        return Ok(());
    }
    match xattr::set(way(dir, name), key, value).map_err(|e| errno(&e)) {
        // Only files and directories have those (xattr(7)).
        Err(Errno::EPERM) if begins(b"user.") => Ok(()),
        Err(Errno::EOPNOTSUPP) if !begins(b"security.capability") => Ok(()),
        set => set,
    }
}

/// Gives `name` the attributes of `from`.
///
/// # Errors
/// From reading or setting them.
pub fn copy_attributes(from: BorrowedFd, dir: BorrowedFd, name: &OsStr) -> nix::Result<()> {
    let from = way(from, OsStr::new("."));
    let keys = match xattr::list(&from) {
        Err(e) if errno(&e) == Errno::EOPNOTSUPP => return Ok(()),
        keys => keys.map_err(|e| errno(&e))?,
    };
    for key in keys {
        if let Some(value) = xattr::get(&from, &key).map_err(|e| errno(&e))? {
            give(dir, name, &key, &value)?;
        }
    }
    Ok(())
}
