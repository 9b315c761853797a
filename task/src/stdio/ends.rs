// SPDX-License-Identifier: Apache-2.0
//! The two ends of a stream: where bytes come from and where they go.

use super::console::Master;
use super::{line, unread};
use crate::aside;
use crate::error::{Error, Result};
use crate::handover::{self, Kept};
use crate::sys;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{read, write};
use protos::mux::Stream;
use std::cell::Cell;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Where bytes come from.
pub enum Source {
    /// A pipe or a FIFO.
    Pipe(AsyncFd<OwnedFd>),
    Console(Rc<Master>),
    Stream(Rc<Stream>),
}

impl Source {
    /// A pipe or FIFO; it becomes non-blocking.
    ///
    /// # Errors
    /// From fcntl(2) or epoll_ctl(2).
    pub fn pipe(fd: OwnedFd) -> Result<Self> {
        Ok(Self::Pipe(asynchronous(fd, Interest::READABLE)?))
    }

    /// Waits until there is something to read, and has `step` read it; again, if there was nothing
    /// after all.
    ///
    /// # Errors
    /// From epoll_wait(2), or `step`'s.
    pub async fn when_readable<T>(&self, mut step: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        loop {
            let mut ready = match self {
                Self::Stream(stream) => {
                    stream.readable().await;
                    None
                }
                Self::Pipe(fd) => Some(fd.readable().await?),
                Self::Console(master) => Some(master.readable().await?),
            };
            match (step(), &mut ready) {
                (Err(e), Some(ready)) if e.kind() == io::ErrorKind::WouldBlock => {
                    ready.clear_ready();
                }
                (Err(e), _) if is_passing(&e) => {}
                (other, _) => return other,
            }
        }
    }

    /// Reads what is there, without waiting; 0 at the end.
    ///
    /// # Errors
    /// From read(2), or as [`Stream::try_read`].
    pub fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Stream(stream) => stream.try_read(into),
            Self::Pipe(fd) => Ok(read(fd.get_ref(), into)?),
            Self::Console(master) => Ok(read(master.get_ref(), into)?),
        }
    }

    /// How many bytes wait to be read, where that can be seen: of a terminal only its end can.
    pub fn unread(&self) -> Option<usize> {
        match self {
            Self::Pipe(fd) => Some(unread::bytes(fd.get_ref())),
            Self::Stream(stream) => Some(stream.unread()),
            Self::Console(_) => None,
        }
    }

    /// # Errors
    /// If no fd is free.
    pub fn hand_over(&self, kept: &mut Kept) -> io::Result<handover::Source> {
        Ok(match self {
            Self::Pipe(fd) => handover::Source::Pipe(kept.keep(fd.get_ref())?),
            Self::Console(_) => handover::Source::Console,
            Self::Stream(stream) => handover::Source::Stream(stream.number()),
        })
    }
}

/// Where bytes go. What cannot be written is read and forgotten, because a full disk or a dead logger
/// must not block or kill the container (U12). A pipe that fails is written to no more; a file is
/// tried again with all that comes, for a disk is not full for ever.
pub struct Sink {
    target: Target,
    /// Something waits to be written, and has since then.
    pub full_since: Cell<Option<Instant>>,
    /// The last write failed.
    broken: Cell<bool>,
    /// It was logged: a disk that is full now and then must not fill the log.
    logged: Cell<bool>,
}

enum Target {
    /// A pipe, or a FIFO whose read end we hold too.
    Pipe {
        writer: AsyncFd<OwnedFd>,
        reader: Option<Rc<OwnedFd>>,
    },
    Console(Rc<Master>),
    Stream(Rc<Stream>),
    /// A file opened for appending; whoever writes to it may have to wait for a disk.
    File(Arc<File>),
}

/// A sink takes nothing: since now, if it did before.
pub fn note_full(since: &Cell<Option<Instant>>) {
    since.set(since.get().or_else(|| Some(Instant::now())));
}

impl Sink {
    /// A pipe, or a FIFO and our own read end of it; it becomes non-blocking.
    ///
    /// # Errors
    /// From fcntl(2) or epoll_ctl(2).
    pub fn pipe(writer: OwnedFd, reader: Option<OwnedFd>) -> Result<Self> {
        let writer = asynchronous(writer, Interest::WRITABLE)?;
        let reader = reader.map(Rc::new);
        Ok(Self::to(Target::Pipe { writer, reader }))
    }

    pub fn console(master: Rc<Master>) -> Self {
        Self::to(Target::Console(master))
    }

    pub fn stream(stream: Rc<Stream>) -> Self {
        Self::to(Target::Stream(stream))
    }

    pub fn file(file: File) -> Self {
        Self::to(Target::File(Arc::new(file)))
    }

    fn to(target: Target) -> Self {
        Self {
            target,
            full_since: Cell::new(None),
            broken: Cell::new(false),
            logged: Cell::new(false),
        }
    }

    /// Waits until `step` can write something, and has it do so; it says how much that was. A file is
    /// written elsewhere.
    ///
    /// # Errors
    /// From epoll_wait(2).
    pub async fn when_writable(&self, step: impl FnOnce() -> usize) -> io::Result<()> {
        note_full(&self.full_since);
        let mut ready = match &self.target {
            Target::Pipe { writer, .. } => Some(writer.writable().await?),
            Target::Console(master) => Some(master.writable().await?),
            Target::Stream(stream) => {
                stream.writable().await;
                None
            }
            Target::File(_) => None,
        };
        match (step(), &mut ready) {
            (0, Some(ready)) => ready.clear_ready(),
            _ => self.full_since.set(None),
        }
        Ok(())
    }

    /// True if it is a stream of a link, which takes only what the other side has room for.
    pub fn is_stream(&self) -> bool {
        matches!(self.target, Target::Stream(_))
    }

    /// No more comes: the other side of a link reads the end. All else tells that by being closed.
    pub fn end(&self) {
        if let Target::Stream(stream) = &self.target {
            stream.end();
        }
    }

    /// The file, if it is one: it is not written on the loop.
    pub fn as_file(&self) -> Option<&Arc<File>> {
        match &self.target {
            Target::File(file) => Some(file),
            _ => None,
        }
    }

    /// The pipe to splice to, if it is one and still works.
    pub fn splice_to(&self) -> Option<&AsyncFd<OwnedFd>> {
        match &self.target {
            Target::Pipe { writer, .. } if !self.broken.get() => Some(writer),
            _ => None,
        }
    }

    /// Our own read end of the FIFO, if it is one.
    pub fn fifo(&self) -> Option<&Rc<OwnedFd>> {
        match &self.target {
            Target::Pipe { reader, .. } => reader.as_ref(),
            _ => None,
        }
    }

    /// Writes what fits without waiting, and tells how much that was: to a file nothing.
    pub fn write_some(&self, bytes: &[u8]) -> usize {
        if self.broken.get() && !matches!(self.target, Target::File(_)) {
            return bytes.len();
        }
        let written = match &self.target {
            Target::File(_) => Ok(0),
            Target::Pipe { writer: fd, .. } => write(fd.get_ref(), bytes).map_err(io::Error::from),
            Target::Console(fd) => write(fd.get_ref(), bytes).map_err(io::Error::from),
            Target::Stream(stream) => stream.try_write(bytes),
        };
        match written {
            Ok(n) => n,
            Err(e) if is_passing(&e) => 0,
            Err(e) => {
                self.give_up(&e);
                bytes.len()
            }
        }
    }

    /// Writes all of `bytes` to `file`, which is the sink's, beside the loop. After a failure, what
    /// is written begins a line of its own: the one before may be torn.
    pub async fn append(&self, file: &Arc<File>, bytes: Vec<u8>) {
        let (file, is_torn) = (Arc::clone(file), self.broken.get());
        let append = move || {
            if is_torn && !line::is_whole(&file)? {
                (&*file).write_all(b"\n")?;
            }
            (&*file).write_all(&bytes)
        };
        match aside::run(append).await {
            Ok(()) => self.broken.set(false),
            Err(e) => self.give_up(&e),
        }
    }

    /// Writes to it no more, if it is no file.
    pub fn give_up(&self, error: &io::Error) {
        self.broken.set(true);
        // A process may well close its stdin; only then is the pipe broken for good reason.
        if error.kind() == io::ErrorKind::BrokenPipe {
            log::debug!("a stream's reader is gone");
        } else if !self.logged.replace(true) {
            log::warn!("a stream can't be written, what comes is lost: {error}");
        }
    }

    pub fn is_broken(&self) -> bool {
        self.broken.get()
    }

    /// # Errors
    /// If no fd is free.
    pub fn hand_over(&self, kept: &mut Kept) -> io::Result<handover::Sink> {
        Ok(match &self.target {
            Target::Pipe { writer, reader } => handover::Sink::Pipe {
                writer: kept.keep(writer.get_ref())?,
                reader: reader.as_ref().map(|fd| kept.keep(fd)).transpose()?,
            },
            Target::Console(_) => handover::Sink::Console,
            Target::Stream(stream) => handover::Sink::Stream(stream.number()),
            Target::File(file) => handover::Sink::File(kept.keep(file)?),
        })
    }
}

pub fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// Makes `fd` non-blocking and puts it into the loop.
///
/// # Errors
/// From fcntl(2) or epoll_ctl(2).
pub fn asynchronous(fd: OwnedFd, interest: Interest) -> Result<AsyncFd<OwnedFd>> {
    let failed = |e: io::Error| Error::io("watch", "stream")(e);
    let flags = fcntl(&fd, FcntlArg::F_GETFL).map_err(|e| failed(e.into()))?;
    let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
    fcntl(&fd, FcntlArg::F_SETFL(flags)).map_err(|e| failed(e.into()))?;
    sys::watch(fd, interest).map_err(failed)
}
