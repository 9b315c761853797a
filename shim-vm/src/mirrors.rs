// SPDX-License-Identifier: Apache-2.0
//! Volumes that somebody on the host swaps as a whole: those of the kubelet's that are of a ConfigMap or a
//! Secret. The guest has a copy of each, and swaps it when the host's is swapped, so that its watchers hear
//! of it. The host's inotify(7) says when.
//!
//! Swaps that come faster than the guest copies are one to it.

use crate::spec::Volume;
use crate::vm::Vm;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use protos::guest::MirrorRequest;
use protos::places::MIRRORS;
use protos::ttrpc::Context;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use task::aside;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
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
pub struct Mirrors(RefCell<BTreeMap<String, Watched>>);

struct Watched {
    place: Place,
    /// `None` until it is taken over.
    watching: Option<AbortHandle>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(watching) = &self.watching {
            watching.abort();
        }
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
            let known = vm.mirrors.0.borrow();
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
            self.0.borrow_mut().remove(name);
        }
    }

    /// Describes them for another process image.
    pub fn hand_over(&self) -> Vec<Moved> {
        let watched = self.0.borrow();
        let moved = watched.iter().map(|(name, watched)| Moved {
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
        Self(RefCell::new(watched.collect()))
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
    let host = place.host.clone();
    let looked = aside::run(move || look(&host)).await?;
    let Some((inotify, data)) = looked else {
        return Ok(false);
    };
    let inotify = task::sys::watch(inotify, Interest::READABLE)?;
    copy(vm, name, place, data.clone(), context).await?;
    let watching = tokio::task::spawn_local(watch(
        Rc::clone(vm),
        name.to_owned(),
        place.clone(),
        inotify,
        data,
    ));
    let watched = Watched {
        place: place.clone(),
        watching: Some(watching.abort_handle()),
    };
    vm.mirrors.0.borrow_mut().insert(name.to_owned(), watched);
    Ok(true)
}

/// A watch of the directory, and what is there; `None` if it is none that is swapped, or too large.
fn look(dir: &Path) -> io::Result<Option<(OwnedFd, String)>> {
    if data_of(dir)?.is_none() {
        return Ok(None);
    }
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    inotify.add_watch(dir, AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR)?;
    let Some(data) = data_of(dir)? else {
        return Ok(None);
    };
    let fits = fits(&dir.join(&data), &mut LARGEST.clone())?;
    Ok(fits.then(|| (inotify.into(), data)))
}

/// What `..data` leads to, if that is a name in the same directory.
fn data_of(dir: &Path) -> io::Result<Option<String>> {
    let data = match fs::read_link(dir.join(DATA)) {
        Ok(data) => data,
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::InvalidInput
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

/// Has the guest swap its copy whenever the host's is, for as long as there is a guest.
async fn watch(
    vm: Rc<Vm>,
    name: String,
    place: Place,
    inotify: AsyncFd<OwnedFd>,
    mut data: String,
) {
    loop {
        let changed = tokio::select! {
            changed = drained(&inotify) => changed,
            _ = vm.gone() => return,
        };
        let host = place.host.clone();
        let now = aside::run(move || data_of(&host)).await;
        let swapped = match (changed, now) {
            (Err(e), _) | (_, Err(e)) => return log::warn!("{}: {e}", place.host.display()),
            (_, Ok(Some(now))) if now != data => now,
            _ => continue,
        };
        let copied = copy(
            &vm,
            &name,
            &place,
            swapped.clone(),
            &Context::within(PATIENCE),
        )
        .await;
        match copied {
            Ok(()) => data = swapped,
            // It was swapped again, which is told next, or it is the guest's fault.
            Err(e) => log::debug!("{}: {e}", place.host.display()),
        }
    }
}

/// Waits for an event, and forgets it, and all that came with it.
async fn drained(inotify: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let read = |fd: &OwnedFd| {
        let mut buffer = [0; 4096];
        match nix::unistd::read(fd, &mut buffer) {
            Err(Errno::EINTR) => Ok(0),
            read => Ok(read?),
        }
    };
    inotify.async_io(Interest::READABLE, read).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_is_swapped_is_known_by_its_link() {
        let dir = tempfile::tempdir().unwrap();
        assert!(look(dir.path()).unwrap().is_none());
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
