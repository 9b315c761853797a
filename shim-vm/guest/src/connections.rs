// SPDX-License-Identifier: Apache-2.0
//! Connections between the host and the guest: those that the host makes to localhost, and those that
//! containers make to sockets of the host's. Each is a stream of the link that the host has opened.

use nix::fcntl::{OFlag, ResolveFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, chown};
use protos::guest::{DialRequest, ListenRequest};
use protos::mux::Stream;
use protos::places::{SHARE, SOCKETS};
use protos::{Code, Status};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::{self, Permissions};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::rc::Rc;
use task::aside;
use task::below::open_below;
use task::relay::Relay;
use task::rootfs::followed;
use task::stdio::Parked;
use tokio::net::{TcpStream, UnixListener};
use tokio::sync::Notify;

/// What is said first on the stream of a connection that a container has made.
const KNOCK: u8 = 0;

fn failed(text: String) -> Status {
    Status::new(Code::Unknown, text)
}

/// The stream of this number, which the host opened for what it asks.
fn stream(parked: &Parked, number: u32) -> Result<Stream, Status> {
    let none = || failed(format!("stream {number} of the link is not there"));
    parked.take_number(number).ok_or_else(none)
}

/// Connects a stream to localhost, or to a unix socket of a container's in the share.
///
/// # Errors
/// Why there is no connection; then the stream is reset.
pub async fn dial(parked: &Parked, request: &DialRequest) -> Result<(), Status> {
    let stream = stream(parked, request.stream)?;
    if !request.path.is_empty() {
        let connected = dial_socket(request.path.clone()).await;
        let connected = connected.and_then(|socket| relay(socket, stream));
        return connected.map_err(|e| failed(format!("socket {:?}: {e}", request.path)));
    }
    let none = |_| failed(format!("port {}: there is none", request.port));
    let port = u16::try_from(request.port).map_err(none)?;
    let mut addresses = [
        SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
    ];
    // Localhost is both, to who dials it by its name.
    if request.v6 {
        addresses.reverse();
    }
    let connected = async {
        let socket = match TcpStream::connect(addresses[0]).await {
            Ok(socket) => socket,
            Err(why) => TcpStream::connect(addresses[1]).await.map_err(|_| why)?,
        };
        socket.set_nodelay(true)?;
        relay(socket.into_std()?.into(), stream)
    };
    let connected = connected.await;
    connected.map_err(|e: io::Error| failed(format!("{}: {e}", addresses[0])))
}

/// To the socket at `path` in the share, to which no link leads: it may wait for the host.
async fn dial_socket(path: String) -> io::Result<OwnedFd> {
    aside::beside(move || {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let share = open(SHARE, flags, Mode::empty())?;
        let rules = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
        let socket = open_below(share, Path::new(&path), OFlag::O_PATH, rules)?;
        task::connect::here(&followed(socket.as_fd()))
    })
    .await
}

fn relay(socket: OwnedFd, stream: Stream) -> io::Result<()> {
    let relay = Relay::new(socket, stream)?;
    tokio::task::spawn_local(async move { relay.run().await });
    Ok(())
}

/// The sockets of the host's that containers may connect to, by their names here.
#[derive(Default)]
pub struct Listeners(RefCell<HashMap<String, Rc<Offer>>>);

/// What the next who connects gets.
#[derive(Default)]
struct Offer {
    stream: RefCell<Option<Stream>>,
    made: Notify,
}

impl Listeners {
    /// Whoever connects next gets the stream of the request; listens, unless somebody does already.
    ///
    /// # Errors
    /// If the socket can't be made.
    pub fn listen(&self, parked: &Parked, request: &ListenRequest) -> Result<(), Status> {
        let name = &request.name;
        let stream = stream(parked, request.stream)?;
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err(failed(format!("socket {name:?}: no name of one")));
        }
        let mut all = self.0.borrow_mut();
        let offer = match all.get(name) {
            Some(offer) => Rc::clone(offer),
            None => {
                let bound = bind(request);
                let listener = bound.map_err(|e| failed(format!("socket {name}: {e}")))?;
                let offer = Rc::<Offer>::default();
                tokio::task::spawn_local(accept(listener, Rc::clone(&offer)));
                all.insert(name.clone(), Rc::clone(&offer));
                offer
            }
        };
        offer.stream.replace(Some(stream));
        offer.made.notify_one();
        Ok(())
    }
}

/// With the owner and the mode of the host's.
fn bind(request: &ListenRequest) -> io::Result<UnixListener> {
    fs::create_dir_all(SOCKETS)?;
    let path = Path::new(SOCKETS).join(&request.name);
    let listener = UnixListener::bind(&path)?;
    let (uid, gid) = (Uid::from_raw(request.uid), Gid::from_raw(request.gid));
    chown(&path, Some(uid), Some(gid))?;
    fs::set_permissions(&path, Permissions::from_mode(request.mode & 0o777))?;
    Ok(listener)
}

/// Others wait in the kernel, as many as it lets wait, until there is a stream for them.
async fn accept(listener: UnixListener, offer: Rc<Offer>) {
    loop {
        while offer.stream.borrow().is_none() {
            offer.made.notified().await;
        }
        let accepted = listener.accept().await;
        let begun = accepted.and_then(|(socket, _)| {
            let Some(stream) = offer.stream.take() else {
                return Ok(());
            };
            stream.try_write(&[KNOCK])?;
            relay(socket.into_std()?.into(), stream)
        });
        if let Err(e) = begun {
            log::warn!("a connection to a socket of the host's: {e}");
        }
    }
}
