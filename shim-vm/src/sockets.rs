// SPDX-License-Identifier: Apache-2.0
//! Sockets of the host's that the containers of a VM may connect to: those that the configuration names.
//!
//! ```text
//!  host                            │ link       guest
//!  connect <── shim <── stream ────┼── agent <── /run/sockets/<n>, mounted where the container has it
//! ```
//!
//! The host opens the streams: each socket has one in store, and the guest's first byte on it says that a
//! container has connected. Then the host connects, by what is at the path then, and the next stream is in
//! store. To who listens there, it is the shim that connects.

use crate::source::{Identity, Source, outermost};
use crate::spec::Volume;
use crate::vm::Vm;
use crate::word::Allowance;
use nix::fcntl::{OFlag, ResolveFlag};
use nix::sys::stat::{SFlag, fstat};
use protos::guest::ListenRequest;
use protos::mux::{Link, Stream};
use protos::places::SOCKETS;
use protos::ttrpc::Context;
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use task::aside;
use task::below::open_below;
use task::rootfs::followed;

/// How long the guest may take to take the next stream.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the log says why a container was not connected: so often at once, and so often a second.
const LOGGED: (u32, u32) = (10, 1);

/// Those of a VM.
pub struct Sockets {
    allowed: Vec<PathBuf>,
    /// By their places in the list.
    served: RefCell<BTreeMap<usize, Rc<Served>>>,
}

/// One that containers have.
struct Served {
    number: usize,
    place: Place,
    /// As it was found first.
    identity: Identity,
    permissions: (u32, u32, u32),
    /// The stream in store.
    stream: Cell<u32>,
    allowance: RefCell<Allowance>,
}

/// Where it is: the volume by which a container has it, and the path there; none if it is the volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Place {
    volume: PathBuf,
    below: PathBuf,
}

/// What is found there.
struct Found {
    socket: OwnedFd,
    identity: Identity,
    /// Mode, user and group.
    permissions: (u32, u32, u32),
    /// It is in a volume whose names the VM may change.
    is_writable: bool,
}

/// Where a container has one: in its volume, and the guest's path.
#[derive(Debug)]
pub struct Inside {
    pub below: PathBuf,
    pub source: String,
}

/// One of them, for another process image.
#[derive(Debug, Serialize, Deserialize)]
pub struct Moved {
    number: usize,
    place: Place,
    identity: Identity,
    permissions: (u32, u32, u32),
    stream: u32,
}

impl Place {
    fn path(&self) -> PathBuf {
        match self.below.as_os_str().is_empty() {
            true => self.volume.clone(),
            false => self.volume.join(&self.below),
        }
    }

    /// Looks for it; it may wait for a disk.
    fn find(&self, writable: &[Identity]) -> io::Result<Found> {
        let socket = if self.below.as_os_str().is_empty() {
            Source::open_any(&self.volume, writable)?
        } else {
            let volume = Source::open(&self.volume, writable)?;
            // A container would look the link up in its own files.
            let rules = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
            let opened = open_below(volume.as_fd(), &self.below, OFlag::O_PATH, rules);
            opened.map_err(|e| match e {
                nix::Error::ELOOP | nix::Error::EXDEV => {
                    io::Error::other("a link, which may lead out of its volume")
                }
                e => e.into(),
            })?
        };
        let found = fstat(&socket)?;
        if SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT != SFlag::S_IFSOCK {
            return Err(io::Error::other("not a socket"));
        }
        Ok(Found {
            socket,
            identity: (found.st_dev, found.st_ino),
            permissions: (found.st_mode & 0o777, found.st_uid, found.st_gid),
            is_writable: outermost(&self.path(), writable)?.is_some(),
        })
    }
}

impl Place {
    /// The same, or another that the VM can't have put there.
    fn find_again(&self, writable: &[Identity], known: Identity) -> io::Result<OwnedFd> {
        let found = self.find(writable)?;
        if found.is_writable && found.identity != known {
            let why = "another one is there than was, where the VM may change names";
            return Err(io::Error::other(why));
        }
        Ok(found.socket)
    }
}

impl Sockets {
    /// Those at these paths, if containers have them.
    pub fn new(allowed: Vec<PathBuf>) -> Self {
        let served = RefCell::default();
        Self { allowed, served }
    }

    /// What of them is in `volume`: the volume itself, or in its directory.
    ///
    /// # Errors
    /// If one is not what it should be, or the guest does not listen; it names the path.
    pub async fn within(
        vm: &Rc<Vm>,
        volume: &Volume,
        context: &Context,
    ) -> Result<Vec<Inside>, String> {
        let mut inside = Vec::new();
        for (number, path) in vm.sockets.allowed.iter().enumerate() {
            let Ok(below) = path.strip_prefix(&volume.source) else {
                continue;
            };
            let place = Place {
                volume: volume.source.clone(),
                below: below.to_owned(),
            };
            let served = serve(vm, number, place, context).await;
            match served {
                Ok(()) => inside.push(Inside {
                    below: below.to_owned(),
                    source: format!("{SOCKETS}/{number}"),
                }),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    log::debug!("socket {}: it is not there", path.display());
                }
                Err(e) => return Err(format!("socket {}: {e}", path.display())),
            }
        }
        Ok(inside)
    }

    /// Describes them for another process image.
    pub fn hand_over(&self) -> (Vec<PathBuf>, Vec<Moved>) {
        let served = self.served.borrow();
        let moved = served.values().map(|served| Moved {
            number: served.number,
            place: served.place.clone(),
            identity: served.identity,
            permissions: served.permissions,
            stream: served.stream.get(),
        });
        (self.allowed.clone(), moved.collect())
    }

    /// Those of another process image.
    pub fn take_over((allowed, moved): (Vec<PathBuf>, Vec<Moved>)) -> Self {
        let served = moved.into_iter().map(|moved| {
            let served = Served {
                number: moved.number,
                place: moved.place,
                identity: moved.identity,
                permissions: moved.permissions,
                stream: Cell::new(moved.stream),
                allowance: RefCell::new(Allowance::new(LOGGED.0, LOGGED.1)),
            };
            (moved.number, Rc::new(served))
        });
        let served = RefCell::new(served.collect());
        Self { allowed, served }
    }

    /// Goes on with them: over the same streams, or over others where those are gone.
    pub async fn go_on(vm: &Rc<Vm>, link: Option<&Rc<Link>>) {
        let all: Vec<_> = vm.sockets.served.borrow().values().cloned().collect();
        for served in all {
            let stream = link.and_then(|link| link.again(served.stream.get()));
            match stream {
                Some(stream) => watch(vm, &served, stream),
                None => offer_again(vm, &served).await,
            }
        }
    }
}

/// Has the guest listen for the socket at `place`, unless it does.
async fn serve(vm: &Rc<Vm>, number: usize, place: Place, context: &Context) -> io::Result<()> {
    if vm.sockets.served.borrow().contains_key(&number) {
        return Ok(());
    }
    let (looked, writable) = (place.clone(), vm.share.writable());
    let found = aside::run(move || looked.find(&writable)).await?;
    let served = Rc::new(Served {
        number,
        place,
        identity: found.identity,
        permissions: found.permissions,
        stream: Cell::new(0),
        allowance: RefCell::new(Allowance::new(LOGGED.0, LOGGED.1)),
    });
    let known = Rc::clone(&served);
    vm.sockets.served.borrow_mut().insert(number, known);
    let offered = offer(vm, &served, context).await;
    if offered.is_err() {
        vm.sockets.served.borrow_mut().remove(&number);
    }
    offered.map_err(io::Error::other)
}

/// Has a stream in store for who connects next.
async fn offer(vm: &Rc<Vm>, served: &Rc<Served>, context: &Context) -> Result<(), String> {
    let stream = vm.link().open();
    served.stream.set(stream.number());
    let (mode, uid, gid) = served.permissions;
    let request = ListenRequest {
        name: served.number.to_string(),
        stream: stream.number(),
        mode,
        uid,
        gid,
    };
    let listens = vm.ask(&request, context).await;
    listens.map_err(|status| status.to_string())?;
    watch(vm, served, stream);
    Ok(())
}

async fn offer_again(vm: &Rc<Vm>, served: &Rc<Served>) {
    if let Err(why) = offer(vm, served, &Context::within(PATIENCE)).await {
        let path = served.place.path();
        log::warn!("socket {}: no more connections: {why}", path.display());
    }
}

/// Waits for a container to connect.
fn watch(vm: &Rc<Vm>, served: &Rc<Served>, stream: Stream) {
    let (vm, served) = (Rc::clone(vm), Rc::clone(served));
    tokio::task::spawn_local(async move {
        tokio::select! {
            () = stream.readable() => {}
            _ = vm.gone() => return,
        }
        if !matches!(stream.try_read(&mut [0]), Ok(1)) {
            // Reset: with the guest's end, or a session's.
            return;
        }
        tokio::join!(offer_again(&vm, &served), async {
            if let Err(e) = join(&vm, &served, stream).await
                && served.allowance.borrow_mut().take()
            {
                let path = served.place.path();
                log::warn!(
                    "socket {}: a container was not connected: {e}",
                    path.display()
                );
            }
        });
    });
}

/// Connects a stream to the socket that is there now.
async fn join(vm: &Vm, served: &Served, stream: Stream) -> io::Result<()> {
    let none = || io::Error::other("there are too many connections");
    let slot = vm.relays.slot().ok_or_else(none)?;
    let (place, identity, writable) = (served.place.clone(), served.identity, vm.share.writable());
    let connected = aside::run(move || {
        let found = place.find_again(&writable, identity)?;
        task::connect::here(&followed(found.as_fd()))
    });
    vm.relays.start(slot, connected.await?, stream).map(drop)
}

/// A list of paths, as an annotation has it.
///
/// # Errors
/// If one is not absolute.
pub fn list(text: &str) -> Result<Vec<PathBuf>, String> {
    let paths = text
        .split(',')
        .map(str::trim)
        .filter(|path| !path.is_empty());
    let paths = paths.map(|path| {
        let absolute = Path::new(path).is_absolute().then(|| path.into());
        absolute.ok_or_else(|| format!("{path:?} is not an absolute path"))
    });
    paths.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    fn place(volume: PathBuf, below: &str) -> Place {
        let below = below.into();
        Place { volume, below }
    }

    #[test]
    fn another_socket_is_one_that_the_vm_cannot_have_put_there() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("v")).unwrap();
        let _one = UnixListener::bind(at("v/s")).unwrap();
        let _other = UnixListener::bind(at("v/other")).unwrap();
        let place = place(at("v"), "s");
        let writable = [Source::open(&at("v"), &[]).unwrap().identity];
        let found = place.find(&[]).unwrap();
        assert!(!found.is_writable && place.find(&writable).unwrap().is_writable);
        place.find_again(&writable, found.identity).unwrap();
        // Somebody makes of it another that is in the volume, too.
        fs::remove_file(at("v/s")).unwrap();
        fs::hard_link(at("v/other"), at("v/s")).unwrap();
        let why = place.find_again(&writable, found.identity).unwrap_err();
        assert!(why.to_string().starts_with("another one is there"), "{why}");
        let again = place.find_again(&[], found.identity).unwrap();
        task::connect::here(&followed(again.as_fd())).unwrap();
    }

    #[test]
    fn what_is_no_socket_or_a_link_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("v")).unwrap();
        let _host = UnixListener::bind(at("host")).unwrap();
        fs::write(at("v/file"), "").unwrap();
        symlink(at("host"), at("v/link")).unwrap();
        symlink(dir.path(), at("v/up")).unwrap();
        for (below, why) in [
            ("file", "not a socket"),
            ("link", "a link, which may lead out of its volume"),
            ("up/host", "a link, which may lead out of its volume"),
            ("../host", "a link, which may lead out of its volume"),
        ] {
            let found = place(at("v"), below).find(&[]);
            assert_eq!(found.err().unwrap().to_string(), why, "{below}");
        }
        let missing = place(at("v"), "missing").find(&[]).err().unwrap();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        // The volume itself is what the host's links make it, as every runtime has it.
        symlink(at("host"), at("alias")).unwrap();
        place(at("alias"), "").find(&[]).unwrap();
    }

    #[test]
    fn a_list_has_absolute_paths() {
        let paths = list("/a.sock, /b/c.sock,").unwrap();
        assert_eq!(paths, ["/a.sock", "/b/c.sock"].map(PathBuf::from));
        assert_eq!(list("x").unwrap_err(), "\"x\" is not an absolute path");
    }
}
