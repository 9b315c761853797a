// SPDX-License-Identifier: Apache-2.0
//! Connecting to a unix socket: looking its name up may wait for a disk, so it is done beside the loop.

use crate::aside;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net;
use std::path::Path;
use tokio::net::UnixStream;

/// Connects to whoever listens at `path`.
///
/// # Errors
/// From socket(2) and connect(2): a listener whose queue is full is not waited for.
pub async fn to(path: &Path) -> io::Result<UnixStream> {
    let path = path.to_owned();
    let connected = aside::run(move || here(&path)).await?;
    UnixStream::from_std(net::UnixStream::from(connected))
}

/// [`to`], on this thread, which may wait for a disk.
///
/// # Errors
/// As there.
pub fn here(path: &Path) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd)
}
