// SPDX-License-Identifier: Apache-2.0
//! A layer becomes a directory of an overlay: each entry of its archive at its place, and none
//! outside.
//!
//! Every name is looked up below the directory that is open as the root, where links and `..` lead
//! nowhere else (openat2(2), RESOLVE_IN_ROOT), and the last part of a name is never followed. What is
//! to be hidden of the layers below is marked as the kernel's overlays have it.

use super::attributes::{self, copy_attributes};
use super::dress::{Made, dress, own};
use super::place::{Place, There, find, is_directory, is_whiteout, stat};
use crate::failure::{Result, io, refused};
use crate::tarball::{Archive, Entry};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstatat, makedev, mkdirat,
    mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use tar::EntryType;

/// What the name of an entry begins with that hides one of the layers below, and the name that hides
/// all of a directory there (OCI image spec, layer.md).
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// What AUFS keeps for itself.
const OF_AUFS: &[u8] = b".wh..wh.";
/// The mode of a directory that no layer describes.
const IMPLIED: u32 = 0o755;

pub struct Tree {
    root: OwnedFd,
    /// The layers below, the uppermost first.
    lower: Vec<OwnedFd>,
    /// The directory that was asked for last.
    last: Option<(PathBuf, Rc<OwnedFd>)>,
    /// Of directories, to be set when nothing is put into them any more.
    times: Vec<(PathBuf, TimeSpec)>,
    /// It hides all of the layers below.
    covers: bool,
}

impl Tree {
    /// An empty layer in the directory `root`, above `lower`.
    ///
    /// # Errors
    /// From opening them.
    pub fn new(root: &Path, lower: &[PathBuf]) -> Result<Self> {
        let open = |path: &Path| {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            open(path, flags, Mode::empty()).map_err(io(path.display()))
        };
        let tree = Self {
            root: open(root)?,
            lower: lower
                .iter()
                .rev()
                .map(|path| open(path))
                .collect::<Result<_>>()?,
            last: None,
            times: Vec::new(),
            covers: false,
        };
        let mut like = tree.lower.iter();
        match like
            .next()
            .map(|fd| fstatat(fd, "", AtFlags::AT_EMPTY_PATH))
        {
            Some(Ok(of)) => tree.imply(&tree.at_root()?, Some((of, 0)), Path::new(".")),
            _ => tree.imply(&tree.at_root()?, None, Path::new(".")),
        }?;
        Ok(tree)
    }

    /// Puts every entry of `archive` in its place.
    ///
    /// # Errors
    /// What names the entry that can't be.
    pub fn fill<R: Read>(&mut self, archive: &mut Archive<R>) -> Result<()> {
        while let Some(entry) = archive.next().map_err(io("layer"))? {
            let added = self.add(&entry, archive);
            added.map_err(|e| e.of(&"layer"))?;
        }
        for (path, time) in std::mem::take(&mut self.times) {
            self.set_time(&path, time)?;
        }
        Ok(())
    }

    /// Whether it hides all of the layers below.
    pub fn covers(&self) -> bool {
        self.covers
    }

    fn add<R: Read>(&mut self, entry: &Entry, archive: &mut Archive<R>) -> Result<()> {
        let shown = entry.shown();
        let path =
            inside(&entry.path).ok_or_else(|| refused(&shown, "it leads out of the root"))?;
        if path.iter().any(is_of_aufs) {
            return match path.file_name().map(OsStr::as_bytes) {
                Some(OPAQUE) => self.make_opaque(path.parent().unwrap_or(Path::new(""))),
                _ => Ok(()),
            };
        }
        let name = path.file_name().unwrap_or_default().as_bytes();
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            if [&b""[..], b".", b".."].contains(&hidden) {
                return Err(refused(&shown, "it hides nothing that has a name"));
            }
            return self.hide(&path.with_file_name(OsStr::from_bytes(hidden)));
        }
        let place = self.place(&path)?;
        self.make(entry, &path, &place, archive)
            .map_err(|e| match e {
                Made::Errno(e) => io(&shown)(e),
                Made::Failure(e) => e,
            })
    }

    fn make<R: Read>(
        &mut self,
        entry: &Entry,
        path: &Path,
        place: &Place,
        archive: &mut Archive<R>,
    ) -> std::result::Result<(), Made> {
        let (dir, name) = (place.dir.as_fd(), place.name.as_os_str());
        let is_root = path.as_os_str().is_empty();
        if is_root && entry.kind != EntryType::Directory {
            return Err(refused(entry.shown(), "the root is a directory").into());
        }
        let there = self.clear(place, entry.kind == EntryType::Directory)?;
        let special = |kind: SFlag| {
            let (major, minor) = entry.device;
            let device = makedev(u64::from(major), u64::from(minor));
            mknodat(dir, name, kind, Mode::from_bits_truncate(0o600), device)
        };
        match entry.kind {
            EntryType::Directory => {
                if there == There::Nothing || there == There::Whiteout {
                    mkdirat(dir, name, Mode::S_IRWXU)?;
                }
                if there == There::Whiteout {
                    attributes::set(dir, name, attributes::OPAQUE, b"y")?;
                }
                self.times.push((path.to_owned(), entry.mtime));
            }
            EntryType::Regular | EntryType::Continuous => {
                let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
                let file = openat(
                    dir,
                    name,
                    flags | OFlag::O_NOFOLLOW,
                    Mode::from_bits_truncate(0o600),
                )?;
                let copied = std::io::copy(&mut archive.data(), &mut File::from(file));
                copied.map_err(io(entry.shown()))?;
            }
            EntryType::Link => {
                let to = inside(&entry.link).filter(|to| to.file_name().is_some());
                let refuse = || refused(entry.shown(), "a hard link that leads out of the root");
                let to = self.existing(&to.ok_or_else(refuse)?, &entry.shown())?;
                linkat(&*to.dir, to.name.as_os_str(), dir, name, AtFlags::empty())?;
                // It has what the other has.
                return Ok(());
            }
            EntryType::Symlink => {
                symlinkat(OsStr::from_bytes(&entry.link), dir, name)?;
            }
            EntryType::Char => special(SFlag::S_IFCHR)?,
            EntryType::Block => special(SFlag::S_IFBLK)?,
            EntryType::Fifo => special(SFlag::S_IFIFO)?,
            other => {
                let why = format!("an entry of the type {other:?} is not supported");
                return Err(refused(entry.shown(), why).into());
            }
        }
        dress(entry, place)
    }

    /// Takes away what an entry replaces: all but a directory that another describes anew.
    fn clear(&mut self, place: &Place, by_directory: bool) -> nix::Result<There> {
        let (dir, name) = (place.dir.as_fd(), place.name.as_os_str());
        let Some(there) = stat(place)? else {
            return Ok(There::Nothing);
        };
        let kind = SFlag::from_bits_truncate(there.st_mode & SFlag::S_IFMT.bits());
        if kind == SFlag::S_IFDIR && by_directory {
            return Ok(There::Directory);
        }
        // A directory that is open may be among what goes.
        self.last = None;
        if kind == SFlag::S_IFDIR {
            let way = format!("/proc/self/fd/{}", dir.as_raw_fd());
            let removed = std::fs::remove_dir_all(Path::new(&way).join(name));
            removed.map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))?;
        } else {
            unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)?;
        }
        Ok(match is_whiteout(&there) {
            true => There::Whiteout,
            false => There::Nothing,
        })
    }

    /// Hides what the layers below have at `path`; what this one has there stays.
    fn hide(&mut self, path: &Path) -> Result<()> {
        let place = self.place(path)?;
        let (dir, name) = (place.dir.as_fd(), place.name.as_os_str());
        let failed = |e: Errno| io(path.display())(e);
        match stat(&place).map_err(failed)? {
            None => mknodat(dir, name, SFlag::S_IFCHR, Mode::empty(), 0).map_err(failed),
            Some(there) if is_directory(&there) => {
                attributes::set(dir, name, attributes::OPAQUE, b"y").map_err(failed)
            }
            Some(_) => Ok(()),
        }
    }

    /// Hides all that the layers below have in the directory `path`.
    fn make_opaque(&mut self, path: &Path) -> Result<()> {
        if path.as_os_str().is_empty() {
            // The kernel looks for no such mark there.
            self.covers = true;
            return Ok(());
        }
        let dir = self.directory(path)?;
        attributes::set(dir.as_fd(), OsStr::new("."), attributes::OPAQUE, b"y")
            .map_err(io(path.display()))
    }

    fn at_root(&self) -> Result<Place> {
        Ok(Place {
            dir: Rc::new(self.root.try_clone().map_err(io("layer"))?),
            name: ".".into(),
        })
    }

    /// Where `path` is to be: its directory is made if it is not there.
    fn place(&mut self, path: &Path) -> Result<Place> {
        let Some(name) = path.file_name() else {
            return self.at_root();
        };
        Ok(Place {
            dir: self.directory(path.parent().unwrap_or(Path::new("")))?,
            name: name.to_owned(),
        })
    }

    /// What a hard link is to, of which nothing is made.
    fn existing(&self, path: &Path, shown: &str) -> Result<Place> {
        let dir = path.parent().unwrap_or(Path::new(""));
        let found = self.look_up(dir);
        let dir = found.map_err(io(format!("{shown}: hard link to {}", path.display())))?;
        Ok(Place {
            dir: Rc::new(dir),
            name: path.file_name().unwrap_or_default().to_owned(),
        })
    }

    fn look_up(&self, path: &Path) -> nix::Result<OwnedFd> {
        find(self.root.as_fd(), path)
    }

    fn directory(&mut self, path: &Path) -> Result<Rc<OwnedFd>> {
        if let Some((last, dir)) = &self.last
            && last == path
        {
            return Ok(Rc::clone(dir));
        }
        let failed = |e: Errno| io(path.display())(e);
        let dir = match self.look_up(path) {
            Err(Errno::ENOENT) if path.file_name().is_some() => {
                let place = self.place(path)?;
                let made = mkdirat(place.dir.as_fd(), place.name.as_os_str(), Mode::S_IRWXU);
                match made {
                    Ok(()) => {
                        let like = self.below(path);
                        self.imply(&place, like, path)?;
                    }
                    // Of AUFS's kind or a link: neither has anything in it.
                    Err(Errno::EEXIST) => {
                        return Err(refused(
                            path.display(),
                            "no directory, but something is in it",
                        ));
                    }
                    Err(e) => return Err(failed(e)),
                }
                self.look_up(path).map_err(failed)?
            }
            Err(Errno::ENOTDIR) => {
                return Err(refused(
                    path.display(),
                    "no directory, but something is in it",
                ));
            }
            found => found.map_err(failed)?,
        };
        let dir = Rc::new(dir);
        self.last = Some((path.to_owned(), Rc::clone(&dir)));
        Ok(dir)
    }

    /// What the uppermost layer below says of a directory that this one does not describe, and the
    /// number of that layer.
    fn below(&self, path: &Path) -> Option<(FileStat, usize)> {
        for (at, layer) in self.lower.iter().enumerate() {
            match find(layer.as_fd(), path) {
                Ok(dir) => return Some((fstatat(&dir, "", AtFlags::AT_EMPTY_PATH).ok()?, at)),
                Err(Errno::ENOENT) => {}
                // There it is something else.
                Err(_) => return None,
            }
        }
        None
    }

    /// Makes a directory that only has something in it `like` the one below, or as usual.
    fn imply(&self, place: &Place, like: Option<(FileStat, usize)>, path: &Path) -> Result<()> {
        let (dir, name) = (place.dir.as_fd(), place.name.as_os_str());
        let dressed = || {
            let Some((stat, layer)) = like else {
                let mode = Mode::from_bits_truncate(IMPLIED);
                return fchmodat(dir, name, mode, FchmodatFlags::FollowSymlink);
            };
            own(dir, name, stat.st_uid, stat.st_gid)?;
            if let Ok(from) = find(self.lower[layer].as_fd(), path) {
                copy_attributes(from.as_fd(), dir, name)?;
            }
            let mode = Mode::from_bits_truncate(stat.st_mode & 0o7777);
            fchmodat(dir, name, mode, FchmodatFlags::FollowSymlink)
        };
        dressed().map_err(io(path.display()))
    }

    fn set_time(&mut self, path: &Path, time: TimeSpec) -> Result<()> {
        let place = self.place(path)?;
        let set = || match stat(&place)? {
            Some(there) if is_directory(&there) => {
                let (dir, name) = (place.dir.as_fd(), place.name.as_os_str());
                utimensat(dir, name, &time, &time, UtimensatFlags::NoFollowSymlink)
            }
            // A later entry has taken its place.
            _ => Ok(()),
        };
        set().map_err(io(path.display()))
    }
}

fn is_of_aufs(part: &OsStr) -> bool {
    part.as_bytes().starts_with(OF_AUFS)
}

/// A name without `.`, and relative to the root; none that has `..`.
pub fn inside(name: &[u8]) -> Option<PathBuf> {
    let mut path = PathBuf::new();
    for part in Path::new(&OsString::from_vec(name.to_vec())).components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::ParentDir => return None,
            _ => {}
        }
    }
    Some(path)
}

#[cfg(test)]
mod tests;
