//! A process's standard streams in the VM: for the engine they are FIFOs, for the host streams of
//! the link.
//!
//! The engine opens a FIFO by its path; a pipe of ours has one in /proc, so nothing is made that
//! would have to be removed. Our own copy of the engine's end keeps the pipe from reading as
//! closed until the engine has opened it.

use protos::mux::Stream;
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

/// How a request names a stream of the link instead of a path.
const SCHEME: &str = "stream://";

/// Streams that the host has opened for a process to come.
#[derive(Default)]
pub struct Parked(RefCell<HashMap<u32, Stream>>);

impl Parked {
    pub fn park(&self, stream: Stream) {
        self.0.borrow_mut().insert(stream.number(), stream);
    }

    /// The stream that `path` names; `None` if it is empty.
    fn take(&self, path: &str) -> io::Result<Option<Stream>> {
        if path.is_empty() {
            return Ok(None);
        }
        let number = path
            .strip_prefix(SCHEME)
            .and_then(|number| number.parse().ok());
        let stream = number.and_then(|number: u32| self.0.borrow_mut().remove(&number));
        let unknown = || io::Error::other(format!("{path:?} is no stream of the link"));
        stream.map(Some).ok_or_else(unknown)
    }
}

/// The engine's ends of a process's pipes, open until the engine has opened them too.
#[derive(Default)]
pub struct Held {
    ends: Vec<OwnedFd>,
    /// Dropped with the rest.
    input: Option<oneshot::Sender<()>>,
}

impl Held {
    fn path(&mut self, fd: OwnedFd) -> String {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        self.ends.push(fd);
        path
    }

    /// Connects the stream that stdin names to a pipe, and names the pipe instead. At the end of
    /// the stream `ended` is called.
    ///
    /// # Errors
    /// From pipe(2), or if it is no stream.
    pub fn input(
        &mut self,
        parked: &Parked,
        stdin: &mut String,
        ended: impl Future<Output = ()> + 'static,
    ) -> io::Result<()> {
        let Some(mut stream) = parked.take(stdin)? else {
            return Ok(());
        };
        let (reader, writer) = io::pipe()?;
        *stdin = self.path(reader.into());
        let mut writer = pipe::Sender::from_owned_fd(writer.into())?;
        let (opening, opened) = oneshot::channel();
        self.input = Some(opening);
        tokio::task::spawn_local(async move {
            // A process need not read all of its input.
            let _ = tokio::io::copy(&mut stream, &mut writer).await;
            drop(writer);
            // Before that nobody knows the process.
            let _ = opened.await;
            ended.await;
        });
        Ok(())
    }

    /// Connects a pipe to the stream that `output` names, and names the pipe instead.
    ///
    /// # Errors
    /// From pipe(2), or if it is no stream.
    pub fn output(&mut self, parked: &Parked, output: &mut String) -> io::Result<()> {
        let Some(mut stream) = parked.take(output)? else {
            return Ok(());
        };
        let (reader, writer) = io::pipe()?;
        *output = self.path(writer.into());
        let mut reader = pipe::Receiver::from_owned_fd(reader.into())?;
        tokio::task::spawn_local(async move {
            let _ = tokio::io::copy(&mut reader, &mut stream).await;
            let _ = stream.shutdown().await;
        });
        Ok(())
    }
}
