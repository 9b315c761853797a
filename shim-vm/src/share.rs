// SPDX-License-Identifier: Apache-2.0
//! The directory that a VM sees of the host: its containers' root filesystems and volumes,
//! mounted there.
//!
//! ```text
//!  <place>/share/<container>/rootfs  what containerd's mounts make
//!  <place>/share/.volumes/<n>/v      a volume: a directory, or a single file
//!  <place>/stage-<n>                 where each of them is made before it is shown
//! ```
//!
//! The guest is not trusted. All that it can change is what is in a container's root filesystem or
//! in a volume, never what these are in: its file server has that read-only ([`crate::fsd`]). What it
//! sees was made elsewhere and is moved here when it is whole, to a directory that is open. So
//! nothing that the guest does to a name makes a mount go elsewhere, or anything be removed.
//!
//! Containers that have the same volume have it as one: a FIFO or a socket in it is known by its inode.
//!
//! The mounts are in the shim's own mount namespace, which sees what the host mounts later and
//! shows the host nothing: when the shim and its file server are gone, so are they.

mod handover;
mod terms;

pub use handover::Moved;

use crate::points::Point;
use crate::rootfs::{Mounts, TOP};
use crate::skeleton::{Skeleton, clear, say};
use crate::source::{Identity, Source};
use crate::spec::Volume;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use protos::guest::SharedMemory;
use protos::places;
use protos::ttrpc::Context;
use protos::types::Mount;
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use task::aside;
use task::reaper::Reaper;
use task::rootfs::{self, Layer};
use terms::Terms;
use tokio::sync::OnceCell;

/// Bytes of it, if the host's is no tmpfs (Docker's and CRI's own default).
const MEMORY: u64 = 64 << 20;
/// In the share; no container is called so.
const VOLUMES: &str = ".volumes";
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
    /// Where it is mounted.
    dir: PathBuf,
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
}

struct Shared {
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
    /// A share in the VM's directory `place`.
    ///
    /// # Errors
    /// If it can't be made.
    pub async fn new(place: &Path, reaper: Rc<Reaper>) -> Result<Self, String> {
        let (dir, at) = (place.join(SHARE), place.to_owned());
        let made = aside::run(move || make(&at)).await;
        let (inside, skeleton) = made.map_err(|e| format!("share {}: {e}", dir.display()))?;
        Ok(Self {
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

    pub fn dir(&self) -> &Path {
        &self.dir
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
        context: &Context,
    ) -> Result<(), String> {
        let terms = Terms {
            all: MsFlags::empty(),
            top: readonly(points.is_some()),
            follows: false,
            points: points.unwrap_or_default(),
        };
        let dir = self.skeleton.make_dir(id);
        let dir = dir.map_err(|e| format!("mkdir {id}: {e}"))?;
        self.show(dir, places::ROOTFS, true, mounts, terms, context)
            .await
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
        context: &Context,
    ) -> Result<(String, bool), String> {
        let path = &volume.source;
        let failed = |e: &dyn Display| format!("mount source {}: {e}", path.display());
        let writable = self.writable();
        let opening = path.clone();
        let source = aside::run(move || Source::open(&opening, &writable)).await;
        let source = source.map_err(|e| failed(&e))?;
        let key = Key {
            source: path.clone(),
            file: source.identity,
            readonly: volume.readonly,
            recursively: volume.recursively,
            follows: volume.follows,
            alone: volume.alone,
        };
        let (number, mounted) = self.use_volume(id, key);
        let name = number.to_string();
        let mount = async || {
            let terms = Terms {
                all: readonly(volume.recursively),
                top: readonly(volume.readonly),
                follows: volume.follows,
                points: Vec::new(),
            };
            let volumes = self.skeleton.make_dir(VOLUMES).map_err(|e| failed(&e))?;
            let place = volumes.make_dir(&name).map_err(|e| failed(&e))?;
            let mounts = Mounts::Plain(vec![bind(&source.path(), volume.alone)]);
            let shown = self.show(place, VOLUME, source.is_dir, mounts, terms, context);
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
        let found = rootfs::has_mounts_below(own).await;
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

    /// Makes `mounts` where nobody else sees them, and then shows the guest what they have become,
    /// as `name` in `dir`.
    async fn show(
        &self,
        dir: Skeleton,
        name: &'static str,
        is_dir: bool,
        mounts: Mounts,
        terms: Terms,
        context: &Context,
    ) -> Result<(), String> {
        let number = self.stages.get();
        self.stages.set(number + 1);
        let stage = format!("{STAGE}{number}");
        let (path, place) = &self.place;
        let path = path.join(&stage);
        let make = |at: &Skeleton, name: &str| match is_dir {
            true => at.make_dir(name),
            false => at.make_file(name),
        };
        let shown = async {
            let target = make(&dir, name).map_err(|e| format!("make {name}: {e}"))?;
            make(place, &stage).map_err(|e| format!("make {stage}: {e}"))?;
            let (layers, top) = layers(mounts, &path).await?;
            let mounted = rootfs::mount_layers(&self.reaper, context, path, layers).await;
            mounted.map_err(|e| e.to_string())?;
            let shown = aside::run(move || terms.show(&top, &target)).await;
            shown.map_err(|e| e.to_string())
        };
        let shown = shown.await;
        let (place, failed) = (Arc::clone(place), shown.is_err());
        aside::run(move || {
            // The topmost mount has moved; what it covered is of no use.
            say(&stage, place.clear(&stage));
            if failed {
                say(name, dir.clear(name));
            }
        })
        .await;
        shown
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
        let (skeleton, id) = (Arc::clone(&self.skeleton), id.to_owned());
        aside::run(move || {
            clear(&skeleton, &id, places::ROOTFS);
            if let Ok(volumes) = skeleton.dir(VOLUMES) {
                for number in unused {
                    clear(&volumes, &number, VOLUME);
                }
            }
        })
        .await;
        gone
    }

    /// Takes the whole share away; the VM is gone.
    pub async fn close(&self) {
        let dir = self.dir.clone();
        aside::run(move || {
            let _ = umount2(&dir, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        })
        .await;
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

/// How `mounts` are made in the directory `stage`, and where in it is what comes of them.
async fn layers(mounts: Mounts, stage: &Path) -> Result<(Vec<Layer>, PathBuf), String> {
    match mounts {
        Mounts::Plain(mounts) => {
            let layers = mounts.into_iter().map(Layer::from);
            Ok((layers.collect(), stage.to_owned()))
        }
        Mounts::Stack(stack) => {
            let base = stage.to_string_lossy().into_owned();
            let layers = aside::run(move || stack.layers(&base, str::to_owned, None)).await?;
            Ok((layers, stage.join(TOP)))
        }
    }
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

/// A mount of the directory or file `source`, with or without what is mounted in it.
pub fn bind(source: &Path, alone: bool) -> Mount {
    let kind = if alone { "bind" } else { "rbind" };
    Mount {
        r#type: "bind".into(),
        source: source.to_string_lossy().into_owned(),
        options: vec![kind.into()],
        ..Default::default()
    }
}
