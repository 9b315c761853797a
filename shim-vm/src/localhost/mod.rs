// SPDX-License-Identifier: Apache-2.0
//! Connections to localhost of a pod's network namespace, over the link to localhost of its VM, where the
//! applications are: `kubectl port-forward` is containerd's connection there.
//!
//! ```text
//!  the pod's network namespace              │ link       guest
//!  dial 127.0.0.1:P ─ lookup ─> listener ── shim ─ stream ─> agent ─ dial 127.0.0.1:P
//! ```
//!
//! The guest is asked to connect, and then the bytes go both ways (`task::relay`). Who dials a port at
//! which nobody listens there is connected, and reset at once: the kernel answers before the guest can.

mod lookup;

use crate::network::Where;
use crate::vm::Vm;
use crate::word::Allowance;
use nix::sched::{CloneFlags, setns};
use protos::Status;
use protos::guest::DialRequest;
use protos::mux::Stream;
use protos::ttrpc::Context;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use task::aside;
use task::handover::Kept;
use task::relay::{self, Slot};
use tokio::net::{TcpListener as Listener, TcpStream};

/// How long the guest may take to connect.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the log says that there are too many connections: so often at once, and so often a second.
const LOGGED: (u32, u32) = (3, 1);
/// How long nobody is accepted after one that could not be.
const AGAIN: Duration = Duration::from_millis(100);

/// What listens there; when this goes, nothing is left of it.
#[derive(Debug)]
pub struct Sockets {
    /// IPv4's, and IPv6's if the machine has that.
    listeners: Vec<TcpListener>,
    /// As long as it is open, the kernel sends connections there.
    lookup: OwnedFd,
}

/// [`Sockets`], for another process image.
#[derive(Debug, Serialize, Deserialize)]
pub struct Moved {
    listeners: Vec<i32>,
    lookup: i32,
}

/// Those of a VM, while it is there.
#[derive(Default)]
pub struct Localhost(RefCell<Option<Rc<Sockets>>>);

/// Begins to listen in the network namespace of a VM's `network`, if somebody has made it who may dial
/// there: it is done while the VM boots.
pub fn begin(
    netns: &Option<OwnedFd>,
    network: &Where,
) -> impl Future<Output = Option<Sockets>> + use<> {
    let netns = network.path().and(netns.as_ref());
    let netns = netns.and_then(|netns| netns.try_clone().ok());
    let listening = netns.map(|netns| tokio::task::spawn_local(listen(netns)));
    async move { listening?.await.ok()? }
}

/// Listens in the network namespace `netns`. Nobody waits for it: without it there is no port-forward,
/// and that is in the log.
async fn listen(netns: OwnedFd) -> Option<Sockets> {
    let made = aside::alone(move || Sockets::new(&netns)).await;
    let without = |e| log::warn!("no connections to localhost, as port-forward makes them: {e}");
    made.map_err(without).ok()
}

impl Sockets {
    /// On a thread that enters the namespace, and ends.
    fn new(netns: &OwnedFd) -> io::Result<Self> {
        setns(netns, CloneFlags::CLONE_NEWNET)?;
        // Whatever their addresses are, the kernel sends them what is for localhost; that need not be up.
        let mut listeners = vec![TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?];
        listeners.extend(TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)));
        for listener in &listeners {
            listener.set_nonblocking(true)?;
        }
        let lookup = lookup::attach(netns, &listeners)?;
        Ok(Self { listeners, lookup })
    }

    fn hand_over(&self, kept: &mut Kept) -> io::Result<Moved> {
        let listeners = self.listeners.iter().map(|listener| kept.keep(listener));
        Ok(Moved {
            listeners: listeners.collect::<io::Result<_>>()?,
            lookup: kept.keep(&self.lookup)?,
        })
    }

    fn take_over(moved: Moved) -> io::Result<Self> {
        let adopt = |fd| Ok(TcpListener::from(task::sys::adopt(fd)?));
        let listeners = moved.listeners.into_iter().map(adopt);
        Ok(Self {
            listeners: listeners.collect::<io::Result<_>>()?,
            lookup: task::sys::adopt(moved.lookup)?,
        })
    }
}

impl Localhost {
    pub fn new(sockets: Option<Sockets>) -> Self {
        Self(RefCell::new(sockets.map(Rc::new)))
    }

    /// Describes it for another process image, but not for one that takes the place of this process when
    /// it is dead: that listens anew.
    ///
    /// # Errors
    /// If no fd is free.
    pub fn hand_over(&self, kept: &mut Kept) -> io::Result<Option<Moved>> {
        let sockets = self.0.borrow();
        let sockets = sockets.as_ref().filter(|_| !kept.is_record());
        let moved = sockets.map(|sockets| sockets.hand_over(kept));
        moved.transpose()
    }

    /// Goes on with that of another process image.
    ///
    /// # Errors
    /// If an fd is not what it is said to be.
    pub fn take_over(moved: Option<Moved>) -> io::Result<Self> {
        let sockets = moved.map(Sockets::take_over).transpose()?;
        Ok(Self::new(sockets))
    }
}

/// Serves those who connect, until the VM is gone.
pub fn serve(vm: &Rc<Vm>) {
    let Some(sockets) = vm.localhost.0.borrow().clone() else {
        return;
    };
    for listener in &sockets.listeners {
        match listener.try_clone().and_then(Listener::from_std) {
            Ok(listener) => {
                tokio::task::spawn_local(accept(Rc::clone(vm), listener));
            }
            Err(e) => log::warn!("connections to localhost: {e}"),
        }
    }
    let vm = Rc::clone(vm);
    tokio::task::spawn_local(async move {
        vm.gone().await;
        vm.localhost.0.take();
    });
}

/// Listens anew, in the namespace `netns`, where a shim that has died did.
pub async fn serve_anew(vm: &Rc<Vm>, netns: &Path) {
    match File::open(netns) {
        Ok(netns) => {
            let sockets = listen(netns.into()).await;
            vm.localhost.0.replace(sockets.map(Rc::new));
            serve(vm);
        }
        Err(e) => log::warn!("connections to localhost: {e}"),
    }
}

async fn accept(vm: Rc<Vm>, listener: Listener) {
    let mut allowance = Allowance::new(LOGGED.0, LOGGED.1);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = vm.gone() => return,
        };
        match (accepted, vm.relays.slot()) {
            (Ok((socket, _)), Some(slot)) => {
                let vm = Rc::clone(&vm);
                tokio::task::spawn_local(async move {
                    if let Err(why) = connect(&vm, slot, socket).await {
                        log::debug!("a connection to localhost: {why}");
                    }
                });
            }
            (Ok((socket, _)), None) => {
                reset(&socket);
                if allowance.take() {
                    log::warn!("a connection to localhost is one too many, and was reset");
                }
            }
            // There is no fd for it, or whoever had connected is gone.
            (Err(e), _) => {
                log::debug!("a connection to localhost: {e}");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

/// Has the guest connect, and moves the bytes.
async fn connect(vm: &Vm, slot: Slot, socket: TcpStream) -> Result<(), String> {
    let refused = |why| {
        reset(&socket);
        why
    };
    let stream = dial(vm, &socket).await.map_err(refused)?;
    let socket = socket.into_std().map_err(|e| e.to_string())?;
    let begun = vm.relays.start(slot, socket.into(), stream);
    begun.map(drop).map_err(|e| e.to_string())
}

async fn dial(vm: &Vm, socket: &TcpStream) -> Result<Stream, String> {
    let address = socket.local_addr().map_err(|e| e.to_string())?;
    let stream = vm.link().open();
    let request = DialRequest {
        stream: stream.number(),
        port: address.port().into(),
        v6: address.is_ipv6(),
        path: String::new(),
    };
    let asked = vm.ask(&request, &Context::within(PATIENCE)).await;
    let refused = |status: Status| format!("port {}: {status}", address.port());
    asked.map(|_| stream).map_err(refused)
}

fn reset(socket: &TcpStream) {
    relay::reset(socket.as_fd());
}
