// SPDX-License-Identifier: Apache-2.0
//! The directory that a VM sees of the host: its containers' root filesystems and volumes,
//! mounted there.
//!
//! ```text
//!  <place>/share/<container>/rootfs  what containerd's mounts make
//!  <place>/share/.volumes/<n>/v      a volume: a directory, or a single file
//!  <place>/stage-<n>                 where each of them is made before it is shown, in a namespace
//!                                    that goes with it
//! ```
//!
//! The guest is not trusted. All that it can change is what is in a container's root filesystem or
//! in a volume, never what these are in: its file server has that read-only ([`crate::fsd`]). What it
//! sees was made elsewhere and is moved here when it is whole, to a directory that is open. So
//! nothing that the guest does to a name makes a mount go elsewhere, or anything be removed.
//!
//! Containers that have the same volume have it as one: a FIFO or a socket in it is known by its inode.
//!
//! The mounts are in a mount namespace of the share's own, of which the host sees nothing: when the
//! shim and its file server are gone, so are they. The shim itself is in the host's, and what it shows
//! is what the host has by then, however that is mounted ([`Stage`]).

mod handover;
mod stage;
mod terms;

pub use handover::Moved;
pub use stage::{Stage, bind};

use crate::fsd::ALONE;
use crate::points::Point;
use crate::rootfs::Mounts;
use crate::skeleton::{Skeleton, clear};
use crate::source::{Identity, Source};
use crate::spec::{Owners, Volume};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use protos::guest::SharedMemory;
use protos::places;
use protos::ttrpc::Context;
use serde::{Deserialize, Serialize};
use stage::Point as Shown;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use task::aside;
use task::reaper::Reaper;
use task::rootfs::{self, Namespace, Place};
use terms::Terms;
use tokio::sync::OnceCell;

/// Bytes of it, if the host's is no tmpfs (Docker's and CRI's own default).
const MEMORY: u64 = 64 << 20;
/// In the share; no container is called so.
pub const VOLUMES: &str = ".volumes";
/// The parts of a volume's name in it: `.volumes/0/v`.
pub const OF_VOLUME: usize = 3;
/// In the VM's place.
pub const SHARE: &str = "share";
/// In a volume's directory.
const VOLUME: &str = "v";
/// What the names of stages begin with.
const STAGE: &str = "stage-";
/// A directory for each container, and for each volume two names; no content.
const LIMITS: &str = "mode=0755,size=64k,nr_inodes=16384";
/// What the guest makes in the share has no force on the host: no program that it marks, and no
/// device. The guest's own kernel goes by what the files say.
const HARMLESS: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

pub struct Share {
    /// Where it is mounted, and in which mount namespace.
    dir: PathBuf,
    namespace: Namespace,
    /// The VM's directory, and its fd.
    place: (PathBuf, Arc<Skeleton>),
    skeleton: Arc<Skeleton>,
    reaper: Rc<Reaper>,
    stages: Cell<u64>,
    volumes: RefCell<BTreeMap<usize, Shared>>,
    /// How many there have been: the place of one that goes is nobody else's.
    numbers: Cell<usize>,
    /// Directories of the host's whose memory the guest has instead.
    memory: RefCell<Vec<PathBuf>>,
}

/// What makes two volumes the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Key {
    source: PathBuf,
    /// There may be another file of this name by now.
    file: Identity,
    readonly: bool,
    #[serde(default)]
    recursively: bool,
    follows: bool,
    #[serde(default)]
    alone: bool,
    #[serde(default)]
    owners: Option<Owners>,
}

struct Shared {
    key: Key,
    /// Ids of containers.
    users: Vec<String>,
    mounted: Rc<OnceCell<()>>,
}

impl Share {
    /// A share in the VM's directory `place`.
    ///
    /// # Errors
    /// If it can't be made.
    pub async fn new(place: &Path, reaper: Rc<Reaper>) -> Result<Self, String> {
        let (dir, at) = (place.join(SHARE), place.to_owned());
        let made = async {
            let namespace = Namespace::copy().await?;
            let (inside, skeleton) = namespace.run(move || make(&at)).await?;
            Ok::<_, io::Error>((namespace, inside, skeleton))
        };
        let made = made.await;
        let (namespace, inside, skeleton) =
            made.map_err(|e| format!("share {}: {e}", dir.display()))?;
        Ok(Self {
            namespace,
            skeleton: Arc::new(skeleton),
            dir,
            place: (place.to_owned(), Arc::new(inside)),
            reaper,
            stages: Cell::default(),
            volumes: RefCell::default(),
            numbers: Cell::default(),
            memory: RefCell::default(),
        })
    }

    /// Where it is, for who serves it.
    pub fn dir(&self) -> (&Path, &Namespace) {
        (&self.dir, &self.namespace)
    }

    /// Makes the root filesystem of container `id`, what `mounts` make. With `points` it can't be written to, but these are in it.
    ///
    /// # Errors
    /// Which mount failed, and why.
    pub async fn add_rootfs(
        &self,
        id: &str,
        mounts: Mounts,
        points: Option<Vec<Point>>,
        stage: &Stage,
        context: &Context,
    ) -> Result<(), String> {
        let terms = Terms {
            all: MsFlags::empty(),
            top: readonly(points.is_some()),
            follows: false,
            points: points.unwrap_or_default(),
            owners: None,
        };
        let alone = if mounts.are_alone() { ALONE } else { 0 };
        let dir = self.skeleton.make_dir(id);
        let dir = dir.and_then(|dir| self.skeleton.mark(id, alone).map(|()| dir));
        let dir = dir.map_err(|e| format!("mkdir {id}: {e}"))?;
        let at = Shown {
            dir,
            name: places::ROOTFS,
            is_dir: true,
        };
        self.show(at, mounts, terms, stage, context).await
    }

    /// Shows the guest a volume of container `id`, a directory or a file; its path there, and
    /// whether it is a directory.
    ///
    /// # Errors
    /// If it is neither, or can't be mounted.
    pub async fn add_volume(
        &self,
        id: &str,
        volume: &Volume,
        stage: &Stage,
        context: &Context,
    ) -> Result<(String, bool), String> {
        let path = &volume.source;
        let failed = |e: &dyn Display| format!("mount source {}: {e}", path.display());
        let writable = self.writable();
        let opening = path.clone();
        let source = stage.run(move || Source::open(&opening, &writable)).await;
        let source = source.map_err(|e| failed(&e))?;
        let key = Key {
            source: path.clone(),
            file: source.identity,
            readonly: volume.readonly,
            recursively: volume.recursively,
            follows: volume.follows,
            alone: volume.alone,
            owners: volume.owners.clone(),
        };
        let (number, mounted) = self.use_volume(id, key);
        let name = number.to_string();
        let mount = async || {
            let owners = match &volume.owners {
                Some(owners) => {
                    let (users, groups) = (&owners.users, &owners.groups);
                    let mapped = rootfs::user_namespace(&self.reaper, users, groups).await;
                    let why = |e| failed(&format_args!("map its owners: {e}"));
                    Some((mapped.map_err(why)?, owners.below))
                }
                None => None,
            };
            let terms = Terms {
                owners,
                all: readonly(volume.recursively),
                top: readonly(volume.readonly),
                follows: volume.follows,
                points: Vec::new(),
            };
            let volumes = self.skeleton.make_dir(VOLUMES).map_err(|e| failed(&e))?;
            let place = volumes.make_dir(&name).map_err(|e| failed(&e))?;
            let mounts = Mounts::Plain(vec![bind(&source.path(), volume.alone)]);
            let at = Shown {
                dir: place,
                name: VOLUME,
                is_dir: source.is_dir,
            };
            let shown = self.show(at, mounts, terms, stage, context);
            shown.await.map_err(|e| failed(&e))
        };
        mounted.get_or_try_init(mount).await?;
        let path = format!("{}/{VOLUMES}/{name}/{VOLUME}", places::SHARE);
        Ok((path, source.is_dir))
    }

    /// Whether something is mounted in the volume that the guest has at `path`.
    ///
    /// # Errors
    /// If it can't be looked up.
    pub async fn has_mounts_in(&self, path: &str) -> Result<bool, String> {
        let below = path.strip_prefix(places::SHARE).unwrap_or_default();
        let own = self.dir.join(below.trim_start_matches('/'));
        let place = Place {
            namespace: Some(self.namespace.clone()),
            dir: own,
        };
        let found = rootfs::has_mounts_below(place).await;
        found.map_err(|e| e.to_string())
    }

    /// The volumes in which the guest may change names, or in what is mounted in them.
    pub fn writable(&self) -> Vec<Identity> {
        let volumes = self.volumes.borrow();
        let writable = volumes.values().filter(|volume| !volume.key.recursively);
        writable.map(|volume| volume.key.file).collect()
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
        let volume = Shared {
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
        let path = format!("{}/{name}", places::MEMORY);
        let size = size.unwrap_or(MEMORY);
        (SharedMemory { name, size }, path)
    }

    /// Takes the container's files out of the share; the names in it that are gone. What the guest
    /// still knows of them stays until it lets go.
    pub async fn remove(&self, id: &str) -> Vec<String> {
        let mut unused = Vec::new();
        self.volumes.borrow_mut().retain(|number, volume| {
            volume.users.retain(|user| user != id);
            let used = !volume.users.is_empty();
            if !used {
                unused.push(number.to_string());
            }
            used
        });
        let volumes = unused.iter().map(|n| format!("{VOLUMES}/{n}"));
        let gone = volumes.chain([id.to_owned()]).collect();
        let (skeleton, name) = (Arc::clone(&self.skeleton), id.to_owned());
        let cleared = self.namespace.run(move || {
            clear(&skeleton, &name, places::ROOTFS);
            if let Ok(volumes) = skeleton.dir(VOLUMES) {
                for number in unused {
                    clear(&volumes, &number, VOLUME);
                }
            }
            Ok::<_, io::Error>(())
        });
        if let Err(e) = cleared.await {
            log::warn!("share: {id} stays: {e}");
        }
        gone
    }

    /// Takes the whole share away; the VM is gone.
    pub async fn close(&self) {
        let dir = self.dir.clone();
        let gone = self.namespace.run(move || {
            umount2(&dir, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?;
            Ok::<_, io::Error>(())
        });
        // It may be gone already.
        let _ = gone.await;
    }
}

/// Makes the share in the directory `place`: that, and the share itself, both open.
fn make(place: &Path) -> io::Result<(Skeleton, Skeleton)> {
    let dir = place.join(SHARE);
    let inside = Skeleton::open(place)?;
    inside.make_dir(SHARE)?;
    // Mount points are made on it, and go with it.
    mount(Some("share"), &dir, Some("tmpfs"), HARMLESS, Some(LIMITS))?;
    // What is mounted in it appears at the file server's.
    let none = None::<&str>;
    mount(none, &dir, none, MsFlags::MS_SHARED, none)?;
    std::fs::write(dir.join(places::ANSWERED), "\n")?;
    Ok((inside, Skeleton::open(&dir)?))
}

fn readonly(is: bool) -> MsFlags {
    if is {
        MsFlags::MS_RDONLY
    } else {
        MsFlags::empty()
    }
}

/// How much may be in the tmpfs at `path`, in bytes; `None` if it is none.
fn size_of_tmpfs(path: &Path) -> Option<u64> {
    let found = statfs(path).ok()?;
    let size = found.blocks() * u64::try_from(found.block_size()).ok()?;
    (found.filesystem_type() == TMPFS_MAGIC && size > 0).then_some(size)
}
