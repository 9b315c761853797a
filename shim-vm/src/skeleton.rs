// SPDX-License-Identifier: Apache-2.0
//! A directory of mount points, by its fd: they are made in it, mounted on and taken away, and no
//! name in it leads anywhere else, whoever put it there.

use nix::errno::Errno;
use nix::fcntl::{OFlag, ResolveFlag, open, openat};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use task::below::{open_below, single};
use task::rootfs::followed;

const PATH: OFlag = OFlag::O_PATH
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);
const DIRECTORY: Mode = Mode::from_bits_truncate(0o755);
const FILE: Mode = Mode::from_bits_truncate(0o600);

pub struct Skeleton(OwnedFd);

impl From<OwnedFd> for Skeleton {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for Skeleton {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Skeleton {
    /// The directory at `path`, which only we can change.
    ///
    /// # Errors
    /// From open(2).
    pub fn open(path: &Path) -> nix::Result<Self> {
        open(path, PATH | OFlag::O_DIRECTORY, Mode::empty()).map(Self)
    }

    /// The directory `name` in it.
    ///
    /// # Errors
    /// If there is none, something is mounted there, or it is a link.
    pub fn dir(&self, name: &str) -> io::Result<Self> {
        Ok(Self(self.opened(name, PATH | OFlag::O_DIRECTORY)?))
    }

    /// [`Self::dir`], which is made if it is not there.
    ///
    /// # Errors
    /// As there, and from mkdir(2).
    pub fn make_dir(&self, name: &str) -> io::Result<Self> {
        match mkdirat(&self.0, single(name)?, DIRECTORY) {
            Ok(()) | Err(Errno::EEXIST) => self.dir(name),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Gives the directory `name` in it these bits, beside those of who may do what.
    ///
    /// # Errors
    /// From fchmodat(2).
    pub fn mark(&self, name: &str, bits: u32) -> io::Result<()> {
        let mode = DIRECTORY | Mode::from_bits_truncate(bits);
        let flags = FchmodatFlags::FollowSymlink;
        Ok(fchmodat(&self.0, single(name)?, mode, flags)?)
    }

    /// A new empty file `name` in it, to mount on.
    ///
    /// # Errors
    /// If there is something of this name, or from open(2).
    pub fn make_file(&self, name: &str) -> io::Result<Self> {
        let new = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        drop(openat(&self.0, single(name)?, new, FILE)?);
        Ok(Self(self.opened(name, PATH)?))
    }

    fn opened(&self, name: &str, flags: OFlag) -> io::Result<OwnedFd> {
        let way = ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_XDEV;
        match open_below(&self.0, single(name)?, flags, way) {
            Err(Errno::ENOSYS) => Err(io::Error::other("openat2(2) is missing: Linux 5.10 has it")),
            opened => Ok(opened?),
        }
    }

    /// Takes away what is `name` in it: all that is mounted there, one on the other, and then the
    /// mount point, which must be empty. Nothing may be there.
    ///
    /// # Errors
    /// If something stays.
    pub fn clear(&self, name: &str) -> io::Result<()> {
        let name = single(name)?;
        // Only the way to its directory is followed, which is open.
        let point = followed(self.as_fd()).join(name);
        loop {
            match umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) => {}
                // Not, or no longer, a mount; or one that is not ours, and will not be removed.
                Err(Errno::EINVAL | Errno::ENOENT | Errno::EPERM) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        let removed = match unlinkat(&self.0, name, UnlinkatFlags::RemoveDir) {
            Err(Errno::ENOTDIR) => unlinkat(&self.0, name, UnlinkatFlags::NoRemoveDir),
            other => other,
        };
        match removed {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The names in it that can be ours.
    ///
    /// # Errors
    /// From opendir(3).
    pub fn names(&self) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(followed(self.as_fd()))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names.collect())
    }

    /// [`Self::clear`]s every name in it.
    ///
    /// # Errors
    /// The first thing that stays, by its name; all others are gone.
    pub fn clear_all(&self) -> io::Result<()> {
        let mut stays = Ok(());
        for entry in fs::read_dir(followed(self.as_fd()))? {
            let name = entry?.file_name();
            let cleared = match name.to_str() {
                Some(name) => self.clear(name),
                None => Err(io::Error::other("no name of ours")),
            };
            if let Err(e) = cleared {
                let named = format!("{} stays: {e}", name.display());
                stays = stays.and(Err(io::Error::new(e.kind(), named)));
            }
        }
        stays
    }
}

/// Takes away what is `inside` of the directory `name`, and that; it may not be there.
pub fn clear(at: &Skeleton, name: &str, inside: &str) {
    match at.dir(name) {
        Ok(dir) => say(&format!("{name}/{inside}"), dir.clear(inside)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return,
        Err(e) => say(name, Err(e)),
    }
    say(name, at.clear(name));
}

/// What could not be taken away is left as it is.
pub fn say(name: &str, cleared: io::Result<()>) {
    if let Err(e) = cleared {
        log::warn!("share: {name} stays: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::mount::{MsFlags, mount};
    use std::os::unix::fs::symlink;

    /// A skeleton, beside a directory with a file of the host's.
    fn scratch() -> (tempfile::TempDir, Skeleton) {
        let dir = tempfile::tempdir().unwrap();
        for name in ["skeleton", "host"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("host/canary"), "alive").unwrap();
        let skeleton = Skeleton::open(&dir.path().join("skeleton")).unwrap();
        (dir, skeleton)
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused_and_links_taken_away_alone() {
        let (dir, skeleton) = scratch();
        let host = dir.path().join("host");
        for name in ["", ".", "..", "/", "/etc", "a/b", "a/", "../host"] {
            assert!(skeleton.make_dir(name).is_err(), "{name:?}");
            assert!(skeleton.make_file(name).is_err(), "{name:?}");
            assert!(skeleton.clear(name).is_err(), "{name:?}");
        }
        symlink(&host, dir.path().join("skeleton/link")).unwrap();
        symlink(host.join("canary"), dir.path().join("skeleton/file")).unwrap();
        assert!(skeleton.make_dir("link").is_err());
        assert!(skeleton.dir("link").is_err());
        assert!(skeleton.make_file("file").is_err());
        skeleton.clear_all().unwrap();
        assert_eq!(fs::read_to_string(host.join("canary")).unwrap(), "alive");
        assert_eq!(
            fs::read_dir(dir.path().join("skeleton")).unwrap().count(),
            0
        );
        skeleton.clear("missing").unwrap();
    }

    /// What is in a directory that was to be empty stays, and is named; never is a mount emptied.
    #[test]
    fn mounts_are_unmounted_and_what_is_full_stays() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: mounting needs root");
            return;
        }
        let (dir, skeleton) = scratch();
        let host = dir.path().join("host");
        let point = dir.path().join("skeleton/mounted");
        skeleton.make_dir("mounted").unwrap();
        for _ in 0..2 {
            let flags = MsFlags::MS_BIND;
            mount(Some(&host), &point, None::<&str>, flags, None::<&str>).unwrap();
        }
        assert!(
            skeleton.dir("mounted").is_err(),
            "not what is mounted there"
        );
        let full = skeleton.make_dir("full").unwrap();
        drop(full.make_file("inside").unwrap());
        drop(skeleton.make_file("file").unwrap());
        let stays = skeleton.clear_all().unwrap_err().to_string();
        assert!(stays.starts_with("full stays: "), "{stays}");
        assert!(!point.exists());
        assert!(dir.path().join("skeleton/full/inside").exists());
        assert!(!dir.path().join("skeleton/file").exists());
        assert_eq!(fs::read_to_string(host.join("canary")).unwrap(), "alive");
    }
}
