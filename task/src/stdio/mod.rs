//! The standard streams of one process: from the paths a client names to the pipes, terminal or
//! logger that the process really has (contract I1 to I16).

mod console;
mod copy;
mod ends;
mod fifo;
mod flood;
pub mod line;
mod logger;
mod paths;
mod pipe;
mod target;
mod unread;

use crate::bundle::Bundle;
use crate::error::{Error, Result};
use crate::handover::{self, Kept};
use crate::reaper::Reaper;
use crate::runtime::Streams;
use crate::sys;
use console::Console;
use copy::Copies;
use ends::{Sink, Source};
use logger::Logger;
pub use paths::{Paths, check_lengths};
use pipe::Owner;
use protos::ttrpc::Context;
use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;
use target::{Target, target};

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

/// Opens everything `paths` names; the streams are for the OCI runtime.
///
/// # Errors
/// Code Unknown, naming the path or scheme; nothing stays open.
pub(crate) async fn prepare(
    paths: &Paths,
    of: Of<'_>,
    reaper: &Reaper,
    context: &Context,
) -> Result<(Streams, Prepared)> {
    if paths.terminal {
        return prepare_terminal(paths, target(paths)?, of, reaper, context).await;
    }
    let (streams, output, io) = open_ends(paths, of, reaper, context).await?;
    let prepared = Prepared {
        terminal: None,
        output,
        io,
    };
    Ok((Streams::Given(streams.map(Stdio::from)), prepared))
}

/// The process's ends of stdin, stdout and stderr, for whoever plays it, terminal or not. Beside
/// a logger only a terminal takes input.
///
/// # Errors
/// Code Unknown, naming the path or scheme; nothing stays open.
pub async fn open(
    paths: &Paths,
    of: Of<'_>,
    reaper: &Reaper,
    context: &Context,
) -> Result<([OwnedFd; 3], Io)> {
    let (streams, output, io) = open_ends(paths, of, reaper, context).await?;
    io.copy_output(output);
    Ok((streams, io))
}

async fn open_ends(
    paths: &Paths,
    of: Of<'_>,
    reaper: &Reaper,
    context: &Context,
) -> Result<([OwnedFd; 3], Output, Io)> {
    let target = target(paths)?;
    let (io, mut output) = (Io::default(), Output::new());
    let (uid, gid) = (of.io_uid, of.io_gid);
    let owner = Owner { uid, gid };
    let mut streams = [pipe::null()?, pipe::null()?, pipe::null()?];
    let takes_input = paths.terminal || !matches!(target, Target::Logger { .. });
    match target {
        Target::Nowhere => {}
        Target::Logger {
            uri,
            must_call_ready,
        } => {
            let (logger, [stdout, stderr]) =
                Logger::start(uri, must_call_ready, &of, owner, reaper, context).await?;
            io.logger.replace(Some(Rc::new(logger)));
            streams[1] = stdout;
            streams[2] = stderr;
        }
        Target::Fifo | Target::File(_) => {
            for (i, name) in [(1, &paths.stdout), (2, &paths.stderr)] {
                let sink = match target {
                    Target::File(path) => fifo::make_sink(path, context).await?,
                    _ if name.is_empty() => continue,
                    _ => fifo::open_sink(Path::new(fifo::path(name)), context).await?,
                };
                let (read, write) = pipe::pipe_for(owner, pipe::End::Write)?;
                output.push((Source::pipe(read)?, sink));
                streams[i] = write;
            }
        }
    }
    if takes_input && !paths.stdin.is_empty() {
        let stdin = Path::new(fifo::path(&paths.stdin));
        let (source, hold) = fifo::open_source(stdin, context).await?;
        let (read, write) = pipe::pipe_for(owner, pipe::End::Read)?;
        io.input.start(source, Sink::pipe(write, None)?);
        io.stdin.replace(Some(hold));
        streams[0] = read;
    }
    Ok((streams, output, io))
}

async fn prepare_terminal(
    paths: &Paths,
    target: Target<'_>,
    of: Of<'_>,
    reaper: &Reaper,
    context: &Context,
) -> Result<(Streams, Prepared)> {
    let io = Io::default();
    let stdout = match target {
        Target::Nowhere => None,
        Target::Fifo if paths.stdout.is_empty() => None,
        Target::Fifo => Some(fifo::open_sink(Path::new(fifo::path(&paths.stdout)), context).await?),
        Target::File(path) => Some(fifo::make_sink(path, context).await?),
        Target::Logger {
            uri,
            must_call_ready,
        } => {
            let owner = Owner { uid: 0, gid: 0 };
            let (logger, [stdout, _]) =
                Logger::start(uri, must_call_ready, &of, owner, reaper, context).await?;
            io.logger.replace(Some(Rc::new(logger)));
            Some(Sink::pipe(stdout, None)?)
        }
    };
    let mut stdin = None;
    if !paths.stdin.is_empty() {
        let name = Path::new(fifo::path(&paths.stdin));
        let (source, hold) = fifo::open_source(name, context).await?;
        stdin = Some(source);
        io.stdin.replace(Some(hold));
    }
    let listener = console::Listener::bind(of.bundle, of.process).await?;
    let prepared = Prepared {
        terminal: Some((listener, Terminal { stdin, stdout })),
        output: Output::new(),
        io,
    };
    Ok((Streams::Captured, prepared))
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
    pub fn take_over(io: handover::Io, reaper: &Reaper) -> Result<Self> {
        let adopt = |fd| sys::adopt(fd).map_err(Error::io("take over", "stdin"));
        let console = io.console.as_ref().map(Console::take_over).transpose()?;
        let logger = io.logger.map(|pid| Rc::new(Logger::take_over(pid, reaper)));
        let new = Self {
            stdin: RefCell::new(io.stdin.map(adopt).transpose()?),
            logger: RefCell::new(logger),
            ..Self::default()
        };
        let master = console.as_ref().map(Console::master);
        new.input.take_over(io.input, master)?;
        new.output.take_over(io.output, master)?;
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
