// SPDX-License-Identifier: Apache-2.0
//! Taking mounts down: which there are, in which order, and how often a busy one is asked.

use super::{MountError, fuse, mountinfo};
use crate::error::of_call;
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io, thread};

/// How often, and how long apart, a busy mount is tried again (contract N7).
const BUSY_RETRIES: u32 = 50;
pub(super) const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// What is mounted at or below `path`, the newest first: what is FUSE's, and everything.
pub(super) fn below(path: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), MountError> {
    let Some((path, table)) = lookup(path)? else {
        return Ok(Default::default());
    };
    let (mut fuse, mut points) = (Vec::new(), Vec::new());
    for mount in mountinfo::parse(&table) {
        let point = mountinfo::path(mount.point);
        if point.starts_with(&path) {
            if fuse::serves(mount.kind) {
                fuse.push(point.clone());
            }
            points.push(point);
        }
    }
    fuse.reverse();
    points.reverse();
    Ok((fuse, points))
}

/// How many mounts there are at `path`, one on the other.
pub(super) fn count_at(path: &Path) -> Result<usize, MountError> {
    let Some((path, table)) = lookup(path)? else {
        return Ok(0);
    };
    let points = mountinfo::parse(&table).map(|mount| mountinfo::path(mount.point));
    Ok(points.filter(|point| *point == path).count())
}

/// `path` as the kernel's table of mounts has it, and that table; `None` if `path` is missing.
fn lookup(path: &Path) -> Result<Option<(PathBuf, Vec<u8>)>, MountError> {
    let failed = |error| MountError::Lookup {
        path: path.to_owned(),
        error,
    };
    // Asks only for symlinks, so that a dead FUSE server is no obstacle.
    let path = match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => found.map_err(failed)?,
    };
    let table = fs::read("/proc/thread-self/mountinfo").map_err(failed)?;
    Ok(Some((path, table)))
}

/// Unmounts the topmost mount at each of `points` (one that occurs twice is a stack of two).
///
/// With the newest mount first, children come before their parents and what hides a mount before
/// what it hides; should an order be unlucky all the same, another round settles it. Only a round
/// that achieves nothing has to wait.
pub(super) fn each(mut points: Vec<PathBuf>) -> Result<(), MountError> {
    let mut retries = BUSY_RETRIES;
    while !points.is_empty() {
        let before = points.len();
        let mut failure = None;
        points.retain(|path| match umount2(path, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => false,
            // Not mounted any more, or hidden by a mount that is still there.
            Err(Errno::EINVAL | Errno::ENOENT) => true,
            Err(errno) => {
                failure.get_or_insert_with(|| (path.clone(), of_call(errno)));
                true
            }
        });
        match failure {
            _ if points.len() < before => {}
            None => break,
            Some((_, error)) if error.raw_os_error() == Some(libc::EBUSY) && retries > 0 => {
                retries -= 1;
                pause();
            }
            Some((path, error)) => return Err(MountError::Unmount { path, error }),
        }
    }
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "the kernel does not tell when a mount is idle"
)]
fn pause() {
    thread::sleep(BUSY_PAUSE);
}
