// SPDX-License-Identifier: Apache-2.0
//! What a tar stream has, as files: on the host below one directory, in a container below its root.

use super::place::{Kind, Place, kind_of, open_in};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, ResolveFlag, openat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, UtimensatFlags};
use nix::sys::stat::{fchmod, fchmodat, fstatat, futimens, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use tar::{Archive, Entry, EntryType};

/// Where it goes.
pub struct Target {
    base: Base,
    /// As the stream says, or whoever extracts.
    keeps_owners: bool,
}

enum Base {
    /// Links in a container lead somewhere in it.
    Container(Place, PathBuf),
    /// Links that a stream has made lead nobody out of the directory: none is gone through.
    Host(OwnedFd),
}

impl Target {
    pub fn container(place: Place, dir: PathBuf, keeps_owners: bool) -> Self {
        Self {
            base: Base::Container(place, dir),
            keeps_owners,
        }
    }

    pub fn host(dir: OwnedFd, keeps_owners: bool) -> Self {
        Self {
            base: Base::Host(dir),
            keeps_owners,
        }
    }

    /// Extracts all. With a name, the first part of each path is that instead.
    ///
    /// # Errors
    /// A text that names what could not be; what is no file, as a device, is left out and told at the
    /// end.
    pub fn extract(&self, from: impl Read, name: Option<&Path>) -> Result<(), String> {
        let mut archive = Archive::new(from);
        let entries = archive.entries().map_err(|e| format!("tar: {e}"))?;
        let mut directories = Vec::new();
        let mut left_out = None;
        for entry in entries {
            let mut entry = entry.map_err(|e| format!("tar: {e}"))?;
            let path = entry.path().map_err(|e| format!("tar: {e}"))?.into_owned();
            let failed = |e: io::Error| format!("{}: {e}", path.display());
            let path = placed(&path, name).ok_or_else(|| failed(Errno::EINVAL.into()))?;
            let done = self.put(&mut entry, &path, name);
            match done.map_err(|e| format!("{}: {e}", path.display()))? {
                Put::Directory => directories.push((path, Look::of(&entry)?)),
                Put::Done => {}
                Put::LeftOut => left_out = Some(path),
            }
        }
        // Who writes it fills its last block up, and is to come to its end.
        io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(|e| format!("tar: {e}"))?;
        // Last: what is put in them changes their time.
        for (path, look) in directories.iter().rev() {
            self.finish(path, look)
                .map_err(|e| format!("{}: {e}", path.display()))?;
        }
        match left_out {
            Some(path) => Err(format!("{}: a device is not copied", path.display())),
            None => Ok(()),
        }
    }

    /// The directory that has `path`, and its name there.
    fn parent<'a>(&self, path: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
        let name = path.file_name().ok_or(Errno::EEXIST)?;
        let parent = path.parent().unwrap_or(Path::new(""));
        Ok((self.directory(parent)?, name))
    }

    fn directory(&self, path: &Path) -> io::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        match &self.base {
            Base::Container(place, dir) => place.open(&dir.join(path), flags),
            Base::Host(dir) if path.as_os_str().is_empty() => Ok(dir.try_clone()?),
            Base::Host(dir) => {
                let rules = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
                open_in(dir.as_fd(), path, flags, rules)
            }
        }
    }

    /// What a hard link is another name of.
    fn other_name(&self, path: &Path) -> io::Result<OwnedFd> {
        let (dir, name) = self.parent(path)?;
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
        open_in(
            dir.as_fd(),
            Path::new(name),
            flags,
            ResolveFlag::RESOLVE_BENEATH,
        )
    }

    fn put(
        &self,
        entry: &mut Entry<'_, impl Read>,
        path: &Path,
        name: Option<&Path>,
    ) -> io::Result<Put> {
        let kind = entry.header().entry_type();
        if kind.is_dir() {
            return self.make_directory(path).map(|()| Put::Directory);
        }
        let look = Look::of(entry).map_err(io::Error::other)?;
        let (dir, at) = self.parent(path)?;
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let mut file = File::from(new_file(&dir, at)?);
                io::copy(entry, &mut file)?;
                self.dress(&dir, at, &look)?;
                fchmod(&file, self.mode(&look))?;
                futimens(&file, &look.time, &look.time)?;
            }
            EntryType::Symlink => {
                let to = entry.link_name()?.ok_or(Errno::EINVAL)?;
                clear(&dir, at)?;
                symlinkat(&*to, &dir, at)?;
                self.dress(&dir, at, &look)?;
                let flags = UtimensatFlags::NoFollowSymlink;
                utimensat(&dir, at, &look.time, &look.time, flags)?;
            }
            EntryType::Link => {
                let to = entry.link_name()?.ok_or(Errno::EINVAL)?;
                let to = self.other_name(&placed(&to, name).ok_or(Errno::EINVAL)?)?;
                clear(&dir, at)?;
                let to = format!("/proc/self/fd/{}", to.as_raw_fd());
                let follow = AtFlags::AT_SYMLINK_FOLLOW;
                linkat(nix::fcntl::AT_FDCWD, to.as_str(), &dir, at, follow)?;
            }
            EntryType::Fifo => {
                clear(&dir, at)?;
                mknodat(&dir, at, SFlag::S_IFIFO, self.mode(&look), 0)?;
                self.dress(&dir, at, &look)?;
            }
            // Extensions of the format.
            kind if !matches!(kind, EntryType::Char | EntryType::Block) => {}
            _ => return Ok(Put::LeftOut),
        }
        Ok(Put::Done)
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        let (dir, name) = self.parent(path)?;
        match mkdirat(&dir, name, Mode::S_IRWXU) {
            // One that is there, or in a container a link to one.
            Err(Errno::EEXIST) => self.directory(path).map(drop),
            made => Ok(made?),
        }
    }

    fn finish(&self, path: &Path, look: &Look) -> io::Result<()> {
        // What is copied into a directory leaves that as it is.
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        let (dir, name) = self.parent(path)?;
        let stat = fstatat(&dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if kind_of(&stat) != Kind::Directory {
            return Ok(());
        }
        self.dress(&dir, name, look)?;
        fchmodat(&dir, name, self.mode(look), FchmodatFlags::FollowSymlink)?;
        let flags = UtimensatFlags::NoFollowSymlink;
        Ok(utimensat(&dir, name, &look.time, &look.time, flags)?)
    }

    /// Gives it an owner: in a container that is its root, on the host who copies.
    fn dress(&self, dir: &OwnedFd, name: &OsStr, look: &Look) -> io::Result<()> {
        let (uid, gid) = match (self.keeps_owners, &self.base) {
            (true, _) => (look.uid, look.gid),
            (false, Base::Container(..)) => (0, 0),
            (false, Base::Host(_)) => return Ok(()),
        };
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        Ok(fchownat(dir, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?)
    }

    fn mode(&self, look: &Look) -> Mode {
        // A container's setuid program shall be nobody's on the host.
        let kept = if self.keeps_owners { 0o7777 } else { 0o1777 };
        Mode::from_bits_truncate(look.mode & kept)
    }
}

enum Put {
    Done,
    Directory,
    LeftOut,
}

struct Look {
    mode: u32,
    uid: u32,
    gid: u32,
    time: TimeSpec,
}

impl Look {
    fn of(entry: &Entry<'_, impl Read>) -> Result<Self, String> {
        let header = entry.header();
        let number = |it: io::Result<u64>| {
            let it = it.map_err(|e| format!("tar: {e}"))?;
            u32::try_from(it).map_err(|e| format!("tar: {e}"))
        };
        let time = header.mtime().map_err(|e| format!("tar: {e}"))?;
        Ok(Self {
            mode: header.mode().map_err(|e| format!("tar: {e}"))?,
            uid: number(header.uid())?,
            gid: number(header.gid())?,
            time: TimeSpec::new(i64::try_from(time).unwrap_or(0), 0),
        })
    }
}

/// A path of the stream below the target; none if it would lead above.
fn placed(path: &Path, name: Option<&Path>) -> Option<PathBuf> {
    let mut parts: Vec<OsString> = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => parts.push(part.to_owned()),
            Component::CurDir | Component::RootDir => {}
            _ => return None,
        }
    }
    let Some(name) = name else {
        return Some(parts.iter().collect());
    };
    // `.` has no part of its own.
    let is_in_dot = path.starts_with(".");
    let rest = parts.iter().skip(usize::from(!is_in_dot));
    let begin = Some(name.as_os_str()).filter(|name| *name != ".");
    Some(
        begin
            .into_iter()
            .chain(rest.map(OsString::as_os_str))
            .collect(),
    )
}

/// Makes room for what is no directory.
fn clear(dir: &OwnedFd, name: &OsStr) -> nix::Result<()> {
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::ENOENT) => Ok(()),
        done => done,
    }
}

fn new_file(dir: &OwnedFd, name: &OsStr) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let private = Mode::S_IRUSR | Mode::S_IWUSR;
    match clear(dir, name) {
        // Something is mounted there, as on /etc/hosts: it is written anew.
        Err(Errno::EBUSY) => openat(dir, name, flags | OFlag::O_TRUNC, private),
        cleared => {
            cleared?;
            openat(dir, name, flags | OFlag::O_CREAT | OFlag::O_EXCL, private)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_leads_above() {
        let at = |path: &str, name: Option<&str>| placed(Path::new(path), name.map(Path::new));
        assert_eq!(at("etc/a", None), Some("etc/a".into()));
        assert_eq!(at("/etc/./a", None), Some("etc/a".into()));
        assert_eq!(at("etc/a", Some("other")), Some("other/a".into()));
        assert_eq!(at("etc/a", Some(".")), Some("a".into()));
        assert_eq!(at("./a/b", Some("x")), Some("x/a/b".into()));
        assert_eq!(at(".", Some(".")), Some("".into()));
        assert_eq!(at("a/../../b", None), None);
        assert_eq!(at("..", Some("x")), None);
    }
}
