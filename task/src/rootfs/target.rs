// SPDX-License-Identifier: Apache-2.0
//! Where a mount goes: a path below a root directory that it can't leave.

use super::hidden::followed;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{Mode, mkdirat};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::{fs, io};

/// How many symlinks a path may lead through, as the kernel has it (MAXSYMLINKS).
const MAX_LINKS: u32 = 40;
const PATH: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);

/// A directory or a file to mount on.
pub(super) struct Target {
    /// Its name, for people and to unmount it again.
    pub path: PathBuf,
    /// Of one below the root.
    fd: Option<OwnedFd>,
}

impl Target {
    /// What `target` is below `root`, which nobody else changes; of what is below somebody may, and
    /// finds it open or has made us fail.
    pub fn below(root: &Path, target: &str) -> io::Result<Self> {
        let path = below(root, target)?;
        let root = std::path::absolute(root)?;
        let fd = match path.strip_prefix(&root) {
            Ok(below) if !below.as_os_str().is_empty() => Some(open_below(&root, below)?),
            _ => None,
        };
        Ok(Self { path, fd })
    }

    /// The path to give to mount(2).
    pub fn point(&self) -> PathBuf {
        let open = self.fd.as_ref().map(|fd| followed(fd.as_fd()));
        open.unwrap_or_else(|| self.path.clone())
    }

    /// It, open.
    pub fn open(&self) -> io::Result<OwnedFd> {
        match &self.fd {
            Some(fd) => fd.try_clone(),
            None => Ok(open(&self.path, PATH, Mode::empty())?),
        }
    }
}

/// Opens it the way that [`below`] has found, on which there was no symlink.
fn open_below(root: &Path, below: &Path) -> io::Result<OwnedFd> {
    let root = open(root, PATH, Mode::empty())?;
    let way = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(PATH).resolve(way);
    match openat2(&root, below, how) {
        // Before Linux 5.6.
        Err(Errno::ENOSYS) => Ok(openat(
            &root,
            below,
            PATH | OFlag::O_NOFOLLOW,
            Mode::empty(),
        )?),
        opened => Ok(opened?),
    }
}

/// Makes the directory `below` in `root`, if it is missing; what it is in is there.
pub(super) fn make_dir(root: &Path, below: &Path, mode: u32) -> io::Result<()> {
    let (Some(parent), Some(name)) = (below.parent(), below.file_name()) else {
        return Err(Errno::EINVAL.into());
    };
    let dir = match parent.as_os_str().is_empty() {
        true => open(root, PATH, Mode::empty())?,
        false => open_below(root, parent)?,
    };
    match mkdirat(&dir, name, Mode::from_bits_truncate(mode)) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Where `target` is below `root`: absolute symlinks and `..` on the way stop at `root`, as if it
/// were the root directory. What is missing stays as it is.
fn below(root: &Path, target: &str) -> io::Result<PathBuf> {
    let root = std::path::absolute(root)?;
    let mut at = root.clone();
    let mut rest = PathBuf::from(target);
    let mut links = 0;
    loop {
        let mut parts = rest.components();
        let Some(part) = parts.next() else {
            return Ok(at);
        };
        let after = parts.as_path().to_owned();
        rest = match part {
            Component::Normal(name) => {
                at.push(name);
                match fs::read_link(&at) {
                    Ok(_) if links == MAX_LINKS => return Err(Errno::ELOOP.into()),
                    Ok(link) => {
                        links += 1;
                        at.pop();
                        link.join(after)
                    }
                    Err(_) => after, // no symlink; mount(2) finds out what else is wrong with it
                }
            }
            Component::RootDir => {
                at.clone_from(&root);
                after
            }
            Component::ParentDir if at != root => {
                at.pop();
                after
            }
            _ => after,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    #[test]
    fn n1_targets_stay_below_the_root() {
        let scratch = TempDir::new().unwrap();
        let root = scratch.path().join("root");
        fs::create_dir_all(root.join("dir/sub")).unwrap();
        symlink("/", root.join("slash")).unwrap();
        symlink("../../../..", root.join("up")).unwrap();
        symlink("/dir/sub", root.join("absolute")).unwrap();
        symlink("sub/../../slash/dir", root.join("dir/winding")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        for (target, expected) in [
            ("", ""),
            ("/", ""),
            ("dir", "dir"),
            ("//dir/./sub/", "dir/sub"),
            ("..", ""),
            ("../../etc", "etc"),
            ("dir/../../etc", "etc"),
            ("slash/etc", "etc"),
            ("up/etc", "etc"),
            ("absolute/x", "dir/sub/x"),
            ("dir/winding/sub", "dir/sub"),
            ("missing/../dir", "dir"),
            ("missing/also", "missing/also"),
        ] {
            assert_eq!(
                below(&root, target).unwrap(),
                root.join(expected),
                "{target}"
            );
        }
        let endless = below(&root, "loop/x").unwrap_err();
        assert_eq!(endless.raw_os_error(), Some(Errno::ELOOP as i32));
    }

    /// Somebody who shares the root changes it between the look and the mount.
    #[test]
    fn a_target_that_has_become_a_link_is_none() {
        let scratch = TempDir::new().unwrap();
        let (root, host) = (scratch.path().join("root"), scratch.path().join("host"));
        fs::create_dir_all(root.join("dir/sub")).unwrap();
        fs::create_dir_all(host.join("sub")).unwrap();
        let found = Target::below(&root, "dir/sub").unwrap();
        fs::rename(root.join("dir"), root.join("moved")).unwrap();
        symlink(&host, root.join("dir")).unwrap();
        let still = fs::canonicalize(found.point()).unwrap();
        assert_eq!(still, fs::canonicalize(root.join("moved/sub")).unwrap());
        let late = open_below(&root, Path::new("dir/sub")).unwrap_err();
        assert_eq!(late.raw_os_error(), Some(Errno::ELOOP as i32));
    }
}
