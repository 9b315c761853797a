// SPDX-License-Identifier: Apache-2.0
//! The client's side of a process's streams: what it named, opened, or a link's streams.

use super::ends::{Sink, Source};
use super::link::Ends;
use super::logger::Logger;
use super::target::{Target, target};
use super::{Io, Of, Paths, fifo};
use crate::error::Result;
use crate::reaper::Reaper;
use protos::ttrpc::Context;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;

/// The client's side of a process's streams, open.
#[derive(Default)]
pub struct Client {
    pub stdin: Option<Source>,
    pub stdout: Option<Receiver>,
    pub stderr: Option<Receiver>,
}

/// Who takes a process's output.
pub enum Receiver {
    Sink(Sink),
    /// A logger's pipe, which the process can have itself.
    Logger(OwnedFd),
}

impl Receiver {
    /// # Errors
    /// From epoll_ctl(2).
    pub fn sink(self) -> Result<Sink> {
        match self {
            Self::Sink(sink) => Ok(sink),
            Self::Logger(pipe) => Sink::pipe(pipe, None),
        }
    }
}

impl Client {
    /// Opens what the paths name; what is to live as long as the process goes into `io`.
    ///
    /// # Errors
    /// Code Unknown, naming the path or scheme; nothing stays open.
    pub async fn open(
        paths: &Paths,
        of: &Of<'_>,
        io: &Io,
        reaper: &Reaper,
        context: &Context,
    ) -> Result<Self> {
        let mut client = Self::default();
        match target(paths)? {
            Target::Nowhere => {}
            Target::Logger {
                uri,
                must_call_ready,
            } => {
                let (logger, [stdout, stderr]) =
                    Logger::start(uri, must_call_ready, of, reaper, context).await?;
                io.logger.replace(Some(Rc::new(logger)));
                client.stdout = Some(Receiver::Logger(stdout));
                client.stderr = Some(Receiver::Logger(stderr));
            }
            Target::Fifo => {
                client.stdout = receiver(&paths.stdout, context).await?;
                if !paths.terminal {
                    client.stderr = receiver(&paths.stderr, context).await?;
                }
            }
            Target::File(path) => {
                let sink = fifo::make_sink(path, context).await?;
                client.stdout = Some(Receiver::Sink(sink));
                if !paths.terminal {
                    let sink = fifo::make_sink(path, context).await?;
                    client.stderr = Some(Receiver::Sink(sink));
                }
            }
        }
        if !paths.stdin.is_empty() {
            let stdin = Path::new(fifo::path(&paths.stdin));
            let (source, hold) = fifo::open_source(stdin, context).await?;
            client.stdin = Some(source);
            io.stdin.replace(Some(hold));
        }
        Ok(client)
    }

    /// Whose client is on the other side of a link.
    pub fn over(ends: Ends) -> Self {
        let sink = |stream| Receiver::Sink(Sink::stream(Rc::new(stream)));
        Self {
            stdin: ends.stdin.map(|stream| Source::Stream(Rc::new(stream))),
            stdout: ends.stdout.map(sink),
            stderr: ends.stderr.map(sink),
        }
    }
}

async fn receiver(name: &str, context: &Context) -> Result<Option<Receiver>> {
    if name.is_empty() {
        return Ok(None);
    }
    let sink = fifo::open_sink(Path::new(fifo::path(name)), context).await?;
    Ok(Some(Receiver::Sink(sink)))
}
