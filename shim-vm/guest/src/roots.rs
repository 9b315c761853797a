// SPDX-License-Identifier: Apache-2.0
//! What the host shows in its share, a root filesystem or a volume each: who holds it, and how it goes.
//!
//! Each is a superblock of its own, which the kernel mounts for whoever is the first to look, in the
//! mount namespace where that is. In the container's own namespace it would end with the container's
//! last process, and Linux has a bug there (6.1 `fs/super.c:503`, "Busy inodes after unmount"): it does
//! not wait for what the host was asked to read, and a program whose pages are read ahead when it is
//! killed is still being read. So they are mounted for all, here, before there is a container, and
//! unmounted when nobody uses them and the host has answered.
//!
//! Nothing tells of that, but the kernel sends what nobody waits for, which is reading ahead and closing
//! files, in the order in which it was asked for, and the host answers so. It does not matter for which file:
//! when a file has been read that was not in memory, all that was sent before is answered. What was read then
//! closes its file; and so it is done once more.

use crate::boot::SHARE;
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use protos::places::{self, ANSWERED};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use task::aside;
use tokio::sync::Mutex;

/// How often the file is read.
const TIMES: usize = 3;
/// How long anybody waits for that: then it goes on alone.
const PATIENCE: Duration = Duration::from_secs(1);

/// Has the kernel mount it for all; it waits for the host.
///
/// # Errors
/// From opendir(3).
pub fn show(path: &str) -> io::Result<()> {
    fs::read_dir(path).map(drop)
}

/// Waits until the host has answered all that it was asked for before, by whom there is no more.
///
/// # Errors
/// From reading the file that is there for it.
pub fn answered() -> io::Result<()> {
    let file = Path::new(SHARE).join(ANSWERED);
    (0..TIMES).try_for_each(|_| fs::read(&file).map(drop))
}

/// The root filesystems that are to be unmounted.
#[derive(Default)]
pub struct Leaving {
    ids: RefCell<BTreeSet<String>>,
    /// Held while some are unmounted.
    turn: Mutex<()>,
}

impl Leaving {
    /// There will be a container of this name again.
    pub async fn stays(&self, id: &str) {
        self.ids.borrow_mut().remove(id);
        drop(self.turn.lock().await);
    }

    /// Unmounts the root filesystem of this container, of which no process is left.
    pub async fn hide(self: &Rc<Self>, id: &str) {
        self.ids.borrow_mut().insert(id.to_owned());
        let leaving = Rc::clone(self);
        let unmounted = tokio::task::spawn_local(async move { leaving.unmount().await });
        if tokio::time::timeout(PATIENCE, unmounted).await.is_err() {
            log::info!("the host owes answers: the root of {id} stays until it has given them");
        }
    }

    async fn unmount(&self) {
        let _turn = self.turn.lock().await;
        if self.ids.borrow().is_empty() {
            return;
        }
        if let Err(e) = aside::beside(answered).await {
            return log::warn!("{ANSWERED}: {e}: roots of containers stay mounted");
        }
        let ids = self.ids.take();
        let unmount = move || {
            for id in ids {
                match umount2(&*places::rootfs(&id), MntFlags::UMOUNT_NOFOLLOW) {
                    // It was a directory of the share: nothing was mounted there.
                    Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
                    Err(e) => log::warn!("{id}: its root stays mounted: {e}"),
                }
            }
        };
        aside::beside(unmount).await;
    }
}
