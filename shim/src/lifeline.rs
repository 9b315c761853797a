// SPDX-License-Identifier: Apache-2.0
//! What ties a daemon to the `start` that made it: when `start` dies before it has answered,
//! nobody will ever know of the daemon, and it ends.
//!
//! ```text
//!  start:  spawn ── set up ── answer ── release ── exit
//!            │                             │
//!  daemon:   └──────────── wait ───────────┴── serve        end of file, and no word: ends
//! ```

use crate::error::{Error, Result};
use crate::sys;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;

/// `start`'s end. Dropped, with `start` or before, it ends the daemon.
pub struct Lifeline(UnixStream);

impl Lifeline {
    /// Both ends; the other is the daemon's stdin.
    ///
    /// # Errors
    /// From socketpair(2).
    pub fn new() -> io::Result<(Self, OwnedFd)> {
        let (ours, daemons) = UnixStream::pair()?;
        Ok((Self(ours), daemons.into()))
    }

    /// Lets the daemon live on its own.
    ///
    /// # Errors
    /// If it is gone.
    pub fn release(mut self) -> io::Result<()> {
        self.0.write_all(b"\n")
    }
}

/// Waits, as a daemon, until `start` has answered; stdin is /dev/null then. A stdin that is no
/// socket is none of `start`'s: the daemon was started by hand, or is another image of one.
///
/// # Errors
/// If `start` died before.
pub fn wait() -> Result<()> {
    let failed = |e: io::Error| Error::io("read", "word of `start` on stdin", e);
    let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
    let mut stdin = File::from(stdin);
    if !stdin.metadata().map_err(failed)?.file_type().is_socket() {
        return Ok(());
    }
    if stdin.read(&mut [0]).map_err(failed)? == 0 {
        return Err(Error::new("`start` ended before it had answered"));
    }
    let null = File::open("/dev/null").map_err(failed)?;
    // It stays open for the daemon's life, like the other standard streams.
    let _ = sys::move_fd(null.into(), 0).map_err(failed)?.into_raw_fd();
    Ok(())
}
