// SPDX-License-Identifier: Apache-2.0
//! Sockets that containers make in volumes, and to which the host connects: those that the configuration
//! names.
//!
//! ```text
//!  host                                      │ link       guest
//!  client ──> listener ── shim ── stream ────┼─> agent ──> the same file in the share, where a container
//!                 └ bound by the file server │             listens
//! ```
//!
//! The file server makes the listener when a container makes the socket, and nothing on the host makes a
//! name for it: whoever may make it is who has made it. To the container, it is the agent that connects.

mod handover;

pub use handover::Moved;

use crate::rights;
use crate::spec::Volume;
use crate::vm::Vm;
use crate::word::Allowance;
use nix::sys::socket::sockopt::{AcceptConn, ReceiveTimeout, SockType};
use nix::sys::socket::{SockFlag, UnixAddr, accept4, getsockname, getsockopt, setsockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use protos::Status;
use protos::guest::DialRequest;
use protos::places::SHARE;
use protos::ttrpc::Context;
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use task::record;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// How long the guest may take to connect.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the log says why nobody was connected: so often at once, and so often a second.
const LOGGED: (u32, u32) = (3, 1);
/// How many sockets are heard of: so many at once, and so many a second. Others wait, and then are lost.
const HEARD: (u32, u32) = (64, 16);
/// How long nobody is accepted, or heard, after one that could not be.
const AGAIN: Duration = Duration::from_millis(100);
/// The longest name that a socket's address holds (unix(7)).
const LONGEST: usize = 107;

/// Those of a VM.
#[derive(Default)]
pub struct ContainerSockets {
    /// The host's paths.
    allowed: Vec<PathBuf>,
    /// To the file server; `None` if none are allowed.
    channel: Option<Rc<AsyncFd<OwnedFd>>>,
    next: Cell<u32>,
    /// Where containers may make them, by the numbers that the file server has.
    places: RefCell<BTreeMap<u32, Place>>,
    heard: Notify,
    /// Those that there are, by the host's paths.
    listening: RefCell<BTreeMap<PathBuf, Listening>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Place {
    host: PathBuf,
    /// In the share.
    path: String,
    /// The file server has heard of it.
    known: bool,
}

struct Listening {
    place: Place,
    listener: Rc<AsyncFd<OwnedFd>>,
    accepting: Option<AbortHandle>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some(task) = &self.accepting {
            task.abort();
        }
    }
}

impl ContainerSockets {
    /// Those at these paths, if containers make them, and the file server's end of the channel.
    ///
    /// # Errors
    /// From socketpair(2) and epoll_ctl(2).
    pub fn new(allowed: &[PathBuf]) -> io::Result<(Self, Option<OwnedFd>)> {
        if allowed.is_empty() {
            return Ok((Self::default(), None));
        }
        let (own, files) = rights::pair()?;
        let sockets = Self {
            allowed: allowed.to_owned(),
            channel: Some(watch(own)?),
            ..Self::default()
        };
        Ok((sockets, Some(files)))
    }

    /// Has the file server know those that a container may make in `volume`, which the guest has at `at`.
    ///
    /// # Errors
    /// If it can't be told, or does not hear of it while `context` waits.
    pub async fn within(
        &self,
        vm: &Vm,
        volume: &Volume,
        at: &str,
        context: &Context,
    ) -> Result<(), String> {
        let share = Path::new(SHARE);
        let Ok(at) = Path::new(at).strip_prefix(share) else {
            return Ok(());
        };
        for host in self.allowed.iter().filter(|_| !volume.readonly) {
            let below = host.strip_prefix(&volume.source).ok();
            let Some(below) = below.filter(|below| below.file_name().is_some()) else {
                continue;
            };
            let path = at.join(below).to_string_lossy().into_owned();
            let told = self.tell(vm, host, path, context).await;
            told.map_err(|e| format!("socket {}: {e}", host.display()))?;
        }
        Ok(())
    }

    async fn tell(
        &self,
        vm: &Vm,
        host: &Path,
        path: String,
        context: &Context,
    ) -> Result<(), String> {
        let Some(channel) = &self.channel else {
            return Ok(());
        };
        let known = |place: &Place| place.host == host && place.path == path && place.known;
        if self.places.borrow().values().any(known) {
            return Ok(());
        }
        let number = self.next.get();
        self.next.set(number.wrapping_add(1));
        let message = [&number.to_le_bytes(), path.as_bytes()].concat();
        let place = Place {
            host: host.to_owned(),
            path,
            known: false,
        };
        self.places.borrow_mut().insert(number, place);
        let sent = rights::send(channel.get_ref().as_fd(), &message, &[]);
        sent.map_err(|e| format!("the file server: {e}"))?;
        let is_known = || {
            let places = self.places.borrow();
            places.get(&number).is_none_or(|place| place.known)
        };
        while !is_known() {
            tokio::select! {
                () = self.heard.notified() => {}
                _ = vm.gone() => return Err("the VM is gone".into()),
                why = context.cancelled() => return Err(why.message),
            }
        }
        Ok(())
    }

    /// Whether containers have made some.
    pub fn are_there(&self) -> bool {
        !self.listening.borrow().is_empty()
    }

    /// What was at these names in the share is gone.
    pub fn forget(&self, gone: &[String]) {
        if self.channel.is_none() {
            return;
        }
        let is_in = |place: &Place| {
            gone.iter()
                .any(|gone| Path::new(&place.path).starts_with(gone))
        };
        self.places.borrow_mut().retain(|_, place| !is_in(place));
        let listening = &mut self.listening.borrow_mut();
        listening.retain(|_, listening| !is_in(&listening.place));
        record::soon();
    }

    /// Serves those who connect, until the VM is gone.
    pub fn serve(vm: &Rc<Vm>) {
        let own = &vm.container_sockets;
        for listening in own.listening.borrow_mut().values_mut() {
            listening.begin(vm);
        }
        let Some(channel) = own.channel.clone() else {
            return;
        };
        let vm = Rc::clone(vm);
        tokio::task::spawn_local(async move {
            tokio::select! {
                e = hear(&vm, &channel) => log::debug!("the file server tells of no more sockets: {e}"),
                _ = vm.gone() => {}
            }
            vm.container_sockets.listening.borrow_mut().clear();
        });
    }

    /// What the file server says: it has heard of a place, or here is a listener of it.
    fn told(&self, vm: &Rc<Vm>, message: &[u8], files: Vec<OwnedFd>) -> io::Result<()> {
        let wrong = || io::Error::other("it says what no file server of ours says");
        let number = message.try_into().map(u32::from_le_bytes);
        let mut places = self.places.borrow_mut();
        let Some(place) = places.get_mut(&number.map_err(|_| wrong())?) else {
            // Of a container that is gone.
            return Ok(());
        };
        let Some(listener) = files.into_iter().next() else {
            place.known = true;
            self.heard.notify_waiters();
            return Ok(());
        };
        check_listener(&listener)?;
        let mut listening = Listening {
            place: place.clone(),
            listener: watch(listener)?,
            accepting: None,
        };
        listening.begin(vm);
        log::debug!("socket {}: a container has made it", place.host.display());
        let host = place.host.clone();
        self.listening.borrow_mut().insert(host, listening);
        record::soon();
        Ok(())
    }
}

/// Why nothing more is heard.
async fn hear(vm: &Rc<Vm>, channel: &AsyncFd<OwnedFd>) -> io::Error {
    let mut allowance = Allowance::new(HEARD.0, HEARD.1);
    loop {
        let said = channel.async_io(Interest::READABLE, |fd| rights::receive(fd.as_fd()));
        let told = match said.await {
            Ok((message, files)) if !message.is_empty() => {
                vm.container_sockets.told(vm, &message, files)
            }
            Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(e) => Err(e),
        };
        if let Err(e) = told {
            return e;
        }
        if !allowance.take() {
            tokio::time::sleep(AGAIN).await;
        }
    }
}

impl Listening {
    fn begin(&mut self, vm: &Rc<Vm>) {
        let (vm, listener) = (Rc::clone(vm), Rc::clone(&self.listener));
        let accepting = accept(vm, self.place.clone(), listener);
        self.accepting = Some(tokio::task::spawn_local(accepting).abort_handle());
    }
}

fn watch(fd: OwnedFd) -> io::Result<Rc<AsyncFd<OwnedFd>>> {
    Ok(Rc::new(task::sys::watch(fd, Interest::READABLE)?))
}

/// It is a listener, and does not let who accepts wait, whatever the file server, which has it too, makes
/// of it: that has no setsockopt(2).
fn check_listener(fd: &OwnedFd) -> io::Result<()> {
    getsockname::<UnixAddr>(fd.as_raw_fd())?;
    let listens = getsockopt(fd, AcceptConn)?;
    if !listens || getsockopt(fd, SockType)? != nix::sys::socket::SockType::Stream {
        return Err(io::Error::other("its socket does not listen"));
    }
    setsockopt(fd, ReceiveTimeout, &TimeVal::microseconds(1))?;
    Ok(())
}

async fn accept(vm: Rc<Vm>, place: Place, listener: Rc<AsyncFd<OwnedFd>>) {
    let host = place.host.display().to_string();
    let allowance = Rc::new(RefCell::new(Allowance::new(LOGGED.0, LOGGED.1)));
    let accept = |fd: &OwnedFd| {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        Ok(accept4(fd.as_raw_fd(), flags)?)
    };
    loop {
        let accepted = listener.async_io(Interest::READABLE, accept).await;
        let socket = match accepted.and_then(task::sys::adopt) {
            Ok(socket) => socket,
            Err(e) => {
                // There is no fd for it, or whoever had connected is gone.
                log::debug!("socket {host}: {e}");
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        let (vm, path) = (Rc::clone(&vm), place.path.clone());
        let (allowance, host) = (Rc::clone(&allowance), host.clone());
        tokio::task::spawn_local(async move {
            if let Err(why) = connect(&vm, socket, path).await
                && allowance.borrow_mut().take()
            {
                log::warn!("socket {host}: somebody on the host was not connected: {why}");
            }
        });
    }
}

/// Has the guest connect, and moves the bytes; else who has connected sees the end.
async fn connect(vm: &Vm, socket: OwnedFd, path: String) -> Result<(), String> {
    let slot = vm.relays.slot().ok_or("there are too many connections")?;
    let stream = vm.link().open();
    let request = DialRequest {
        stream: stream.number(),
        path,
        ..Default::default()
    };
    let asked = vm.ask(&request, &Context::within(PATIENCE)).await;
    asked.map_err(|status: Status| status.to_string())?;
    let begun = vm.relays.start(slot, socket, stream);
    begun.map(drop).map_err(|e| e.to_string())
}

/// Whether they can be made.
///
/// # Errors
/// If one can't be: it names it.
pub fn check(paths: &[PathBuf]) -> Result<(), String> {
    let fits = |path: &&PathBuf| {
        let name = path.file_name();
        name.is_some_and(|name| name.as_bytes().len() <= LONGEST)
    };
    match paths.iter().find(|path| !fits(path)) {
        Some(path) => Err(format!(
            "container_sockets: {path:?} ends with no name of 1 to {LONGEST} bytes"
        )),
        None => Ok(()),
    }
}
