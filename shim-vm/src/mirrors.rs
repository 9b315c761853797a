// SPDX-License-Identifier: Apache-2.0
//! Volumes that somebody on the host swaps as a whole: those of the kubelet's that are of a ConfigMap or a
//! Secret. The guest has a copy of each, and swaps it when the host's is swapped, so that its watchers hear
//! of it. The host's inotify(7) says when.
//!
//! Swaps that come faster than the guest copies are one to it.

use crate::spec::Volume;
use crate::vm::Vm;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use protos::guest::MirrorRequest;
use protos::places::MIRRORS;
use protos::ttrpc::Context;
use serde::{Deserialize, Serialize};
use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use task::aside;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// What is swapped there (kubelet, atomic_writer.go).
const DATA: &str = "..data";
/// A token that is renewed has no watchers, and every pod has one.
const TOKENS: &str = "/kubernetes.io~projected/kube-api-access-";
/// The most that one may have, names and bytes, and how many a VM may have: others are as all volumes are.
const LARGEST: (usize, u64) = (256, 4 << 20);
const MOST: usize = 32;
/// How long the guest may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Those of a VM, by their names.
#[derive(Default)]
pub struct Mirrors {
    volumes: RefCell<BTreeMap<String, Watched>>,
    /// One for all of them: the host has few (`fs.inotify.max_user_instances`).
    watches: OnceCell<Watches>,
}

/// An inotify instance, and the same in the loop.
struct Watches {
    inotify: Arc<Inotify>,
    readable: AsyncFd<OwnedFd>,
}

struct Watched {
    place: Place,
    /// `None` until it is taken over.
    watching: Option<Watching>,
}

struct Watching {
    watch: WatchDescriptor,
    changed: Rc<Notify>,
    task: AbortHandle,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Where one is, on the host and in the guest's share.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Place {
    host: PathBuf,
    share: String,
}

/// One of them, for another process image.
#[derive(Debug, Serialize, Deserialize)]
pub struct Moved {
    name: String,
    place: Place,
}

impl Mirrors {
    /// The guest's path of the copy of `volume`, which is `share` in the guest's share, if it is one that
    /// is swapped.
    pub async fn of(
        vm: &Rc<Vm>,
        volume: &Volume,
        share: &str,
        context: &Context,
    ) -> Option<String> {
        let name = Path::new(share).parent()?.file_name()?.to_str()?;
        let path = format!("{MIRRORS}/{name}");
        let (is_known, count) = {
            let known = vm.mirrors.volumes.borrow();
            (known.contains_key(name), known.len())
        };
        if is_known {
            return Some(path);
        }
        let is_token = volume.source.to_string_lossy().contains(TOKENS);
        if !volume.readonly || is_token || count >= MOST {
            return None;
        }
        let place = Place {
            host: volume.source.clone(),
            share: share.to_owned(),
        };
        match begin(vm, name, &place, context).await {
            Ok(true) => Some(path),
            Ok(false) => None,
            Err(e) => {
                log::warn!("{}: its changes are not told: {e}", volume.source.display());
                None
            }
        }
    }

    /// What is gone of the share, by its names there.
    pub fn forget(&self, gone: &[String]) {
        let names = gone.iter().filter_map(|name| Path::new(name).file_name());
        for name in names.filter_map(|name| name.to_str()) {
            let gone = self.volumes.borrow_mut().remove(name);
            let watching = gone.as_ref().and_then(|watched| watched.watching.as_ref());
            if let Some(watching) = watching {
                self.unwatch(watching.watch);
            }
        }
    }

    /// The watch is of no use any more, unless it is of another volume, too, which is the same directory.
    fn unwatch(&self, watch: WatchDescriptor) {
        let volumes = self.volumes.borrow();
        let mut used = volumes
            .values()
            .filter_map(|watched| watched.watching.as_ref());
        if used.all(|watching| watching.watch != watch)
            && let Some(watches) = self.watches.get()
        {
            // The kernel has taken it away itself if the directory is gone.
            let _ = watches.inotify.rm_watch(watch);
        }
    }

    /// The instance, and from the first use on who hears of it.
    fn watches(vm: &Rc<Vm>) -> io::Result<Arc<Inotify>> {
        let mirrors = &vm.mirrors;
        if mirrors.watches.get().is_none() {
            let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
            let fd = inotify.as_fd().try_clone_to_owned()?;
            let watches = Watches {
                inotify: Arc::new(inotify),
                readable: task::sys::watch(fd, Interest::READABLE)?,
            };
            if mirrors.watches.set(watches).is_ok() {
                tokio::task::spawn_local(hear(Rc::clone(vm)));
            }
        }
        let watches = mirrors
            .watches
            .get()
            .ok_or_else(|| io::Error::other("no inotify"))?;
        Ok(Arc::clone(&watches.inotify))
    }

    /// Tells the volumes that are watched by any of these.
    fn tell(&self, events: &[InotifyEvent]) {
        let all = |event: &InotifyEvent| event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
        let all = events.iter().any(all);
        let volumes = self.volumes.borrow();
        for watching in volumes
            .values()
            .filter_map(|watched| watched.watching.as_ref())
        {
            if all || events.iter().any(|event| event.wd == watching.watch) {
                watching.changed.notify_one();
            }
        }
    }

    /// Describes them for another process image.
    pub fn hand_over(&self) -> Vec<Moved> {
        let volumes = self.volumes.borrow();
        let moved = volumes.iter().map(|(name, watched)| Moved {
            name: name.clone(),
            place: watched.place.clone(),
        });
        moved.collect()
    }

    /// Those of another process image.
    pub fn take_over(moved: Vec<Moved>) -> Self {
        let watched = moved.into_iter().map(|Moved { name, place }| {
            let watching = None;
            (name, Watched { place, watching })
        });
        Self {
            volumes: RefCell::new(watched.collect()),
            watches: OnceCell::new(),
        }
    }

    /// Goes on with them; what was swapped meanwhile is told.
    pub async fn go_on(vm: &Rc<Vm>) {
        for Moved { name, place } in vm.mirrors.hand_over() {
            let begun = begin(vm, &name, &place, &Context::within(PATIENCE)).await;
            if let Err(e) = begun {
                log::warn!("{}: its changes are not told: {e}", place.host.display());
            }
        }
    }
}

/// Has the guest make a copy, and watches the volume from before that on; false: it is none that is
/// swapped.
async fn begin(vm: &Rc<Vm>, name: &str, place: &Place, context: &Context) -> io::Result<bool> {
    let (host, inotify) = (place.host.clone(), Mirrors::watches(vm)?);
    let looked = aside::run(move || look(&host, &inotify)).await?;
    let Some((watch, data)) = looked else {
        return Ok(false);
    };
    if let Err(e) = copy(vm, name, place, data.clone(), context).await {
        vm.mirrors.unwatch(watch);
        return Err(e);
    }
    let changed = Rc::new(Notify::new());
    let following = follow(
        Rc::clone(vm),
        name.to_owned(),
        place.clone(),
        Rc::clone(&changed),
        data,
    );
    let watching = Watching {
        watch,
        // What was swapped while the guest copied has nobody heard.
        changed,
        task: tokio::task::spawn_local(following).abort_handle(),
    };
    watching.changed.notify_one();
    let watched = Watched {
        place: place.clone(),
        watching: Some(watching),
    };
    vm.mirrors
        .volumes
        .borrow_mut()
        .insert(name.to_owned(), watched);
    Ok(true)
}

/// A watch of the directory, and what is there; `None` if it is none that is swapped, or too large.
fn look(dir: &Path, inotify: &Inotify) -> io::Result<Option<(WatchDescriptor, String)>> {
    let Some(data) = data_of(dir)? else {
        return Ok(None);
    };
    if !fits(&dir.join(&data), &mut LARGEST.clone())? {
        return Ok(None);
    }
    let watch = inotify.add_watch(dir, AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR)?;
    // From here on it is told.
    Ok(data_of(dir)?.map(|data| (watch, data)))
}

/// What `..data` leads to, if that is a name in the same directory.
fn data_of(dir: &Path) -> io::Result<Option<String>> {
    let data = match fs::read_link(dir.join(DATA)) {
        Ok(data) => data,
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::InvalidInput
                    | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    let name = data.to_str().map(str::to_owned);
    Ok(name.filter(|name| name.starts_with("..") && !name.contains('/') && name.len() > 2))
}

fn fits(path: &Path, left: &mut (usize, u64)) -> io::Result<bool> {
    let found = fs::symlink_metadata(path)?;
    let size = if found.is_file() { found.len() } else { 0 };
    let less = left.0.checked_sub(1).zip(left.1.checked_sub(size));
    let Some(less) = less else { return Ok(false) };
    *left = less;
    if found.is_dir() {
        for entry in fs::read_dir(path)? {
            if !fits(&entry?.path(), left)? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

async fn copy(
    vm: &Vm,
    name: &str,
    place: &Place,
    data: String,
    context: &Context,
) -> io::Result<()> {
    let request = MirrorRequest {
        name: name.to_owned(),
        source: place.share.clone(),
        data,
    };
    let copied = vm.ask(&request, context).await;
    copied
        .map(drop)
        .map_err(|status| io::Error::other(status.to_string()))
}

/// Tells the volumes of what happens in them, for as long as there is a guest.
async fn hear(vm: Rc<Vm>) {
    let Some(watches) = vm.mirrors.watches.get() else {
        return;
    };
    loop {
        let read = |_: &OwnedFd| watches.inotify.read_events().map_err(io::Error::from);
        let events = tokio::select! {
            events = watches.readable.async_io(Interest::READABLE, read) => events,
            _ = vm.gone() => return,
        };
        match events {
            Ok(events) => vm.mirrors.tell(&events),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return log::warn!("inotify: {e}: no swap is told any more"),
        }
    }
}

/// Has the guest swap its copy whenever the host's is, for as long as there is a guest.
async fn follow(vm: Rc<Vm>, name: String, place: Place, changed: Rc<Notify>, mut data: String) {
    loop {
        tokio::select! {
            () = changed.notified() => {}
            _ = vm.gone() => return,
        }
        let host = place.host.clone();
        let swapped = match aside::run(move || data_of(&host)).await {
            Err(e) => return log::warn!("{}: {e}", place.host.display()),
            Ok(Some(now)) if now != data => now,
            Ok(_) => continue,
        };
        let context = Context::within(PATIENCE);
        match copy(&vm, &name, &place, swapped.clone(), &context).await {
            Ok(()) => data = swapped,
            // It was swapped again, which is told next, or it is the guest's fault.
            Err(e) => log::debug!("{}: {e}", place.host.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_is_swapped_is_known_by_its_link() {
        let dir = tempfile::tempdir().unwrap();
        let inotify = Inotify::init(InitFlags::empty()).unwrap();
        let look = |dir: &Path| look(dir, &inotify);
        assert!(look(dir.path()).unwrap().is_none());
        let file = dir.path().join("single");
        fs::write(&file, "").unwrap();
        assert!(look(&file).unwrap().is_none(), "a volume may be a file");
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("..1/deep")).unwrap();
        fs::write(at("..1/deep/file"), "x").unwrap();
        for (target, expected) in [
            ("/etc", None),
            ("../..", None),
            ("..", None),
            ("..1", Some("..1")),
        ] {
            let _ = fs::remove_file(at(DATA));
            symlink(target, at(DATA)).unwrap();
            let found = look(dir.path()).unwrap().map(|(_, data)| data);
            assert_eq!(found.as_deref(), expected, "{target}");
        }
        fs::write(at("..1/large"), vec![0; LARGEST.1 as usize]).unwrap();
        assert!(look(dir.path()).unwrap().is_none(), "it is too large");
    }
}
