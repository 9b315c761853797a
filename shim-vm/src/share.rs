//! The directory that a VM sees of the host: per container its root filesystem and its volumes,
//! bind-mounted there.
//!
//! ```text
//!  <share>/<container>/rootfs     what containerd's mounts make
//!  <share>/<container>/<n>/<name> a volume: a directory, or a single file
//! ```
//!
//! The mounts are in the shim's own mount namespace, which sees what the host mounts later and
//! shows the host nothing: when the shim and its file server are gone, so are they.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use protos::ttrpc::Context;
use protos::types::Mount;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use task::reaper::Reaper;
use task::rootfs;

/// Where the guest has it.
pub const IN_GUEST: &str = "/run/share";

pub struct Share {
    dir: PathBuf,
    reaper: Rc<Reaper>,
    /// Where something is mounted, by container, in order.
    mounted: RefCell<HashMap<String, Vec<PathBuf>>>,
}

/// Gives this process, which has one thread, a mount namespace of its own.
///
/// # Errors
/// From unshare(2) or mount(2).
pub fn own_mounts() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none)
}

impl Share {
    /// A share at `dir`, which is made.
    ///
    /// # Errors
    /// If it can't be made.
    pub fn new(dir: PathBuf, reaper: Rc<Reaper>) -> Result<Self, String> {
        let failed = |e: &dyn std::fmt::Display| format!("share {}: {e}", dir.display());
        fs::create_dir_all(&dir).map_err(|e| failed(&e))?;
        // Mount points are made on it, and go with it.
        let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("share"), &dir, Some("tmpfs"), safe, Some("mode=0755"))
            .map_err(|e| failed(&e))?;
        let mounted = RefCell::default();
        Ok(Self {
            dir,
            reaper,
            mounted,
        })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the root filesystem of container `id`: what `mounts` make, or else the directory
    /// `root`.
    ///
    /// # Errors
    /// Which mount failed, and why.
    pub async fn add_rootfs(
        &self,
        id: &str,
        mounts: Vec<Mount>,
        root: &Path,
        context: &Context,
    ) -> Result<(), String> {
        let target = self.dir.join(id).join("rootfs");
        let mounts = if mounts.is_empty() {
            vec![bind(root, false)]
        } else {
            mounts
        };
        fs::create_dir_all(&target).map_err(|e| format!("mkdir {}: {e}", target.display()))?;
        self.mount(id, target, mounts, context).await
    }

    /// Shows the guest volume number `n` of container `id`, a directory or a file; its path there
    /// is [`guest_path`].
    ///
    /// # Errors
    /// If it is neither, or can't be mounted.
    pub async fn add_volume(
        &self,
        id: &str,
        n: usize,
        source: &Path,
        readonly: bool,
        context: &Context,
    ) -> Result<(), String> {
        let failed = |e: &dyn std::fmt::Display| format!("mount source {}: {e}", source.display());
        let kind = fs::metadata(source).map_err(|e| failed(&e))?;
        let target = self.dir.join(id).join(n.to_string());
        fs::create_dir_all(&target).map_err(|e| failed(&e))?;
        let target = target.join("v");
        if kind.is_dir() {
            fs::create_dir_all(&target).map_err(|e| failed(&e))?;
        } else if kind.is_file() {
            fs::write(&target, "").map_err(|e| failed(&e))?;
        } else {
            return Err(failed(
                &"neither a directory nor a file: a VM can't share it",
            ));
        }
        let mounts = vec![bind(source, readonly)];
        self.mount(id, target, mounts, context).await
    }

    async fn mount(
        &self,
        id: &str,
        target: PathBuf,
        mounts: Vec<Mount>,
        context: &Context,
    ) -> Result<(), String> {
        let mounted = rootfs::mount_all(&self.reaper, context, target.clone(), mounts).await;
        mounted.map_err(|e| e.to_string())?;
        let mut all = self.mounted.borrow_mut();
        all.entry(id.to_owned()).or_default().push(target);
        Ok(())
    }

    /// Takes the container's files out of the share. What the guest still has open of them stays
    /// until it lets go.
    pub fn remove(&self, id: &str) {
        let mounted = self.mounted.borrow_mut().remove(id).unwrap_or_default();
        for target in mounted.into_iter().rev() {
            // All that was mounted there, one on the other.
            while umount2(&target, MntFlags::MNT_DETACH).is_ok() {}
        }
        let _ = fs::remove_dir_all(self.dir.join(id));
    }

    /// Takes the whole share away; the VM is gone.
    pub fn close(&self) {
        let _ = umount2(&self.dir, MntFlags::MNT_DETACH);
    }
}

/// Where the guest has volume `n` of container `id`.
pub fn guest_path(id: &str, n: usize) -> String {
    format!("{IN_GUEST}/{id}/{n}/v")
}

/// Where the guest has the root filesystem of container `id`.
pub fn guest_rootfs(id: &str) -> String {
    format!("{IN_GUEST}/{id}/rootfs")
}

fn bind(source: &Path, readonly: bool) -> Mount {
    let mut options = vec!["rbind".to_owned()];
    options.extend(readonly.then(|| "ro".to_owned()));
    Mount {
        r#type: "bind".into(),
        source: source.to_string_lossy().into_owned(),
        options,
        ..Default::default()
    }
}
