// SPDX-License-Identifier: Apache-2.0
//! The share, for another process image, which has the same mounts.

use super::{Key, SHARE, STAGE, Share, Shared, VOLUME, VOLUMES};
use crate::skeleton::{Skeleton, clear, say};
use protos::places;
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use task::handover::Kept;
use task::reaper::Reaper;
use task::rootfs::Namespace;
use task::sys;
use tokio::sync::OnceCell;

#[derive(Debug, Serialize, Deserialize)]
pub struct Moved {
    namespace: i32,
    /// The share's directory.
    skeleton: i32,
    stages: u64,
    /// By number: what it is, and who uses it.
    volumes: Vec<(usize, Key, Vec<String>)>,
    numbers: usize,
    memory: Vec<PathBuf>,
}

impl Share {
    /// Takes away what a shim that has died had begun to show beside what `containers` have, before
    /// anything else is done in the share.
    ///
    /// # Errors
    /// If it can't be looked at.
    pub fn clear_others(&self, containers: &[String]) -> io::Result<()> {
        let volumes: Vec<usize> = self.volumes.borrow().keys().copied().collect();
        let (place, skeleton, namespace) = (&self.place.1, &self.skeleton, &self.namespace);
        thread::scope(|scope| {
            let clearing = scope.spawn(|| {
                namespace.enter()?;
                clear_all_but(place, skeleton, containers, &volumes)
            });
            let panicked = |_| Err(io::Error::other("it could not be looked at"));
            clearing.join().unwrap_or_else(panicked)
        })
    }

    /// The number of the first volume that it has now, or of the next, and how many there are.
    pub fn numbers(&self) -> (usize, usize) {
        let volumes = self.volumes.borrow();
        let first = volumes.keys().next().copied();
        (first.unwrap_or(self.numbers.get()), volumes.len())
    }

    /// The next volume has this number.
    pub fn begin_at(&self, number: usize) {
        self.numbers.set(number);
    }

    /// Describes it for another process image, while nothing is mounted in it.
    ///
    /// # Errors
    /// If no fd is free.
    pub fn hand_over(&self, kept: &mut Kept) -> io::Result<Moved> {
        let volumes = self.volumes.borrow();
        let mounted = volumes
            .iter()
            .filter(|(_, volume)| volume.mounted.initialized());
        let volumes = mounted.map(|(&n, volume)| (n, volume.key.clone(), volume.users.clone()));
        Ok(Moved {
            namespace: kept.keep(&self.namespace)?,
            skeleton: kept.keep(&*self.skeleton)?,
            stages: self.stages.get(),
            volumes: volumes.collect(),
            numbers: self.numbers.get(),
            memory: self.memory.borrow().clone(),
        })
    }

    /// Goes on with that of another process image, in the VM's directory `place`.
    ///
    /// # Errors
    /// If it is not there.
    pub fn take_over(place: &Path, moved: Moved, reaper: Rc<Reaper>) -> io::Result<Self> {
        let dir = place.join(SHARE);
        let volumes = moved.volumes.into_iter().map(|(number, key, users)| {
            let mounted = Rc::new(OnceCell::new_with(Some(())));
            let volume = Shared {
                key,
                users,
                mounted,
            };
            (number, volume)
        });
        Ok(Self {
            namespace: Namespace::from(sys::adopt(moved.namespace)?),
            skeleton: Arc::new(Skeleton::from(sys::adopt(moved.skeleton)?)),
            place: (place.to_owned(), Arc::new(Skeleton::open(place)?)),
            dir,
            reaper,
            stages: Cell::new(moved.stages),
            volumes: RefCell::new(volumes.collect()),
            numbers: Cell::new(moved.numbers),
            memory: RefCell::new(moved.memory),
        })
    }
}

fn clear_all_but(
    place: &Skeleton,
    skeleton: &Skeleton,
    containers: &[String],
    numbers: &[usize],
) -> io::Result<()> {
    for name in place.names()? {
        if name.starts_with(STAGE) {
            say(&name, place.clear(&name));
        }
    }
    for name in skeleton.names()? {
        let is_ours = [VOLUMES, places::ANSWERED].contains(&&*name);
        if !is_ours && !containers.contains(&name) {
            clear(skeleton, &name, places::ROOTFS);
        }
    }
    let Ok(volumes) = skeleton.dir(VOLUMES) else {
        return Ok(());
    };
    for name in volumes.names()? {
        let number: Option<usize> = name.parse().ok();
        if number.is_none_or(|number| !numbers.contains(&number)) {
            clear(&volumes, &name, VOLUME);
        }
    }
    Ok(())
}
