// SPDX-License-Identifier: Apache-2.0
//! One stream of a multiplexed pipe, in an event loop.

use super::link::Link;
use super::streams::{Gone, One};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// One stream. Its end is told by `shutdown`; to drop it before both ends have ended resets it.
pub struct Stream {
    pub(super) link: Rc<Link>,
    pub(super) number: u32,
}

impl Stream {
    /// The same on both sides.
    pub fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.link.streams.borrow_mut().forget(self.number);
        self.link.waiting.borrow_mut().remove(&self.number);
        self.link.outgoing.notify_one();
    }
}

/// What a stream's two ways of waiting have in common with those of a pipe that does not block.
impl Stream {
    /// Reads what has come; 0 at the end.
    ///
    /// # Errors
    /// `WouldBlock` if nothing has come yet; `ConnectionReset` if nothing will, and no end.
    pub fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
        let link = &self.link;
        let read = link.streams.borrow_mut().read(self.number, into);
        match read {
            Ok(Some(n)) => {
                // There may be credit to tell of.
                link.outgoing.notify_one();
                Ok(n)
            }
            Ok(None) if !link.closed.get() => Err(io::ErrorKind::WouldBlock.into()),
            Ok(None) | Err(Gone) => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }

    /// Writes what there is room for, which is not nothing.
    ///
    /// # Errors
    /// `WouldBlock` if there is none now; `BrokenPipe` if nobody will read it.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let link = &self.link;
        if link.closed.get() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let written = link.streams.borrow_mut().write(self.number, bytes);
        match written {
            Ok(0) if !bytes.is_empty() => Err(io::ErrorKind::WouldBlock.into()),
            Ok(n) => {
                link.outgoing.notify_one();
                Ok(n)
            }
            Err(Gone) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Waits until [`Stream::try_read`] need not; by one at a time.
    pub async fn readable(&self) {
        poll_fn(|context| self.poll_readable(context)).await;
    }

    /// Waits until [`Stream::try_write`] need not; by one at a time.
    pub async fn writable(&self) {
        poll_fn(|context| self.poll_writable(context)).await;
    }

    /// Waits until it is gone, which its end does not make it; in place of [`Stream::readable`].
    pub async fn gone(&self) {
        poll_fn(|context| {
            let link = &self.link;
            let is_there = |one: &One| !one.reset;
            let one = link.streams.borrow().all.get(&self.number).map(is_there);
            if link.closed.get() || one != Some(true) {
                return Poll::Ready(());
            }
            let mut waiting = link.waiting.borrow_mut();
            waiting.entry(self.number).or_default().reader = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn poll_readable(&self, context: &mut Context<'_>) -> Poll<()> {
        let link = &self.link;
        if link.closed.get() || link.streams.borrow().is_readable(self.number) {
            return Poll::Ready(());
        }
        let mut waiting = link.waiting.borrow_mut();
        waiting.entry(self.number).or_default().reader = Some(context.waker().clone());
        Poll::Pending
    }

    fn poll_writable(&self, context: &mut Context<'_>) -> Poll<()> {
        let link = &self.link;
        if link.closed.get() || link.streams.borrow().is_writable(self.number) {
            return Poll::Ready(());
        }
        let mut waiting = link.waiting.borrow_mut();
        waiting.entry(self.number).or_default().writer = Some(context.waker().clone());
        Poll::Pending
    }

    /// How many bytes have come that were not read.
    pub fn unread(&self) -> usize {
        self.link.streams.borrow().unread(self.number)
    }

    /// Sends no more: the peer reads the end.
    pub fn end(&self) {
        self.link.streams.borrow_mut().end(self.number);
        self.link.outgoing.notify_one();
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_readable(context));
        let read = self.try_read(buffer.initialize_unfilled());
        Poll::Ready(read.map(|n| buffer.advance(n)))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_writable(context));
        Poll::Ready(self.try_write(bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end();
        Poll::Ready(Ok(()))
    }
}
