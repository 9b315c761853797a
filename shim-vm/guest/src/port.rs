// SPDX-License-Identifier: Apache-2.0
//! The serial port that the host listens at, in the event loop.

use nix::fcntl::{OFlag, open};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt,
    socket,
};
use nix::sys::stat::Mode;
use nix::sys::time::{TimeVal, TimeValLike};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// What QEMU's `virtserialport` is called.
const NAME: &str = "agent";
const PORTS: &str = "/sys/class/virtio-ports";
/// Seconds that a machine may take for its next word of a device.
const NAMED: i64 = 10;

/// One owner of the port; clones share it.
#[derive(Clone)]
pub struct Port(Rc<AsyncFd<OwnedFd>>);

impl Port {
    /// Opens the port by its name.
    ///
    /// # Errors
    /// If there is none, or it can't be opened.
    pub fn open() -> Result<Self, String> {
        // QEMU tells a port's name after the port is there: the kernel says so when it comes.
        let news = uevents().map_err(|e| format!("uevents: {e}"))?;
        let ours = loop {
            if let Some(name) = find().map_err(|e| format!("{PORTS}: {e}"))? {
                break name;
            }
            recv(news.as_raw_fd(), &mut [0; 4096], MsgFlags::empty())
                .map_err(|e| format!("{PORTS}: no port is called {NAME}: {e}"))?;
        };
        let path = std::path::Path::new("/dev").join(ours);
        let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let fd =
            open(&path, flags, Mode::empty()).map_err(|e| format!("{}: {e}", path.display()))?;
        connected(&fd).map_err(|e| format!("{}: {e}", path.display()))?;
        Self::of(fd).map_err(|e| format!("{}: {e}", path.display()))
    }

    fn of(fd: OwnedFd) -> io::Result<Self> {
        let fd = task::sys::watch(fd, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self(Rc::new(fd)))
    }

    /// The host has hung up: waits until one listens again. There must be no clone.
    ///
    /// # Errors
    /// If there is one, or from epoll(7).
    pub async fn connected_again(self) -> io::Result<Self> {
        let port = Rc::try_unwrap(self.0).map_err(|_| io::Error::other("it is in use"))?;
        let port = port.into_inner();
        let news = Connections::of(&port)?;
        let told = task::sys::watch(news.0.0.try_clone()?, Interest::READABLE)?;
        loop {
            // What it tells is told once, so that nothing comes between the two looks.
            let mut ready = told.readable().await?;
            if news.wait(EpollTimeout::ZERO)? {
                return Self::of(port);
            }
            ready.clear_ready();
        }
    }
}

/// Tells when QEMU has told the kernel that the host listens, which it does after the port's name.
/// Before that a read finds the end of the stream, and the port is hung up (EPOLLHUP), which the event
/// loop takes for final.
struct Connections(Epoll);

impl Connections {
    fn of(port: &OwnedFd) -> nix::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        // Each change is told once: a port that stays hung up does not wake us again.
        let flags = EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        epoll.add(port, EpollEvent::new(flags, 0))?;
        Ok(Self(epoll))
    }

    /// Waits for the next change, and says whether the host listens.
    fn wait(&self, timeout: EpollTimeout) -> nix::Result<bool> {
        let mut events = [EpollEvent::empty()];
        match self.0.wait(&mut events, timeout) {
            Ok(told) => Ok(told > 0 && !events[0].events().contains(EpollFlags::EPOLLHUP)),
            Err(nix::Error::EINTR) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

/// Waits until the host listens.
fn connected(port: &OwnedFd) -> nix::Result<()> {
    let news = Connections::of(port)?;
    while !news.wait(EpollTimeout::NONE)? {}
    Ok(())
}

/// The port of our name, if there is one by now.
fn find() -> io::Result<Option<OsString>> {
    let is_ours = |dir: &fs::DirEntry| {
        task::proc::text(dir.path().join("name")).is_ok_and(|name| name.trim() == NAME)
    };
    let ours = fs::read_dir(PORTS)?.flatten().find(is_ours);
    Ok(ours.map(|dir| dir.file_name()))
}

/// What the kernel tells of devices from now on (netlink(7)).
fn uevents() -> nix::Result<OwnedFd> {
    const KERNEL: u32 = 1;
    let uevents = SockProtocol::NetlinkKObjectUEvent;
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, uevents)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL))?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(NAMED))?;
    Ok(socket)
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
                // It was hung up, and may be so no more: the event loop would say so for ever.
                Err(nix::Error::EAGAIN) if ready.ready().is_read_closed() => {
                    return Poll::Ready(Ok(()));
                }
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
                Err(nix::Error::EAGAIN) if ready.ready().is_write_closed() => {
                    return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
                }
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
