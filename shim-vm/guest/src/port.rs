//! The serial port that the host listens at, in the event loop.

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// What QEMU's `virtserialport` is called.
const NAME: &str = "agent";
const PORTS: &str = "/sys/class/virtio-ports";

/// One owner of the port; clones share it.
#[derive(Clone)]
pub struct Port(Rc<AsyncFd<OwnedFd>>);

impl Port {
    /// Opens the port by its name.
    ///
    /// # Errors
    /// If there is none, or it can't be opened.
    pub fn open() -> Result<Self, String> {
        let entries = fs::read_dir(PORTS).map_err(|e| format!("{PORTS}: {e}"))?;
        let is_ours = |dir: &fs::DirEntry| {
            fs::read_to_string(dir.path().join("name")).is_ok_and(|name| name.trim() == NAME)
        };
        let ours = entries.flatten().find(is_ours);
        let ours = ours.ok_or_else(|| format!("{PORTS}: no port is called {NAME}"))?;
        let path = std::path::Path::new("/dev").join(ours.file_name());
        let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let fd =
            open(&path, flags, Mode::empty()).map_err(|e| format!("{}: {e}", path.display()))?;
        let fd = task::sys::watch(fd, Interest::READABLE | Interest::WRITABLE);
        Ok(Self(Rc::new(
            fd.map_err(|e| format!("{}: {e}", path.display()))?,
        )))
    }
}

impl AsyncRead for Port {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
            match nix::unistd::read(self.0.get_ref(), buffer.initialize_unfilled()) {
                Err(nix::Error::EAGAIN) => ready.clear_ready(),
                Err(e) => return Poll::Ready(Err(e.into())),
                Ok(n) => {
                    buffer.advance(n);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for Port {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(cx))?;
            match nix::unistd::write(self.0.get_ref(), bytes) {
                Err(nix::Error::EAGAIN) => ready.clear_ready(),
                Err(e) => return Poll::Ready(Err(e.into())),
                Ok(n) => return Poll::Ready(Ok(n)),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
