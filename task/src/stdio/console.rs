// SPDX-License-Identifier: Apache-2.0
//! A process's terminal: the pty comes from the OCI runtime over a socket (contract I12).

use super::ends::{Sink, Source, asynchronous};
use crate::aside;
use crate::bundle::Bundle;
use crate::error::{Error, Result};
use crate::handover::{self, Kept};
use crate::sys;
use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixListener;

/// Counts the sockets.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Waits in the bundle for the pty of one process; its socket goes with it.
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
    name: OsString,
}

impl Listener {
    /// # Errors
    /// If the socket can't be made in the bundle.
    pub async fn bind(bundle: &Bundle, process: &str) -> Result<Self> {
        let path = bundle.console_socket(process, NEXT.fetch_add(1, Relaxed));
        let name = path.file_name().unwrap_or_default().to_owned();
        let (dir, socket) = (bundle.path().to_owned(), path.clone());
        let bound = aside::run(move || {
            // A unix socket's path has room for 107 bytes, a bundle's may need more.
            let dir = File::open(dir)?;
            let short = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
            let _ = std::fs::remove_file(&socket);
            let listener =
                net::UnixListener::bind(short.join(socket.file_name().unwrap_or_default()))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        let listener = bound.await.and_then(UnixListener::from_std);
        let listener = listener.map_err(Error::io("listen on", &path))?;
        Ok(Self {
            listener,
            path,
            name,
        })
    }

    /// The socket's name in the bundle.
    pub fn name(&self) -> &OsStr {
        &self.name
    }

    /// Waits for the pty's master, which comes over the first connection: to give it up and call
    /// again is to wait for another.
    pub async fn receive_pty(&self) -> Result<OwnedFd> {
        let failed = |e: io::Error| Error::io("receive pty from", &self.path)(e);
        let (stream, _) = self.listener.accept().await.map_err(failed)?;
        loop {
            stream.readable().await.map_err(failed)?;
            match stream.try_io(Interest::READABLE, || sys::receive_fd(stream.as_fd())) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                other => return other.map_err(failed),
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.path);
        // The next socket of the process has another name, whenever this one goes.
        aside::forget(move || drop(std::fs::remove_file(path)));
    }
}

/// Our side of a pty.
pub type Master = AsyncFd<OwnedFd>;

/// The terminal of a process that runs.
pub struct Console {
    master: Rc<Master>,
    /// The process's own side. While we hold it the master never reads as closed, whatever the
    /// process closes and opens again; once the process has exited it is let go.
    peer: RefCell<Option<OwnedFd>>,
}

impl Console {
    /// # Errors
    /// If `master` is no pty's master.
    pub fn new(master: OwnedFd) -> Result<Self> {
        let peer = sys::open_pty_peer(master.as_fd()).map_err(Error::io("open", "pty"))?;
        Self::from_sides(master, Some(peer))
    }

    fn from_sides(master: OwnedFd, peer: Option<OwnedFd>) -> Result<Self> {
        let both = Interest::READABLE | Interest::WRITABLE;
        Ok(Self {
            master: Rc::new(asynchronous(master, both)?),
            peer: RefCell::new(peer),
        })
    }

    pub fn master(&self) -> &Rc<Master> {
        &self.master
    }

    pub fn source(&self) -> Source {
        Source::Console(Rc::clone(&self.master))
    }

    pub fn sink(&self) -> Sink {
        Sink::console(Rc::clone(&self.master))
    }

    pub fn process_exited(&self) {
        self.peer.take();
    }

    /// # Errors
    /// From the ioctl, or if a side is over 65,535 characters.
    pub fn resize(&self, width: u32, height: u32) -> Result<()> {
        let side = |name: &str, value: u32| {
            let text = format!("{name} {value} of the terminal is over 65535");
            u16::try_from(value).map_err(|_| Error::InvalidArgument(text))
        };
        let (width, height) = (side("width", width)?, side("height", height)?);
        sys::set_window_size(self.master.get_ref().as_fd(), width, height)
            .map_err(Error::io("resize", "pty"))
    }

    /// # Errors
    /// If no fd is free.
    pub fn hand_over(&self, kept: &mut Kept) -> io::Result<handover::Console> {
        let master = kept.keep(self.master.get_ref())?;
        let peer = self.peer.borrow();
        let peer = peer.as_ref().map(|fd| kept.keep(fd)).transpose()?;
        Ok(handover::Console { master, peer })
    }

    /// # Errors
    /// If an fd is not what it is said to be.
    pub fn take_over(console: &handover::Console) -> Result<Self> {
        let adopt = |fd| sys::adopt(fd).map_err(Error::io("take over", "pty"));
        let peer = console.peer.map(adopt).transpose()?;
        Self::from_sides(adopt(console.master)?, peer)
    }
}
