// SPDX-License-Identifier: Apache-2.0
//! The server: every request runs as its own task, until it ends or its caller gives up.
//!
//! A request is never dropped half way. When its deadline passes or its connection closes,
//! the caller gets the status at once, and the service, told through [`Context::cancelled`],
//! unwinds in its own time.
//!
//! A server can be moved into another process image (see [`Handle::freeze`]): it stops reading
//! between two frames, lets every call end but those that only wait, and describes the rest.

use super::calls::Ongoing;
use super::connection::{Connection, start_connection, start_over};
use super::service::Service;
use nix::unistd::{getegid, geteuid};
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::rc::{Rc, Weak};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;

/// Services by full name, behind one listener.
#[derive(Default)]
pub struct Server {
    services: HashMap<&'static str, Rc<dyn Service>>,
    shared: Rc<Shared>,
}

/// What a server, its connections and its handles have in common.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) frozen: Cell<bool>,
    pub(super) freeze: Notify,
    /// Half-read frames, and calls that must end before the server can be moved.
    busy: Cell<usize>,
    idle: Notify,
    pub(super) connections: RefCell<Vec<Weak<Connection>>>,
}

/// A connection on its way into another process image; its fd goes beside it.
#[derive(Debug, Serialize, Deserialize)]
pub struct MovedConnection {
    pub(super) last_stream: u32,
    pub(super) calls: Vec<MovedCall>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct MovedCall {
    pub(super) stream: u32,
    pub(super) service: String,
    pub(super) method: String,
    pub(super) payload: Vec<u8>,
    /// What is left of the caller's patience, in nanoseconds.
    pub(super) timeout: Option<u64>,
}

/// Something that must end before the server can be moved.
pub(super) struct Busy(Rc<Shared>);

impl Busy {
    pub(super) fn new(shared: &Rc<Shared>) -> Self {
        shared.busy.set(shared.busy.get() + 1);
        Self(Rc::clone(shared))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.set(self.0.busy.get() - 1);
        self.0.idle.notify_waiters();
    }
}

/// Moves a server that is being served.
#[derive(Clone)]
pub struct Handle(Rc<Shared>);

impl Handle {
    /// Stops to accept and to read, and waits until no call runs but those that only wait.
    pub async fn freeze(&self) {
        self.0.frozen.set(true);
        self.0.freeze.notify_waiters();
        while self.0.busy.get() > 0 {
            self.0.idle.notified().await;
        }
    }

    /// The connections of a frozen server live on elsewhere: to drop them here closes them no
    /// more than that.
    pub fn let_go(&self) {
        for connection in self.0.connections.borrow().iter().filter_map(Weak::upgrade) {
            connection.let_go();
        }
    }

    /// True if a frozen server can be moved now.
    pub fn is_idle(&self) -> bool {
        self.0.busy.get() == 0
    }

    /// Goes on after a freeze that led to nothing.
    pub fn thaw(&self) {
        self.0.frozen.set(false);
        self.0.freeze.notify_waiters();
    }

    /// Every call that goes on, those of each connection together.
    pub fn calls(&self) -> Vec<Ongoing> {
        let connections = self.0.connections.borrow();
        let connections = connections.iter().filter_map(Weak::upgrade);
        connections
            .flat_map(|connection| connection.calls())
            .collect()
    }

    /// Describes every connection of a frozen server; `keep` is shown the fd of each.
    ///
    /// # Errors
    /// `keep`'s.
    pub fn describe(
        &self,
        mut keep: impl FnMut(BorrowedFd<'_>, MovedConnection) -> io::Result<()>,
    ) -> io::Result<()> {
        for connection in self.0.connections.borrow().iter().filter_map(Weak::upgrade) {
            connection.describe(&mut keep)?;
        }
        Ok(())
    }
}

pub(super) type Services = HashMap<&'static str, Rc<dyn Service>>;

impl Server {
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves `service` under `name`; one service may have several names.
    pub fn add(mut self, name: &'static str, service: Rc<dyn Service>) -> Self {
        self.services.insert(name, service);
        self
    }

    pub fn handle(&self) -> Handle {
        Handle(Rc::clone(&self.shared))
    }

    /// Serves one connection, over any two ways of bytes, for as long as it lasts. It can't be moved
    /// into another process image.
    pub fn serve_over(self, stream: impl AsyncRead + AsyncWrite + 'static) {
        let (reader, writer) = tokio::io::split(stream);
        let (reader, writer) = (Box::new(reader), Box::new(writer));
        start_over(reader, writer, None, &Rc::new(self.services), &self.shared);
    }

    /// Accepts connections until the listener fails, after going on with those that `moved`
    /// brings from another process image. Dropping the future stops accepting and leaves the
    /// open connections to their tasks.
    pub async fn serve(
        self,
        listener: UnixListener,
        moved: Vec<(UnixStream, MovedConnection)>,
    ) -> io::Error {
        let (shared, services) = (self.shared, Rc::new(self.services));
        for (stream, state) in moved {
            start_connection(stream, Some(state), &services, &shared);
        }
        loop {
            while shared.frozen.get() {
                shared.freeze.notified().await;
            }
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shared.freeze.notified() => continue,
            };
            match accepted {
                Ok((stream, _)) if is_our_user(&stream) => {
                    start_connection(stream, None, &services, &shared);
                }
                Ok(_) => {}
                // Out of fds or memory: the next connection may fare better.
                Err(e) if is_passing(&e) => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(e) => return e,
            }
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    matches!(error.kind(), ConnectionAborted | Interrupted | OutOfMemory)
        || matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
}

/// B53: only peers with our own uid and gid are served (ttrpc unixcreds_linux.go).
fn is_our_user(stream: &UnixStream) -> bool {
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == geteuid().as_raw() && peer.gid() == getegid().as_raw())
}
