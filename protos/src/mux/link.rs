// SPDX-License-Identifier: Apache-2.0
//! A multiplexed pipe in an event loop: it moves the bytes, and wakes who waits for them.

use super::frame::Violation;
use super::session::MARK;
use super::stream::Stream;
use super::streams::{Moved, Streams};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Waker;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

/// What one read takes from the pipe.
const BUFFER: usize = 32 << 10;

/// Who waits for a stream.
#[derive(Default)]
pub(super) struct Waiting {
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
}

/// One end of a multiplexed pipe.
pub struct Link {
    pub(super) streams: RefCell<Streams>,
    pub(super) waiting: RefCell<HashMap<u32, Waiting>>,
    /// There is something to send.
    pub(super) outgoing: Notify,
    /// There was nothing left to send.
    sent: Notify,
    /// Another session has begun.
    began: Notify,
    accepted: Notify,
    pub(super) closed: Cell<bool>,
    closing: Notify,
}

impl Link {
    /// The end that opens the streams.
    pub fn host() -> Rc<Self> {
        Self::of(Streams::host())
    }

    /// The end that accepts them.
    pub fn guest() -> Rc<Self> {
        Self::of(Streams::guest())
    }

    /// Describes the host's end for another process image, which goes on with the same pipe.
    pub fn hand_over(&self) -> Moved {
        self.streams.borrow().hand_over()
    }

    /// Goes on with the host's end of another process image.
    pub fn take_over(moved: Moved) -> Rc<Self> {
        Self::of(Streams::take_over(moved))
    }

    /// The host's end of another session with the same guest: it goes on with `numbers`, and a new
    /// stream is `next` or higher. [`super::session`] says what is lost.
    pub fn adopt(numbers: &[u32], next: u32, mark: [u8; MARK]) -> Rc<Self> {
        Self::of(Streams::adopt(numbers, next, mark))
    }

    /// The streams that are there but the first, and but `calls`.
    pub fn numbers(&self, calls: u32) -> Vec<u32> {
        let mut numbers = self.streams.borrow().numbers();
        numbers.retain(|number| *number != 0 && *number != calls);
        numbers
    }

    /// Forgets the streams of the session before that nobody goes on with ([`Link::again`]).
    pub fn forget_what_is_left(&self) {
        self.streams.borrow_mut().forget_what_is_left();
        self.outgoing.notify_one();
    }

    /// The number that the next stream will have.
    pub fn next(&self) -> u32 {
        self.streams.borrow().next()
    }

    /// From now on the guest's end outlives its pipe, until a host begins another session, with `mark`.
    pub fn set_mark(&self, mark: [u8; MARK]) {
        self.streams.borrow_mut().set_mark(mark);
    }

    pub fn is_marked(&self) -> bool {
        self.streams.borrow().is_marked()
    }

    /// Waits until a host has begun another session; by one at a time.
    pub async fn began(&self) {
        self.began.notified().await;
    }

    /// That host has named all streams that it goes on with: the others are gone.
    pub fn end_what_is_left(&self) {
        self.streams.borrow_mut().end_what_is_left();
        self.wake();
    }

    fn of(streams: Streams) -> Rc<Self> {
        Rc::new(Self {
            streams: RefCell::new(streams),
            waiting: RefCell::default(),
            outgoing: Notify::new(),
            sent: Notify::new(),
            began: Notify::new(),
            accepted: Notify::new(),
            closed: Cell::new(false),
            closing: Notify::new(),
        })
    }

    /// Moves bytes until the pipe ends; from then on every stream is gone.
    ///
    /// # Errors
    /// Why it ended: `UnexpectedEof` if the peer closed it, `InvalidData` if it broke the protocol.
    pub async fn run(
        &self,
        reader: impl AsyncRead + Unpin,
        writer: impl AsyncWrite + Unpin,
    ) -> io::Error {
        let why = self.carry(reader, writer).await;
        self.close();
        why
    }

    /// The same, but the streams stay, and go on where the pipe does, or where a host begins a session.
    /// That may be heard before the end of the pipe is.
    pub async fn carry(
        &self,
        reader: impl AsyncRead + Unpin,
        writer: impl AsyncWrite + Unpin,
    ) -> io::Error {
        tokio::select! {
            why = self.receive(reader) => why,
            why = self.send(writer) => why,
        }
    }

    async fn receive(&self, mut reader: impl AsyncRead + Unpin) -> io::Error {
        let mut buffer = vec![0; BUFFER];
        loop {
            let n = match reader.read(&mut buffer).await {
                Ok(0) => return io::ErrorKind::UnexpectedEof.into(),
                Ok(n) => n,
                Err(e) => return e,
            };
            if let Err(Violation(why)) = self.take(&buffer[..n]) {
                return io::Error::new(io::ErrorKind::InvalidData, why);
            }
            if n == buffer.len() {
                // A peer that floods us must not keep everybody else from running.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Takes what came, and wakes whoever waits for it.
    fn take(&self, bytes: &[u8]) -> Result<(), Violation> {
        let received = self.streams.borrow_mut().receive(bytes);
        if self.streams.borrow_mut().began() {
            self.began.notify_one();
            self.outgoing.notify_one();
        }
        self.wake();
        self.accepted.notify_one();
        received
    }

    fn wake(&self) {
        let touched = self.streams.borrow_mut().touched();
        let mut waiting = self.waiting.borrow_mut();
        for stream in touched {
            if let Some(waiting) = waiting.remove(&stream) {
                waiting.wake();
            }
        }
    }

    async fn send(&self, mut writer: impl AsyncWrite + Unpin) -> io::Error {
        loop {
            if self.streams.borrow().is_sent() {
                if self.streams.borrow_mut().to_send().is_empty() {
                    self.sent.notify_one();
                    self.outgoing.notified().await;
                    continue;
                }
                // Now there is room for more.
                for waiting in self.waiting.borrow_mut().values_mut() {
                    if let Some(writer) = waiting.writer.take() {
                        writer.wake();
                    }
                }
            }
            let written = poll_fn(|context| {
                let mut streams = self.streams.borrow_mut();
                Pin::new(&mut writer).poll_write(context, streams.to_send())
            });
            match written.await {
                Ok(0) => return io::ErrorKind::WriteZero.into(),
                Ok(n) => self.streams.borrow_mut().sent(n),
                Err(e) => return e,
            }
            if self.streams.borrow().is_sent()
                && let Err(e) = writer.flush().await
            {
                return e;
            }
        }
    }

    /// Waits until all that was written before [`Link::run`] is in the pipe; to be asked for once.
    pub async fn sent(&self) {
        self.sent.notified().await;
    }

    /// Every stream is gone; what has come may still be read.
    pub fn close(&self) {
        self.closed.set(true);
        for (_, waiting) in self.waiting.borrow_mut().drain() {
            waiting.wake();
        }
        self.closing.notify_waiters();
        self.accepted.notify_one();
    }

    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Waits until the pipe has ended.
    pub async fn closed(&self) {
        let closing = self.closing.notified();
        if !self.closed.get() {
            closing.await;
        }
    }

    /// Opens a stream.
    pub fn open(self: &Rc<Self>) -> Stream {
        let number = self.streams.borrow_mut().open();
        self.outgoing.notify_one();
        self.stream(number)
    }

    /// The stream that is there from the start; to be asked for once.
    pub fn first(self: &Rc<Self>) -> Stream {
        self.stream(0)
    }

    /// The stream `number` of another process image; `None` if there is no such stream. To be asked for
    /// once.
    pub fn again(self: &Rc<Self>, number: u32) -> Option<Stream> {
        let has = self.streams.borrow_mut().has(number);
        has.then(|| self.stream(number))
    }

    /// Waits for the peer to open a stream; `None` once the pipe has ended.
    pub async fn accept(self: &Rc<Self>) -> Option<Stream> {
        loop {
            if let Some(stream) = self.try_accept() {
                return Some(stream);
            }
            if self.closed.get() {
                return None;
            }
            self.accepted.notified().await;
        }
    }

    /// A stream that the peer has opened, if one waits to be accepted.
    pub fn try_accept(self: &Rc<Self>) -> Option<Stream> {
        let number = self.streams.borrow_mut().accept()?;
        Some(self.stream(number))
    }

    fn stream(self: &Rc<Self>, number: u32) -> Stream {
        Stream {
            link: Rc::clone(self),
            number,
        }
    }
}

impl Waiting {
    fn wake(self) {
        self.reader
            .into_iter()
            .chain(self.writer)
            .for_each(Waker::wake);
    }
}

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;
