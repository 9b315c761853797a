//! Moving much from one pipe to another: spliced, so that the bytes never enter our memory.

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use tokio::io::unix::AsyncFd;

/// Who writes as much at once is worth to be spliced; what is spliced goes by pages.
pub const PAGE: usize = 4 << 10;
/// The most that one splice moves.
const SPLICE: usize = 1 << 20;
/// How a flood ended.
pub enum Flood {
    Eof,
    Trickle,
}

/// Splices until the source ends or gives only little at a time.
pub async fn splice_flood(from: &AsyncFd<OwnedFd>, to: &AsyncFd<OwnedFd>) -> io::Result<Flood> {
    let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
    loop {
        match splice(from.get_ref(), None, to.get_ref(), None, SPLICE, flags) {
            Ok(0) => return Ok(Flood::Eof),
            Ok(n) if n < PAGE => return Ok(Flood::Trickle),
            // A firehose must not keep everybody else from running.
            Ok(_) | Err(Errno::EINTR) => tokio::task::yield_now().await,
            Err(Errno::EAGAIN) => {
                let mut there = from.readable().await?;
                if !is_ready(from, PollFlags::POLLIN)? {
                    there.clear_ready();
                }
                let mut room = to.writable().await?;
                if !is_ready(to, PollFlags::POLLOUT)? {
                    room.clear_ready();
                }
            }
            Err(e) => return Err(e.into()),
        }
    }
}

/// splice(2) does not say which side made it stop, and either may be ready again by now; poll(2)
/// tells of each.
fn is_ready(fd: &AsyncFd<OwnedFd>, events: PollFlags) -> io::Result<bool> {
    let mut fds = [PollFd::new(fd.get_ref().as_fd(), events)];
    Ok(poll(&mut fds, PollTimeout::ZERO)? > 0)
}
