//! The directory that a VM sees of the host: its containers' root filesystems and volumes,
//! bind-mounted there.
//!
//! ```text
//!  <share>/<container>/rootfs  what containerd's mounts make
//!  <share>/.volumes/<n>/v      a volume: a directory, or a single file
//! ```
//!
//! Containers that have the same volume have it as one: a FIFO or a socket in it is known by its
//! inode, of which the guest has one per mount.
//!
//! The mounts are in the shim's own mount namespace, which sees what the host mounts later and
//! shows the host nothing: when the shim and its file server are gone, so are they.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use protos::guest::SharedMemory;
use protos::ttrpc::Context;
use protos::types::Mount;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use task::aside;
use task::reaper::Reaper;
use task::rootfs;
use tokio::sync::OnceCell;

/// Where the guest has it.
const IN_GUEST: &str = "/run/share";
/// Where the guest has memory that containers share.
const MEMORY_IN_GUEST: &str = "/run/shm";
/// Bytes of it, if the host's is no tmpfs (Docker's and CRI's own default).
const MEMORY: u64 = 64 << 20;
/// No container is called so.
const VOLUMES: &str = ".volumes";

pub struct Share {
    dir: PathBuf,
    reaper: Rc<Reaper>,
    /// Where something is mounted, by container, in order.
    mounted: RefCell<HashMap<String, Vec<PathBuf>>>,
    volumes: RefCell<BTreeMap<usize, Volume>>,
    /// How many there have been: the place of one that goes is nobody else's.
    numbers: Cell<usize>,
    /// Directories of the host's whose memory the guest has instead.
    memory: RefCell<Vec<PathBuf>>,
}

/// What makes two volumes the same.
#[derive(PartialEq)]
struct Key {
    source: PathBuf,
    /// Device and inode: there may be another file of this name by now.
    file: (u64, u64),
    readonly: bool,
}

struct Volume {
    key: Key,
    /// Ids of containers.
    users: Vec<String>,
    mounted: Rc<OnceCell<()>>,
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
        Ok(Self {
            dir,
            reaper,
            mounted: RefCell::default(),
            volumes: RefCell::default(),
            numbers: Cell::default(),
            memory: RefCell::default(),
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
        self.mount(target.clone(), mounts, context).await?;
        let mut mounted = self.mounted.borrow_mut();
        mounted.entry(id.to_owned()).or_default().push(target);
        Ok(())
    }

    /// Shows the guest a volume of container `id`, a directory or a file; its path there, and
    /// whether it is a directory.
    ///
    /// # Errors
    /// If it is neither, or can't be mounted.
    pub async fn add_volume(
        &self,
        id: &str,
        source: &Path,
        readonly: bool,
        context: &Context,
    ) -> Result<(String, bool), String> {
        let failed = |e: &dyn std::fmt::Display| format!("mount source {}: {e}", source.display());
        let wanted = source.to_owned();
        let found = aside::run(move || fs::metadata(wanted)).await;
        let found = found.map_err(|e| failed(&e))?;
        if !found.is_dir() && !found.is_file() {
            return Err(failed(
                &"neither a directory nor a file: a VM can't share it",
            ));
        }
        let key = Key {
            source: source.to_owned(),
            file: (found.dev(), found.ino()),
            readonly,
        };
        let (number, mounted) = self.use_volume(id, key);
        let place = self.dir.join(VOLUMES).join(number.to_string());
        let target = place.join("v");
        let mount = async || {
            fs::create_dir_all(&place).map_err(|e| failed(&e))?;
            if found.is_dir() {
                fs::create_dir_all(&target).map_err(|e| failed(&e))?;
            } else {
                fs::write(&target, "").map_err(|e| failed(&e))?;
            }
            let mounts = vec![bind(source, readonly)];
            self.mount(target.clone(), mounts, context).await
        };
        mounted.get_or_try_init(mount).await?;
        Ok((format!("{IN_GUEST}/{VOLUMES}/{number}/v"), found.is_dir()))
    }

    /// The volume's number, and whether it is mounted; it stays until `id` is removed.
    fn use_volume(&self, id: &str, key: Key) -> (usize, Rc<OnceCell<()>>) {
        let mut volumes = self.volumes.borrow_mut();
        if let Some((number, volume)) = volumes.iter_mut().find(|(_, known)| known.key == key) {
            volume.users.push(id.to_owned());
            return (*number, Rc::clone(&volume.mounted));
        }
        let number = self.numbers.get();
        self.numbers.set(number + 1);
        let mounted = Rc::new(OnceCell::new());
        let volume = Volume {
            key,
            users: vec![id.to_owned()],
            mounted: Rc::clone(&mounted),
        };
        volumes.insert(number, volume);
        (number, mounted)
    }

    /// Memory of the guest's for what is memory of the host's at `source`, one for all containers
    /// that name it, and its path there.
    pub async fn add_memory(&self, source: &Path) -> (SharedMemory, String) {
        let wanted = source.to_owned();
        let size = aside::run(move || size_of_tmpfs(&wanted)).await;
        let mut all = self.memory.borrow_mut();
        let known = all.iter().position(|known| known == source);
        let number = known.unwrap_or_else(|| {
            all.push(source.to_owned());
            all.len() - 1
        });
        let name = number.to_string();
        let path = format!("{MEMORY_IN_GUEST}/{name}");
        let size = size.unwrap_or(MEMORY);
        (SharedMemory { name, size }, path)
    }

    async fn mount(
        &self,
        target: PathBuf,
        mounts: Vec<Mount>,
        context: &Context,
    ) -> Result<(), String> {
        let mounted = rootfs::mount_all(&self.reaper, context, target, mounts).await;
        mounted.map_err(|e| e.to_string())
    }

    /// Takes the container's files out of the share. What the guest still has open of them stays
    /// until it lets go.
    pub async fn remove(&self, id: &str) {
        let mut mounted = self.mounted.borrow_mut().remove(id).unwrap_or_default();
        let mut places = vec![self.dir.join(id)];
        self.volumes.borrow_mut().retain(|number, volume| {
            volume.users.retain(|user| user != id);
            let used = !volume.users.is_empty();
            if !used {
                let place = self.dir.join(VOLUMES).join(number.to_string());
                mounted.insert(0, place.join("v"));
                places.push(place);
            }
            used
        });
        aside::run(move || {
            mounted.iter().rev().for_each(|target| unmount(target));
            for place in places {
                let _ = fs::remove_dir_all(place);
            }
        })
        .await;
    }

    /// Takes the whole share away; the VM is gone.
    pub async fn close(&self) {
        let dir = self.dir.clone();
        aside::run(move || {
            let _ = umount2(&dir, MntFlags::MNT_DETACH);
        })
        .await;
    }
}

/// Where the guest has the root filesystem of container `id`.
pub fn guest_rootfs(id: &str) -> String {
    format!("{IN_GUEST}/{id}/rootfs")
}

/// All that was mounted there, one on the other.
fn unmount(target: &Path) {
    while umount2(target, MntFlags::MNT_DETACH).is_ok() {}
}

/// How much may be in the tmpfs at `path`, in bytes; `None` if it is none.
fn size_of_tmpfs(path: &Path) -> Option<u64> {
    let found = statfs(path).ok()?;
    let size = found.blocks() * u64::try_from(found.block_size()).ok()?;
    (found.filesystem_type() == TMPFS_MAGIC && size > 0).then_some(size)
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
