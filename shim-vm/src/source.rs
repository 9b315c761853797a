// SPDX-License-Identifier: Apache-2.0
//! Where a volume comes from: what is found at its path is what is checked, known again and mounted.

use crate::config::Config;
use nix::errno::Errno;
use nix::fcntl::{OFlag, ResolveFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use task::below::open_below;
use task::rootfs::followed;

const PATH: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);

/// Device and inode.
pub type Identity = (u64, u64);

pub struct Source {
    fd: OwnedFd,
    pub identity: Identity,
    pub is_dir: bool,
}

impl Source {
    /// The directory or file at `path`, as the host has it. Links on the way are followed, as every
    /// runtime does; but in one of `writable`, the volumes whose names the guest may change, none
    /// leads out of it.
    ///
    /// # Errors
    /// If it is neither, or from open(2).
    pub fn open(path: &Path, writable: &[Identity]) -> io::Result<Self> {
        let fd = Self::open_any(path, writable)?;
        let found = fstat(&fd)?;
        let kind = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT;
        match kind {
            SFlag::S_IFDIR | SFlag::S_IFREG => Ok(Self {
                fd,
                identity: (found.st_dev, found.st_ino),
                is_dir: kind == SFlag::S_IFDIR,
            }),
            SFlag::S_IFSOCK => {
                let file = Config::file();
                let why = format!("a socket, which `sockets` of {} must allow", file.display());
                Err(io::Error::other(why))
            }
            _ => {
                let why = "neither a directory nor a file: a VM can't share it";
                Err(io::Error::other(why))
            }
        }
    }

    /// The same of whatever is there.
    ///
    /// # Errors
    /// From open(2).
    pub fn open_any(path: &Path, writable: &[Identity]) -> io::Result<OwnedFd> {
        Ok(match outermost(path, writable)? {
            Some((volume, below)) => {
                match open_below(volume, below, PATH, ResolveFlag::RESOLVE_BENEATH) {
                    Err(Errno::EXDEV) => {
                        let why = "a link in a volume that the VM may write to leads out of it";
                        return Err(io::Error::other(why));
                    }
                    found => found?,
                }
            }
            None => open(path, PATH, Mode::empty())?,
        })
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// A path that leads to it as long as this is, and nowhere else.
    pub fn path(&self) -> PathBuf {
        followed(self.fd.as_fd())
    }
}

/// The first of `writable` on the way of `path`, and the rest of it: until there nobody but the host
/// changes names.
pub fn outermost<'a>(
    path: &'a Path,
    writable: &[Identity],
) -> io::Result<Option<(OwnedFd, &'a Path)>> {
    if writable.is_empty() {
        return Ok(None);
    }
    let above: Vec<&Path> = path.ancestors().skip(1).collect();
    for dir in above.into_iter().rev() {
        let fd = open(dir, PATH, Mode::empty())?;
        let found = fstat(&fd)?;
        if writable.contains(&(found.st_dev, found.st_ino)) {
            return Ok(path.strip_prefix(dir).ok().map(|below| (fd, below)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_was_found_is_what_is_mounted_whatever_the_name_becomes() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("volume")).unwrap();
        fs::write(at("volume/mine"), "").unwrap();
        fs::create_dir(at("host")).unwrap();
        symlink("volume", at("link")).unwrap();
        let source = Source::open(&at("link"), &[]).unwrap();
        assert!(source.is_dir, "a link is followed");
        fs::rename(at("volume"), at("moved")).unwrap();
        symlink("host", at("volume")).unwrap();
        assert!(source.path().join("mine").exists());
        let other = Source::open(&at("link"), &[]).unwrap();
        assert_ne!(other.identity, source.identity);
        for odd in [Path::new("/dev/null"), &at("missing")] {
            assert!(Source::open(odd, &[]).is_err(), "{}", odd.display());
        }
    }

    #[test]
    fn a_link_of_the_guests_leads_not_out_of_its_volume() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("volume/real/deep")).unwrap();
        fs::create_dir_all(at("host/deep")).unwrap();
        symlink("real", at("volume/inside")).unwrap();
        symlink("../host", at("volume/relative")).unwrap();
        symlink(at("host"), at("volume/absolute")).unwrap();
        symlink("volume", at("alias")).unwrap();
        let writable = ["volume", "volume/real"].map(|name| {
            let found = Source::open(&at(name), &[]).unwrap();
            found.identity
        });
        let open = |name: &str| Source::open(&at(name), &writable).map(drop);
        open("volume").unwrap();
        open("volume/real/deep").unwrap();
        open("volume/inside/deep").unwrap();
        for out in [
            "volume/relative",
            "volume/relative/deep",
            "volume/absolute/deep",
            "alias/absolute/deep",
            "volume/real/../relative",
        ] {
            let why = open(out).unwrap_err().to_string();
            assert!(why.ends_with("leads out of it"), "{out}: {why}");
        }
        Source::open(&at("volume/relative"), &[]).unwrap();
    }
}
