// SPDX-License-Identifier: Apache-2.0
//! A tree of files that no path leads out of: neither `..` nor a link, whoever changes it meanwhile.

use nix::errno::Errno;
use nix::fcntl::{OFlag, ResolveFlag, readlinkat};
use nix::sys::stat::{FileStat, SFlag, fstat};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use task::below::open_below;

/// How many links one may lead through, as the kernel has it (path_resolution(7)).
const LINKS: usize = 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File,
    Link,
    Other,
}

pub fn kind_of(stat: &FileStat) -> Kind {
    match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFDIR => Kind::Directory,
        SFlag::S_IFREG => Kind::File,
        SFlag::S_IFLNK => Kind::Link,
        _ => Kind::Other,
    }
}

pub struct Place {
    root: OwnedFd,
}

impl Place {
    /// All that there is.
    ///
    /// # Errors
    /// From open(2).
    pub fn host() -> io::Result<Self> {
        Self::directory(Path::new("/"))
    }

    /// # Errors
    /// From open(2).
    pub fn directory(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty())?;
        Ok(Self { root })
    }

    /// What a process sees.
    ///
    /// # Errors
    /// From open(2).
    pub fn of_process(pid: u32) -> io::Result<Self> {
        Self::directory(Path::new(&format!("/proc/{pid}/root")))
    }

    /// Opens what is there.
    ///
    /// # Errors
    /// From openat2(2).
    pub fn open(&self, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        open_in(self.root.as_fd(), path, flags, ResolveFlag::RESOLVE_IN_ROOT)
    }

    /// # Errors
    /// From openat2(2).
    pub fn open_directory(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open(path, OFlag::O_PATH | OFlag::O_DIRECTORY)
    }

    /// What is there, if anything is.
    ///
    /// # Errors
    /// From openat2(2).
    pub fn kind(&self, path: &Path, follow: bool) -> io::Result<Option<Kind>> {
        let mut flags = OFlag::O_PATH;
        flags.set(OFlag::O_NOFOLLOW, !follow);
        match self.open(path, flags) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => Ok(Some(kind_of(&fstat(&opened?)?))),
        }
    }

    /// The path where a link leads in the end, which need not be there.
    ///
    /// # Errors
    /// From openat2(2), or if there are too many.
    pub fn end_of_links(&self, path: &Path) -> io::Result<PathBuf> {
        let mut path = path.to_owned();
        for _ in 0..LINKS {
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
            let link = match self.open(&path, flags) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(path),
                opened => opened?,
            };
            if kind_of(&fstat(&link)?) != Kind::Link {
                return Ok(path);
            }
            let to = target_of(&link)?;
            path = path.parent().unwrap_or(Path::new("/")).join(to);
        }
        Err(Errno::ELOOP.into())
    }
}

/// Opens what is at `path` below `dir`, by these rules.
///
/// # Errors
/// From openat2(2).
pub fn open_in(
    dir: BorrowedFd<'_>,
    path: &Path,
    flags: OFlag,
    rules: ResolveFlag,
) -> io::Result<OwnedFd> {
    Ok(open_below(dir, path, flags, rules)?)
}

/// Where an open link leads.
///
/// # Errors
/// From readlinkat(2).
pub fn target_of(link: &OwnedFd) -> io::Result<OsString> {
    Ok(readlinkat(link, "")?)
}
