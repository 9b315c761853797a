// SPDX-License-Identifier: Apache-2.0
//! The standard streams of one process: from the paths a client names to the pipes, terminal or
//! logger that the process really has (contract I1 to I16).

mod client;
mod console;
mod copy;
mod ends;
mod fifo;
mod flood;
pub mod line;
mod link;
mod logger;
mod paths;
mod pipe;
mod target;
mod unread;

use crate::bundle::Bundle;
use crate::error::{Error, Result};
use crate::handover::{self, Kept, Means};
use crate::look::OfStream;
use crate::oci::Streams;
use crate::reaper::Reaper;
use crate::sys;
use client::{Client, Receiver};
use console::Console;
use copy::Copies;
use ends::{Sink, Source};
pub use link::{Ends, Parked};
use logger::Logger;
pub use paths::{Paths, check_lengths};
use pipe::Owner;
pub(crate) use pipe::{make_null, null};
use protos::mux::{Link, Stream};
use protos::ttrpc::Context;
use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

/// Whose streams these are; loggers and error messages want to know.
pub struct Of<'a> {
    pub namespace: &'a str,
    /// The exec id, or the container id for init.
    pub process: &'a str,
    pub bundle: &'a Bundle,
    pub io_uid: u32,
    pub io_gid: u32,
}

/// The streams of a process that is about to be made. Dropping it undoes everything.
pub(crate) struct Prepared {
    terminal: Option<(console::Listener, Terminal)>,
    output: Output,
    io: Io,
}

/// What is to be copied from the process's stdout and stderr. Until the OCI runtime has made the
/// process these are the runtime's own: what is in them, when that fails, is its complaint, which
/// the caller hears as an error, and no output of the container's (I9).
type Output = Vec<(Source, Sink)>;

/// What a terminal's output and input will be connected to.
struct Terminal {
    stdin: Option<Source>,
    stdout: Option<Sink>,
}

/// The streams of a process that was made.
#[derive(Default)]
pub struct Io {
    /// Our own write end of the stdin FIFO: end of file needs every client gone and CloseIO (I7).
    stdin: RefCell<Option<OwnedFd>>,
    input: Copies,
    output: Copies,
    console: RefCell<Option<Console>>,
    logger: RefCell<Option<Rc<Logger>>>,
}

/// Opens everything `paths` names, or takes what is open on a link; the streams are for the OCI
/// runtime.
///
/// # Errors
/// Code Unknown, naming the path or scheme; nothing stays open.
pub(crate) async fn prepare(
    paths: &Paths,
    ends: Option<Ends>,
    of: Of<'_>,
    reaper: &Reaper,
    context: &Context,
) -> Result<(Streams, Prepared)> {
    let io = Io::default();
    let client = match ends {
        Some(ends) => Client::over(ends),
        None => Client::open(paths, &of, &io, reaper, context).await?,
    };
    if paths.terminal {
        let terminal = Terminal {
            stdin: client.stdin,
            stdout: client.stdout.map(Receiver::sink).transpose()?,
        };
        let listener = console::Listener::bind(of.bundle, of.process).await?;
        let prepared = Prepared {
            terminal: Some((listener, terminal)),
            output: Output::new(),
            io,
        };
        return Ok((Streams::Captured, prepared));
    }
    let (uid, gid) = (of.io_uid, of.io_gid);
    let owner = Owner { uid, gid };
    let mut output = Output::new();
    let mut streams = [pipe::null()?, pipe::null()?, pipe::null()?];
    for (i, receiver) in [(1, client.stdout), (2, client.stderr)] {
        match receiver {
            None => {}
            Some(Receiver::Logger(pipe)) => streams[i] = pipe,
            Some(Receiver::Sink(sink)) => {
                let (read, write) = pipe::pipe_for(owner, pipe::End::Write)?;
                output.push((Source::pipe(read)?, sink));
                streams[i] = write;
            }
        }
    }
    if let Some(source) = client.stdin {
        let (read, write) = pipe::pipe_for(owner, pipe::End::Read)?;
        io.input.start(source, Sink::pipe(write, None)?);
        streams[0] = read;
    }
    let prepared = Prepared {
        terminal: None,
        output,
        io,
    };
    Ok((Streams::Given(streams), prepared))
}

/// Connects what `paths` name with a process on the other side of a link, where its terminal is, too:
/// a stream for each that the client has. What comes back in place of the paths names these.
///
/// # Errors
/// Code Unknown, naming the path or scheme; nothing stays open.
pub async fn connect(
    paths: &Paths,
    link: &Rc<Link>,
    of: Of<'_>,
    reaper: &Reaper,
    context: &Context,
) -> Result<(Io, Paths)> {
    let io = Io::default();
    let client = Client::open(paths, &of, &io, reaper, context).await?;
    let mut names = Paths {
        terminal: paths.terminal,
        ..Paths::default()
    };
    over(&io, client, &mut names, |name| Ok(link::open(link, name)))?;
    Ok((io, names))
}

/// The same, where the process has the streams that `names` are of already.
///
/// # Errors
/// Also if the client has not just these.
pub async fn connect_again(
    paths: &Paths,
    names: &Paths,
    link: &Rc<Link>,
    of: Of<'_>,
    reaper: &Reaper,
    context: &Context,
) -> Result<Io> {
    let io = Io::default();
    let client = Client::open(paths, &of, &io, reaper, context).await?;
    let stderr = client.stderr.is_some() && !paths.terminal;
    let wanted = [
        ("terminal", paths.terminal, names.terminal),
        ("stdin", client.stdin.is_some(), !names.stdin.is_empty()),
        ("stdout", client.stdout.is_some(), !names.stdout.is_empty()),
        ("stderr", stderr, !names.stderr.is_empty()),
    ];
    for (what, wanted, had) in wanted {
        if wanted != had {
            let had = if had { "one" } else { "none" };
            let text = format!("{what}: the process that goes on has {had}");
            return Err(Error::InvalidArgument(text));
        }
    }
    over(&io, client, &mut names.clone(), |name| {
        link::again(link, name)
    })?;
    Ok(io)
}

/// Copies between what a client has and a process's streams, which `stream` gives.
fn over(
    io: &Io,
    client: Client,
    names: &mut Paths,
    stream: impl Fn(&mut String) -> Result<Rc<Stream>>,
) -> Result<()> {
    if let Some(source) = client.stdin {
        let sink = Sink::stream(stream(&mut names.stdin)?);
        io.input.start(source, sink);
    }
    let stderr = client.stderr.filter(|_| !names.terminal);
    let outputs = [
        (client.stdout, &mut names.stdout),
        (stderr, &mut names.stderr),
    ];
    for (receiver, name) in outputs {
        if let Some(receiver) = receiver {
            let source = Source::Stream(stream(name)?);
            io.output.start(source, receiver.sink()?);
        }
    }
    Ok(())
}

impl Prepared {
    /// Where the OCI runtime shall send the pty, relative to the bundle; `None` without one.
    pub fn console_socket(&self) -> Option<&OsStr> {
        self.terminal.as_ref().map(|(listener, _)| listener.name())
    }

    /// The process is there: `started` is the OCI runtime's run, during which it sends the pty.
    ///
    /// # Errors
    /// `started`'s, or that no usable pty came.
    pub async fn connect<E>(
        self,
        started: impl Future<Output = std::result::Result<(), E>>,
        fail: impl FnOnce(E) -> Error,
    ) -> Result<Io> {
        let Self {
            terminal,
            output,
            io,
        } = self;
        let Some((listener, Terminal { stdin, stdout })) = terminal else {
            started.await.map_err(fail)?;
            io.copy_output(output);
            return Ok(io);
        };
        let mut started = std::pin::pin!(started);
        let mut pty = std::pin::pin!(listener.receive_pty());
        let master = tokio::select! {
            biased;
            master = &mut pty => {
                started.await.map_err(fail)?;
                master?
            }
            result = &mut started => {
                result.map_err(fail)?;
                // The runtime is done, so the pty is on its way or will never come. Its connection
                // may be accepted already, so the same wait goes on.
                tokio::time::timeout(Duration::from_secs(1), pty)
                    .await
                    .map_err(|_| Error::Refused("the OCI runtime sent no pty".into()))??
            }
        };
        let console = Console::new(master)?;
        if let Some(sink) = stdout {
            io.output.start(console.source(), sink);
        }
        if let Some(source) = stdin {
            io.input.start(source, console.sink());
        }
        io.console.replace(Some(console));
        Ok(io)
    }
}

impl Io {
    fn copy_output(&self, output: Output) {
        for (source, sink) in output {
            self.output.start(source, sink);
        }
    }

    /// CloseIO: our own end of stdin; the process sees end of file once the clients' are gone too.
    pub fn close_stdin(&self) {
        self.stdin.take();
    }

    /// Sets the terminal's size in characters; nothing without a terminal (T77).
    ///
    /// # Errors
    /// From the ioctl.
    pub fn resize(&self, width: u32, height: u32) -> Result<()> {
        match &*self.console.borrow() {
            Some(console) => console.resize(width, height),
            None => Ok(()),
        }
    }

    /// The process has exited: what a terminal still holds is the last of its output.
    pub fn process_exited(&self) {
        self.output.process_exited();
        if let Some(console) = &*self.console.borrow() {
            console.process_exited();
        }
    }

    /// True if a client has output to read.
    pub fn is_unread(&self) -> bool {
        self.output.is_unread()
    }

    /// The output that goes to FIFOs.
    pub fn look(&self) -> Vec<OfStream> {
        self.output.look()
    }

    /// Waits until clients have read the output, as long as they do (I9).
    pub async fn read_out(&self) {
        self.output.read_out().await;
    }

    /// Waits until all output is with the client, or the logger is done.
    pub async fn drained(&self) {
        self.output.finished().await;
        let logger = self.logger.borrow().clone();
        if let Some(logger) = logger {
            logger.finished().await;
        }
    }

    /// True if all that is not drained yet is output of those that the process has left behind.
    pub fn has_own_output(&self) -> bool {
        self.logger.borrow().is_none() && self.output.have_own()
    }

    /// Describes the streams for another process image.
    ///
    /// # Errors
    /// If no fd is free.
    pub fn hand_over(&self, kept: &mut Kept) -> io::Result<handover::Io> {
        let (stdin, console) = (self.stdin.borrow(), self.console.borrow());
        Ok(handover::Io {
            stdin: stdin.as_ref().map(|fd| kept.keep(fd)).transpose()?,
            input: self.input.hand_over(kept)?,
            output: self.output.hand_over(kept)?,
            console: console.as_ref().map(|c| c.hand_over(kept)).transpose()?,
            logger: self
                .logger
                .borrow()
                .as_ref()
                .and_then(|logger| logger.pid()),
        })
    }

    /// Goes on with streams of another process image.
    ///
    /// # Errors
    /// If an fd is not what it is said to be.
    pub fn take_over(io: handover::Io, means: &Means<'_>) -> Result<Self> {
        let adopt = |fd| sys::adopt(fd).map_err(Error::io("take over", "stdin"));
        let console = io.console.as_ref().map(Console::take_over).transpose()?;
        let logger = io
            .logger
            .map(|pid| Rc::new(Logger::take_over(pid, means.reaper)));
        let new = Self {
            stdin: RefCell::new(io.stdin.map(adopt).transpose()?),
            logger: RefCell::new(logger),
            ..Self::default()
        };
        let master = console.as_ref().map(Console::master);
        new.input.take_over(io.input, master, means.link)?;
        new.output.take_over(io.output, master, means.link)?;
        new.console.replace(console);
        Ok(new)
    }

    /// Closes every end we hold, and ends a logger that is still there.
    pub async fn close(&self) {
        self.close_stdin();
        self.input.stop();
        self.output.stop();
        self.console.take();
        let logger = self.logger.take();
        if let Some(logger) = logger {
            logger.stop().await;
        }
    }
}
