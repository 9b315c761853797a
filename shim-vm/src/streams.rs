//! The standard streams of a process in the VM: for its clients what crate `task` opens for them,
//! for the guest streams of the link.

use protos::mux::{Link, Stream};
use protos::ttrpc::Context;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use task::reaper::Reaper;
use task::stdio::{self, Io, Of, Paths};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

/// Streams that are open to the guest, for a process to come.
pub struct Ends {
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
}

/// What the guest is told in place of paths.
pub struct Names {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
}

/// What goes on between both; to drop it ends that, and the streams, whatever the guest says.
#[derive(Default)]
pub struct Copies(Vec<JoinHandle<()>>);

impl Drop for Copies {
    fn drop(&mut self) {
        for copy in &self.0 {
            copy.abort();
        }
    }
}

impl Ends {
    /// Opens a stream for each that `paths` wants; empty ones stay empty.
    pub fn open(link: &Rc<Link>, paths: &Paths) -> (Self, Names) {
        let open = |wanted: bool| wanted.then(|| link.open());
        let has_logger = paths.stdout.starts_with("binary");
        // With these stdout's says where both go.
        let both = paths.stdout.contains("://") && !paths.stdout.starts_with("fifo://");
        let ends = Self {
            stdin: open(!paths.stdin.is_empty() && (paths.terminal || !has_logger)),
            stdout: open(!paths.stdout.is_empty()),
            stderr: open(!paths.terminal && (both || !paths.stderr.is_empty())),
        };
        let name = |stream: &Option<Stream>| match stream {
            Some(stream) => format!("stream://{}", stream.number()),
            None => String::new(),
        };
        let names = Names {
            stdin: name(&ends.stdin),
            stdout: name(&ends.stdout),
            stderr: name(&ends.stderr),
        };
        (ends, names)
    }

    /// Opens what the client named, and connects it.
    ///
    /// # Errors
    /// Code Unknown, naming the path or scheme.
    pub async fn connect(
        self,
        paths: &Paths,
        of: Of<'_>,
        reaper: &Reaper,
        context: &Context,
    ) -> task::Result<(Io, Copies)> {
        // The terminal itself is the guest's; here it is one stream in and one out.
        let paths = Paths {
            stderr: if paths.terminal {
                String::new()
            } else {
                paths.stderr.clone()
            },
            ..paths.clone()
        };
        let ([stdin, stdout, stderr], io) = stdio::open(&paths, of, reaper, context).await?;
        let failed = |e| task::Error::io("connect", "stream")(e);
        let mut copies = Copies::default();
        if let Some(stream) = self.stdin {
            copies.0.push(input(stdin, stream).map_err(failed)?);
        }
        for (fd, stream) in [(stdout, self.stdout), (stderr, self.stderr)] {
            if let Some(stream) = stream {
                copies.0.push(output(stream, fd).map_err(failed)?);
            }
        }
        Ok((io, copies))
    }
}

fn input(from: OwnedFd, mut to: Stream) -> std::io::Result<JoinHandle<()>> {
    let mut from = pipe::Receiver::from_owned_fd(from)?;
    Ok(tokio::task::spawn_local(async move {
        // The process may have had enough.
        let _ = tokio::io::copy(&mut from, &mut to).await;
        let _ = to.shutdown().await;
    }))
}

fn output(mut from: Stream, to: OwnedFd) -> std::io::Result<JoinHandle<()>> {
    let mut to = pipe::Sender::from_owned_fd(to)?;
    Ok(tokio::task::spawn_local(async move {
        if let Err(e) = tokio::io::copy(&mut from, &mut to).await {
            // A process does not wait for a logger that is gone.
            log::debug!("a stream's reader is gone: {e}");
            let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
        }
        let _ = from.shutdown().await;
    }))
}
