// SPDX-License-Identifier: Apache-2.0
//! Moving bytes between the two ends of a stream.
//!
//! Little at a time goes through a buffer that lives for one step only; when a page or more comes at
//! once, the bytes are spliced from pipe to pipe instead and never enter our memory. Whenever a copy
//! waits, what it has read and not yet written is in its `pending`, and nowhere else; but what is for
//! a file is with the thread that writes it, and no more is read until that is done.

use super::console::Master;
use super::ends::{Sink, Source};
use super::flood::{Flood, PAGE, splice_flood};
use super::unread;
use crate::aside;
use crate::error::{Error, Result};
use crate::handover::{self, Kept};
use crate::look::OfStream;
use crate::record;
use crate::sys;
use protos::mux::{Link, WINDOW};
use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::{Rc, Weak};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// The most that one read takes.
const BUFFER: usize = 16 << 10;

/// A set of copies that run; dropping it ends them.
#[derive(Default)]
pub struct Copies {
    list: RefCell<Vec<Entry>>,
    running: Rc<Running>,
}

#[derive(Default)]
struct Running {
    count: Cell<usize>,
    finished: Notify,
    /// Bytes were moved into a stream of a link.
    moved: Notify,
}

struct Entry {
    /// A copy that is done is gone, and its ends are closed.
    copy: Weak<Copy>,
    task: JoinHandle<()>,
    /// What the client reads, also when all is copied.
    fifo: Option<Rc<OwnedFd>>,
}

struct Copy {
    running: Rc<Running>,
    source: Source,
    sink: Sink,
    pending: RefCell<Vec<u8>>,
    /// Bytes taken out of the source so far.
    taken: Cell<u64>,
    /// How many that will have been once the process's own are out, which has ended; unknown of a
    /// terminal.
    own: Cell<Option<u64>>,
}

impl Copies {
    /// Starts to copy until the source ends; then both are closed.
    pub fn start(&self, source: Source, sink: Sink) {
        self.go_on(source, sink, Vec::new());
    }

    fn go_on(&self, source: Source, sink: Sink, pending: Vec<u8>) {
        let running = Rc::clone(&self.running);
        running.count.set(running.count.get() + 1);
        let end = End(Rc::clone(&running));
        let copy = Rc::new(Copy {
            running,
            source,
            sink,
            pending: RefCell::new(pending),
            taken: Cell::default(),
            own: Cell::default(),
        });
        let (known, fifo) = (Rc::downgrade(&copy), copy.sink.fifo().cloned());
        let task = tokio::task::spawn_local(async move {
            match copy.run().await {
                Ok(()) => copy.end(),
                Err(e) => log::debug!("stream ended: {e}"),
            }
            // Closed before anybody hears that the copy is finished.
            drop(copy);
            drop(end);
        });
        self.list.borrow_mut().push(Entry {
            copy: known,
            task,
            fifo,
        });
    }

    /// True if a client has something to read: in its FIFO, or on the way there.
    pub fn is_unread(&self) -> bool {
        let is_behind = |copy: &Weak<Copy>| copy.upgrade().is_some_and(|copy| copy.is_behind());
        let list = self.list.borrow();
        list.iter().any(|Entry { copy, fifo, .. }| {
            let fifo = fifo.as_ref();
            match fifo {
                Some(fifo) => unread::bytes(fifo) > 0 || is_behind(copy),
                None => copy
                    .upgrade()
                    .is_some_and(|copy| copy.sink.is_stream() && copy.is_behind()),
            }
        })
    }

    /// The copies to clients' FIFOs that run.
    pub fn look(&self) -> Vec<OfStream> {
        let list = self.list.borrow();
        let look = |entry: &Entry| {
            let (copy, fifo) = (entry.copy.upgrade()?, entry.fifo.as_ref()?);
            let link = format!("/proc/self/fd/{}", fifo.as_raw_fd());
            let full = copy.sink.full_since.get();
            Some(OfStream {
                path: std::fs::read_link(link)
                    .ok()?
                    .to_string_lossy()
                    .into_owned(),
                unread_bytes: unread::bytes(fifo),
                waiting_bytes: copy.pending.borrow().len() + copy.source.unread().unwrap_or(0),
                full_seconds: full.map(|since| since.elapsed().as_secs_f64()),
            })
        };
        list.iter().filter_map(look).collect()
    }

    /// Waits until nothing is unread, or clients read no more (I9).
    pub async fn read_out(&self) {
        unread::read_out(&self.fifos(), &self.running.moved, || self.is_unread()).await;
    }

    fn fifos(&self) -> Vec<Rc<OwnedFd>> {
        let list = self.list.borrow();
        list.iter().filter_map(|entry| entry.fifo.clone()).collect()
    }

    /// The process has ended: what comes later is of somebody that it has started. That it has ended
    /// comes over a link after what it has written, unless that was too much for who reads.
    pub fn process_exited(&self) {
        for copy in self.list.borrow().iter().filter_map(|it| it.copy.upgrade()) {
            let there = match &copy.source {
                Source::Stream(stream) if 2 * stream.unread() > WINDOW as usize => None,
                source => source.unread(),
            };
            let own = |there| copy.taken.get() + there as u64;
            copy.own.set(there.map(own));
        }
    }

    /// True if all that the process itself has written is copied, whoever writes on.
    pub fn have_own(&self) -> bool {
        let list = self.list.borrow();
        let mut copies = list.iter().filter_map(|entry| entry.copy.upgrade());
        copies.all(|copy| {
            let copied = copy.taken.get() - copy.pending.borrow().len() as u64;
            copy.own.get().is_some_and(|own| copied >= own)
        })
    }

    /// Waits until every copy has come to its end.
    pub async fn finished(&self) {
        while self.running.count.get() > 0 {
            self.running.finished.notified().await;
        }
    }

    /// Ends every copy now.
    pub fn stop(&self) {
        for entry in self.list.take() {
            entry.task.abort();
        }
    }

    /// Describes the copies that run.
    ///
    /// # Errors
    /// If no fd is free.
    pub fn hand_over(&self, kept: &mut Kept) -> io::Result<Vec<handover::Copy>> {
        let list = self.list.borrow();
        let running = list.iter().filter_map(|entry| entry.copy.upgrade());
        running
            .map(|copy| {
                Ok(handover::Copy {
                    source: copy.source.hand_over(kept)?,
                    sink: copy.sink.hand_over(kept)?,
                    // What is written meanwhile must not be written twice.
                    pending: match kept.is_record() {
                        true => Vec::new(),
                        false => copy.pending.borrow().clone(),
                    },
                    broken: copy.sink.is_broken(),
                })
            })
            .collect()
    }

    /// Goes on with copies of another process image; `master` is the console and `link` the link that
    /// some may name.
    ///
    /// # Errors
    /// If an fd is not what it is said to be.
    pub fn take_over(
        &self,
        copies: Vec<handover::Copy>,
        master: Option<&Rc<Master>>,
        link: Option<&Rc<Link>>,
    ) -> Result<()> {
        let none = |of: &str| Error::InvalidArgument(format!("a stream of {of} that is not there"));
        let console = || master.cloned().ok_or_else(|| none("a console"));
        let stream = |number| {
            let stream = link.and_then(|link| link.again(number));
            stream.map(Rc::new).ok_or_else(|| none("a link"))
        };
        let adopt = |fd| sys::adopt(fd).map_err(Error::io("take over", "stream"));
        for copy in copies {
            let source = match copy.source {
                handover::Source::Pipe(fd) => Source::pipe(adopt(fd)?)?,
                handover::Source::Console => Source::Console(console()?),
                handover::Source::Stream(number) => Source::Stream(stream(number)?),
            };
            let sink = match copy.sink {
                handover::Sink::Pipe { writer, reader } => {
                    Sink::pipe(adopt(writer)?, reader.map(adopt).transpose()?)?
                }
                handover::Sink::Console => Sink::console(console()?),
                handover::Sink::File(fd) => Sink::file(adopt(fd)?.into()),
                handover::Sink::Stream(number) => Sink::stream(stream(number)?),
            };
            if copy.broken {
                sink.give_up(&io::ErrorKind::BrokenPipe.into());
            }
            self.go_on(source, sink, copy.pending);
        }
        Ok(())
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        self.stop();
    }
}

struct End(Rc<Running>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        self.0.finished.notify_waiters();
        // Who reads it hears of its end once nobody keeps it.
        record::soon();
    }
}

impl Copy {
    /// True if bytes wait to be copied. What a terminal holds cannot be seen, only its end.
    fn is_behind(&self) -> bool {
        let holds = || self.source.unread().is_none_or(|bytes| bytes > 0);
        !self.sink.is_broken() && (!self.pending.borrow().is_empty() || holds())
    }

    /// All is copied. What ends by being closed is closed next; both ways of a stream end here, or its
    /// drop would reset it.
    fn end(&self) {
        self.sink.end();
        if let Source::Stream(stream) = &self.source {
            stream.end();
        }
    }

    async fn run(&self) -> io::Result<()> {
        let mut is_flood = false;
        loop {
            self.write_pending().await?;
            if is_flood
                && let Source::Pipe(from) = &self.source
                && let Some(to) = self.sink.splice_to()
            {
                match splice_flood(from, to, &self.taken, &self.sink.full_since).await {
                    Ok(Flood::Eof) => return Ok(()),
                    Ok(Flood::Trickle) => {}
                    Err(e) => self.sink.give_up(&e),
                }
            }
            match self.read_once().await? {
                0 => return Ok(()),
                n => is_flood = n >= PAGE,
            }
        }
    }

    async fn write_pending(&self) -> io::Result<()> {
        while !self.pending.borrow().is_empty() {
            if let Some(file) = self.sink.as_file() {
                aside::may_begin().await;
                let bytes = self.pending.take();
                self.sink.append(file, bytes).await;
                continue;
            }
            let step = || {
                let mut pending = self.pending.borrow_mut();
                let written = self.sink.write_some(&pending);
                pending.drain(..written);
                written
            };
            self.sink.when_writable(step).await?;
            self.progress();
        }
        Ok(())
    }

    /// Reads what is there, as far as it fits. A terminal gives 4 KiB at once and may have more; an
    /// end or an error behind them will be there the next time, too.
    fn fill(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut last = self.source.read(buffer)?;
        let mut n = last;
        while let Source::Console(_) = self.source
            && last >= PAGE / 2
            && n < buffer.len()
        {
            last = self.source.read(&mut buffer[n..]).unwrap_or(0);
            n += last;
        }
        Ok(n)
    }

    /// Reads one buffer's worth and writes what fits; 0 at the end.
    async fn read_once(&self) -> io::Result<usize> {
        // In one step, so that the buffer lives no longer than that: most streams are idle.
        let step = || -> io::Result<usize> {
            let mut buffer = vec![0; BUFFER];
            let n = self.fill(&mut buffer)?;
            self.taken.set(self.taken.get() + n as u64);
            let written = self.sink.write_some(&buffer[..n]);
            let mut pending = self.pending.borrow_mut();
            pending.extend_from_slice(&buffer[written..n]);
            Ok(n)
        };
        let n = match self.source.when_readable(step).await {
            // A terminal whose other end is closed (I12).
            Err(e) if e.raw_os_error() == Some(libc::EIO) => 0,
            other => other?,
        };
        self.progress();
        Ok(n)
    }

    /// Something went into a stream of a link: whoever waits for that looks again.
    fn progress(&self) {
        if self.sink.is_stream() {
            self.running.moved.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests;
