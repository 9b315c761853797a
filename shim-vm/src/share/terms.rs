// SPDX-License-Identifier: Apache-2.0
//! On which terms the guest has what it is shown.

use super::HARMLESS;
use crate::points::{self, Point};
use nix::mount::MsFlags;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use task::rootfs::Hidden;
use task::sys::map_mount;

/// What the guest may do with a tree of mounts, and what the host still does.
pub(super) struct Terms {
    /// Flags of all of them, beside [`HARMLESS`], and of the topmost alone.
    pub all: MsFlags,
    pub top: MsFlags,
    /// What the host mounts in it later appears.
    pub follows: bool,
    /// Made in it before it can't be written to any more.
    pub points: Vec<Point>,
    /// A user namespace whose maps say which owners are shown as which, and whether in all of the mounts.
    pub owners: Option<(OwnedFd, bool)>,
}

impl Terms {
    /// What is mounted at `stage`, on these terms and nowhere.
    pub fn copy(self, stage: &Path) -> io::Result<OwnedFd> {
        let tree = Hidden::at(stage)?;
        if !self.follows {
            tree.cut_off()?;
        }
        for point in &self.points {
            if let Err(e) = points::make(tree.as_fd(), point) {
                // The guest's runtime will say so, too, if it matters.
                log::debug!("mount point {}: {e}", point.path.display());
            }
        }
        tree.restrict(HARMLESS | self.all, true)?;
        if !self.top.is_empty() {
            tree.restrict(self.top, false)?;
        }
        let copy = tree.copy()?;
        if let Some((users, below)) = &self.owners {
            let mapped = map_mount(copy.as_fd(), users.as_fd(), *below);
            mapped.map_err(|e| io::Error::other(format!("map its owners: {e}")))?;
        }
        Ok(copy)
    }
}
