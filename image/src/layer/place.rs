// SPDX-License-Identifier: Apache-2.0
//! Where an entry of a layer is to be, and what is there.

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, ResolveFlag};
use nix::sys::stat::{FileStat, SFlag, fstatat};
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use task::below::open_below;

/// A place for an entry: the directory, open, and the name in it. The root is "." in itself.
pub struct Place {
    pub dir: Rc<OwnedFd>,
    pub name: OsString,
}

/// The directory `path` below `root`.
pub fn find(root: impl AsFd, path: &Path) -> nix::Result<OwnedFd> {
    let path = match path.as_os_str().is_empty() {
        true => Path::new("."),
        false => path,
    };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    open_below(root, path, flags, ResolveFlag::RESOLVE_IN_ROOT)
}

/// What was at an entry's place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum There {
    Nothing,
    Directory,
    /// The mark that hides what the layers below have.
    Whiteout,
}

pub fn stat(place: &Place) -> nix::Result<Option<FileStat>> {
    let name = place.name.as_os_str();
    match fstatat(place.dir.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Err(Errno::ENOENT) => Ok(None),
        found => found.map(Some),
    }
}

pub fn is_directory(stat: &FileStat) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits()
}

pub fn is_whiteout(stat: &FileStat) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFCHR.bits() && stat.st_rdev == 0
}
