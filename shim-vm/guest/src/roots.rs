//! The root filesystems of containers, which the host shows in its share.
//!
//! Each is a superblock of its own, which the kernel mounts for whoever is the first to look, in the
//! mount namespace where that is. In the container's own namespace it would end with the container's
//! last process, and Linux has a bug there (6.1 `fs/super.c:503`, "Busy inodes after unmount"): it does
//! not wait for what the host was asked to read, and a program whose pages are read ahead when it is
//! killed is still being read. So they are mounted for all, here, before there is a container, and
//! unmounted when it is deleted and the host owes no answer.

use crate::boot::SHARE;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;
use task::aside;

/// fusectl: a directory for each connection to a server of files, by the number of its device.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";
/// How soon to look again whether the host has answered: nothing tells.
const AGAIN: Duration = Duration::from_millis(2);
/// How often, before the root filesystem stays where it is until the next one goes.
const TIMES: usize = 500;

/// The share's number there. It is asked for once: the share itself answers, and so the host.
static NUMBER: OnceLock<u64> = OnceLock::new();

/// Once the share is mounted; it waits for the host.
///
/// # Errors
/// From stat(2) and mount(2).
pub fn watch() -> io::Result<()> {
    let device = fs::metadata(SHARE)?.dev();
    NUMBER.get_or_init(|| nix::sys::stat::minor(device));
    let (kind, none) = (Some("fusectl"), None::<&str>);
    Ok(mount(kind, CONNECTIONS, kind, MsFlags::empty(), none)?)
}

/// Has the kernel mount it for all; it waits for the host.
///
/// # Errors
/// From opendir(3).
pub fn show(id: &str) -> io::Result<()> {
    fs::read_dir(protos::places::rootfs(id)).map(drop)
}

/// Those that are to be unmounted.
#[derive(Default)]
pub struct Leaving(RefCell<BTreeSet<String>>);

impl Leaving {
    /// There will be a container of this name again.
    pub fn stays(&self, id: &str) {
        self.0.borrow_mut().remove(id);
    }

    /// Unmounts the root filesystem of this container, of which no process is left, and those that
    /// could not be before.
    pub async fn hide(&self, id: &str) {
        self.0.borrow_mut().insert(id.to_owned());
        for _ in 0..TIMES {
            match outstanding() {
                Ok(0) => return self.unmount().await,
                Ok(_) => tokio::time::sleep(AGAIN).await,
                Err(e) => return log::warn!("what the host owes: {e}: the root of {id} stays"),
            }
        }
        log::info!("the host owes answers all the time: the root of {id} stays for now");
    }

    async fn unmount(&self) {
        let ids = self.0.take();
        let unmount = move || {
            for id in ids {
                match umount2(&*protos::places::rootfs(&id), MntFlags::UMOUNT_NOFOLLOW) {
                    // It was a directory of the share: nothing was mounted there.
                    Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
                    Err(e) => log::warn!("{id}: its root stays mounted: {e}"),
                }
            }
        };
        aside::beside(unmount).await;
    }
}

/// How many requests the host has not answered yet.
fn outstanding() -> io::Result<u64> {
    let number = NUMBER.get().ok_or(io::ErrorKind::NotFound)?;
    let path = Path::new(CONNECTIONS).join(number.to_string());
    let text = task::proc::text(path.join("waiting"))?;
    text.trim().parse().map_err(io::Error::other)
}
