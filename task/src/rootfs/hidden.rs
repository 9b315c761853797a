// SPDX-License-Identifier: Apache-2.0
//! A tree of mounts that was made out of sight: what may be done in it, and how it is shown.
//!
//! Whoever watches the place where it is shown sees nothing of it before it is whole, and then it
//! is what it stays: a mount namespace that has a copy of each mount keeps the flags that the mount
//! had when the copy was made.

use super::mountinfo;
use super::remount::locked;
use crate::below::open_below;
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{OFlag, ResolveFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use nix::sys::statvfs::fstatvfs;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The topmost mount at a path, and what is mounted below it.
pub struct Hidden {
    path: PathBuf,
    mount: OwnedFd,
}

impl AsFd for Hidden {
    /// Its root directory, or the file that it is a mount of.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.mount.as_fd()
    }
}

impl Hidden {
    /// What is mounted at `path`, which nobody else changes.
    ///
    /// # Errors
    /// From open(2).
    pub fn at(path: &Path) -> nix::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(Self {
            path: path.to_owned(),
            mount: open(path, flags, Mode::empty())?,
        })
    }

    /// From now on nothing appears in it that is mounted where its mounts came from.
    ///
    /// # Errors
    /// From mount(2).
    pub fn cut_off(&self) -> nix::Result<()> {
        let none = None::<&str>;
        let flags = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
        mount(none, &followed(self.mount.as_fd()), none, flags, none)
    }

    /// Adds `flags`, of those that forbid something, to its mounts, those `below` too.
    ///
    /// # Errors
    /// From mount_setattr(2), or mount(2) and what it is told.
    pub fn restrict(&self, flags: MsFlags, below: bool) -> nix::Result<()> {
        // They are the same numbers in both calls.
        match sys::restrict_mount(self.mount.as_fd(), flags.bits(), below) {
            Err(Errno::ENOSYS) => self.remount(flags, below),
            done => done,
        }
    }

    /// [`Self::restrict`] before Linux 5.12: mount by mount. Who shares a directory in it may
    /// change names there meanwhile: none may lead anywhere else.
    fn remount(&self, flags: MsFlags, below: bool) -> nix::Result<()> {
        add(self.mount.as_fd(), flags)?;
        if !below {
            return Ok(());
        }
        let table = fs::read("/proc/thread-self/mountinfo");
        let table = table.map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or_default()))?;
        let way = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
        let flags_to_open = OFlag::O_PATH | OFlag::O_NOFOLLOW;
        for mount in mountinfo::parse(&table) {
            let point = mountinfo::path(mount.point);
            match point.strip_prefix(&self.path) {
                Ok(below) if !below.as_os_str().is_empty() => {
                    let mount = open_below(&self.mount, below, flags_to_open, way)?;
                    add(mount.as_fd(), flags)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A copy of all of it that is mounted nowhere, for [`show`].
    ///
    /// # Errors
    /// From open_tree(2).
    pub fn copy(&self) -> nix::Result<OwnedFd> {
        sys::clone_mount(&followed(self.mount.as_fd()), true)
    }
}

/// Mounts `tree` on the file or directory `target`, which is in this thread's mount namespace.
///
/// # Errors
/// From move_mount(2).
pub fn show(tree: BorrowedFd, target: BorrowedFd) -> nix::Result<()> {
    sys::attach_mount(tree, target)
}

/// A path that leads to what is open as `fd`, and nowhere else.
pub fn followed(fd: BorrowedFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

fn add(point: BorrowedFd, flags: MsFlags) -> nix::Result<()> {
    let none = None::<&str>;
    let has = locked(fstatvfs(point)?.flags());
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | has | flags;
    mount(none, &followed(point), none, flags, none)
}

#[cfg(test)]
mod tests {
    use super::super::tests::Scratch;
    use super::*;
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    const SAFE: MsFlags = MsFlags::MS_NOSUID
        .union(MsFlags::MS_NODEV)
        .union(MsFlags::MS_NOEXEC);

    fn tmpfs(at: &Path) {
        let (kind, none) = (Some("tmpfs"), None::<&str>);
        mount(kind, at, kind, MsFlags::MS_NOATIME, none).unwrap();
    }

    /// A tmpfs with a directory `below`, in which there is another, both hidden in `stage`.
    fn staged(scratch: &Scratch) -> PathBuf {
        let stage = scratch.dir("stage");
        tmpfs(&stage);
        fs::create_dir(stage.join("below")).unwrap();
        tmpfs(&stage.join("below"));
        stage
    }

    /// The mount options of what is mounted at `point`.
    fn options(point: &Path) -> String {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let at = |line: &str| {
            let mut fields = line.split(' ').skip(4);
            let is = fields.next()? == point.to_str().unwrap();
            is.then(|| fields.next().unwrap().to_owned())
        };
        table.lines().filter_map(at).next_back().unwrap_or_default()
    }

    #[test]
    fn a_tree_is_restricted_and_shown_as_a_whole_whatever_the_kernel() {
        for whole in [Hidden::restrict, Hidden::remount] {
            let Some(scratch) = Scratch::new() else {
                return;
            };
            let (stage, place) = (staged(&scratch), scratch.dir("place"));
            let tree = Hidden::at(&stage).unwrap();
            tree.cut_off().unwrap();
            whole(&tree, SAFE, true).unwrap();
            whole(&tree, MsFlags::MS_RDONLY, false).unwrap();
            let target = Hidden::at(&place).unwrap();
            show(tree.copy().unwrap().as_fd(), target.as_fd()).unwrap();
            let all = "nosuid,nodev,noexec,noatime";
            assert_eq!(options(&place), format!("ro,{all}"));
            assert_eq!(options(&place.join("below")), format!("rw,{all}"));
        }
    }

    /// What is the target is open before: a link that takes its name leads nowhere.
    #[test]
    fn a_target_whose_name_becomes_a_link_is_still_the_target() {
        let Some(scratch) = Scratch::new() else {
            return;
        };
        let (stage, place, host) = (
            staged(&scratch),
            scratch.dir("place"),
            scratch.dir("of-the-host"),
        );
        let target = Hidden::at(&place).unwrap();
        fs::rename(&place, scratch.path("renamed")).unwrap();
        symlink(&host, &place).unwrap();
        let tree = Hidden::at(&stage).unwrap();
        show(tree.copy().unwrap().as_fd(), target.as_fd()).unwrap();
        assert_eq!(options(&host), "");
        assert!(options(&scratch.path("renamed")).starts_with("rw,"));
    }

    /// Somebody who shares a directory swaps it for a link to and fro: what the link leads to stays as
    /// it is.
    #[test]
    fn a_mount_below_whose_name_becomes_a_link_changes_no_other_mount() {
        let Some(scratch) = Scratch::new() else {
            return;
        };
        let (stage, host) = (staged(&scratch), scratch.dir("of-the-host"));
        fs::create_dir(host.join("point")).unwrap();
        tmpfs(&host.join("point"));
        let before = options(&host.join("point"));
        let [deep, link] = ["below/deep", "below/link"].map(|name| stage.join(name));
        fs::create_dir_all(deep.join("point")).unwrap();
        tmpfs(&deep.join("point"));
        symlink(&host, &link).unwrap();
        let tree = Hidden::at(&stage).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (here, exchange) = (AT_FDCWD, RenameFlags::RENAME_EXCHANGE);
                while !done.load(Ordering::Relaxed) {
                    renameat2(here, &deep, here, &link, exchange).unwrap();
                }
            });
            for _ in 0..500 {
                // It may be refused.
                let _ = tree.remount(SAFE, true);
            }
            done.store(true, Ordering::Relaxed);
        });
        assert_eq!(options(&host.join("point")), before);
    }
}
