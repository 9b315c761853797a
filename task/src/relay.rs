// SPDX-License-Identifier: Apache-2.0
//! Relays: bytes both ways between a socket and a stream of a link, each way until its own end.
//!
//! Whatever a relay has taken out of one and not yet put into the other is in `pending`: so it can go on
//! in another process image. It takes nothing that the other has no room for, but one buffer's worth. An
//! end of one way is told as such; anything else resets both.

use crate::handover::Kept;
use crate::sys;
use nix::libc;
use nix::sys::socket::sockopt::Linger;
use nix::sys::socket::{MsgFlags, Shutdown, send, setsockopt, shutdown};
use nix::unistd::read;
use protos::mux::{Link, Stream};
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::{Rc, Weak};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;

/// The most that one read takes.
const BUFFER: usize = 16 << 10;

/// A set of relays that run, no more than so many; dropping it ends them.
pub struct Relays {
    most: usize,
    taken: Rc<Cell<usize>>,
    running: RefCell<Vec<(Weak<Relay>, AbortHandle)>>,
    /// How many there have been.
    begun: Cell<u64>,
}

/// The right to one relay.
pub struct Slot(Rc<Cell<usize>>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// A relay, for another process image.
#[derive(Debug, Serialize, Deserialize)]
pub struct Moved {
    socket: i32,
    stream: u32,
    to_link: Way,
    to_socket: Way,
}

impl Relays {
    pub fn new(most: usize) -> Self {
        Self {
            most,
            taken: Rc::default(),
            running: RefCell::default(),
            begun: Cell::default(),
        }
    }

    /// The right to one more; `None` if there are as many as there may be.
    pub fn slot(&self) -> Option<Slot> {
        let taken = self.taken.get();
        (taken < self.most).then(|| {
            self.taken.set(taken + 1);
            self.begun.set(self.begun.get() + 1);
            Slot(Rc::clone(&self.taken))
        })
    }

    /// How many run, or are about to, and how many there have been.
    pub fn count(&self) -> (usize, u64) {
        (self.taken.get(), self.begun.get())
    }

    /// Begins one; the socket does not block. What comes back can end it: then both are reset.
    ///
    /// # Errors
    /// From epoll_ctl(2).
    pub fn start(&self, slot: Slot, socket: OwnedFd, stream: Stream) -> io::Result<AbortHandle> {
        Ok(self.go_on(slot, Relay::new(socket, stream)?))
    }

    fn go_on(&self, slot: Slot, relay: Relay) -> AbortHandle {
        let relay = Rc::new(relay);
        let mut running = self.running.borrow_mut();
        running.retain(|(relay, _)| relay.strong_count() > 0);
        let known = Rc::downgrade(&relay);
        let task = tokio::task::spawn_local(async move {
            let _slot = slot;
            relay.run().await;
        });
        running.push((known, task.abort_handle()));
        task.abort_handle()
    }

    /// Describes those that run, for another process image. One that takes the place of this process
    /// when it is dead can't know what is pending: those end.
    ///
    /// # Errors
    /// If no fd is free.
    pub fn hand_over(&self, kept: &mut Kept) -> io::Result<Vec<Moved>> {
        if kept.is_record() {
            return Ok(Vec::new());
        }
        let running = self.running.borrow();
        let running = running.iter().filter_map(|(relay, _)| relay.upgrade());
        let moved = running.map(|relay| {
            Ok(Moved {
                socket: kept.keep(relay.socket.get_ref())?,
                stream: relay.stream.number(),
                to_link: relay.to_link.clone(),
                to_socket: relay.to_socket.clone(),
            })
        });
        moved.collect()
    }

    /// Goes on with those of another process image.
    ///
    /// # Errors
    /// If an fd or a stream is not what it is said to be.
    pub fn take_over(&self, moved: Vec<Moved>, link: &Rc<Link>) -> io::Result<()> {
        for relay in moved {
            let none = || io::Error::other(format!("stream {} is gone", relay.stream));
            let stream = link.again(relay.stream).ok_or_else(none)?;
            let slot = self
                .slot()
                .ok_or_else(|| io::Error::other("too many relays"))?;
            let relay = Relay {
                to_link: relay.to_link,
                to_socket: relay.to_socket,
                ..Relay::new(sys::adopt(relay.socket)?, stream)?
            };
            self.go_on(slot, relay);
        }
        Ok(())
    }
}

impl Drop for Relays {
    fn drop(&mut self) {
        for (_, task) in self.running.take() {
            task.abort();
        }
    }
}

/// One way of a relay.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Way {
    pending: RefCell<Vec<u8>>,
    ended: Cell<bool>,
}

impl Way {
    fn is_pending(&self) -> bool {
        !self.pending.borrow().is_empty()
    }

    fn wrote(&self, bytes: usize) {
        let mut pending = self.pending.borrow_mut();
        pending.drain(..bytes);
        if pending.is_empty() {
            // Most relays are idle.
            *pending = Vec::new();
        }
    }
}

/// One relay.
pub struct Relay {
    socket: AsyncFd<OwnedFd>,
    stream: Stream,
    to_link: Way,
    to_socket: Way,
}

impl Relay {
    /// One that has not begun; the socket does not block.
    ///
    /// # Errors
    /// From epoll_ctl(2).
    pub fn new(socket: OwnedFd, stream: Stream) -> io::Result<Self> {
        Ok(Self {
            socket: sys::watch(socket, Interest::READABLE | Interest::WRITABLE)?,
            stream,
            to_link: Way::default(),
            to_socket: Way::default(),
        })
    }

    /// Moves bytes until both ways have ended; who is at the other end of the socket hears of anything
    /// else as of a reset.
    pub async fn run(&self) {
        let both = async {
            self.until_said().await?;
            // It goes on where it was.
            self.receive().await
        };
        if let Err(e) = both.await {
            log::debug!("stream {}: {e}", self.stream.number());
            reset(self.socket.get_ref().as_fd());
        }
    }

    /// Moves bytes until the socket has ended, and no longer: for one whose end is all that counts.
    ///
    /// # Errors
    /// If the other end of the link is gone.
    pub async fn until_said(&self) -> io::Result<()> {
        let received = async {
            self.receive().await?;
            self.stream.gone().await;
            Err(io::ErrorKind::ConnectionReset.into())
        };
        tokio::select! {
            biased;
            gone = received => gone,
            said = self.send() => said,
        }
    }

    /// From the socket to the link.
    async fn send(&self) -> io::Result<()> {
        let way = &self.to_link;
        while !way.ended.get() {
            self.stream.writable().await;
            if way.is_pending() {
                let written = passing(self.stream.try_write(&way.pending.borrow()))?;
                way.wrote(written);
                continue;
            }
            let read = |socket: &OwnedFd| {
                let mut buffer = vec![0; BUFFER];
                let n = read(socket, &mut buffer)?;
                if n > 0 {
                    let written = passing(self.stream.try_write(&buffer[..n]))?;
                    let mut pending = way.pending.borrow_mut();
                    pending.extend_from_slice(&buffer[written..n]);
                }
                Ok(n)
            };
            if self.socket.async_io(Interest::READABLE, read).await? == 0 {
                self.stream.end();
                way.ended.set(true);
            }
        }
        Ok(())
    }

    /// From the link to the socket.
    async fn receive(&self) -> io::Result<()> {
        let way = &self.to_socket;
        while !way.ended.get() {
            if way.is_pending() {
                let write = |socket: &OwnedFd| {
                    let fd = socket.as_raw_fd();
                    Ok(send(fd, &way.pending.borrow(), MsgFlags::MSG_NOSIGNAL)?)
                };
                let written = self.socket.async_io(Interest::WRITABLE, write).await?;
                way.wrote(written);
                continue;
            }
            self.stream.readable().await;
            if self.take()? == Some(0) {
                shutdown(self.socket.get_ref().as_raw_fd(), Shutdown::Write)?;
                way.ended.set(true);
            }
        }
        Ok(())
    }

    /// What has come over the link is pending; 0 is its end.
    fn take(&self) -> io::Result<Option<usize>> {
        let mut buffer = vec![0; BUFFER];
        match self.stream.try_read(&mut buffer) {
            Ok(n) => {
                let mut pending = self.to_socket.pending.borrow_mut();
                pending.extend_from_slice(&buffer[..n]);
                Ok(Some(n))
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// What can't be written now is written later.
fn passing(written: io::Result<usize>) -> io::Result<usize> {
    match written {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(0),
        written => written,
    }
}

/// Whoever is at the other end of `socket` hears of its close as of a reset, if that is TCP's.
pub fn reset(socket: BorrowedFd<'_>) {
    let at_once = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    let _ = setsockopt(&socket, Linger, &at_once);
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
