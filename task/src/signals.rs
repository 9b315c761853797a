// SPDX-License-Identifier: Apache-2.0
//! Signals as something to wait for (signalfd(2)): no handlers, no interrupted calls.

use crate::sys;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The size of a `signalfd_siginfo`, whose first four bytes are the signal's number.
const SIGINFO: usize = 128;

pub struct Signals {
    fd: AsyncFd<OwnedFd>,
}

impl Signals {
    /// Takes `signals` over for this thread, and for all it starts from now on but what
    /// [`crate::reaper::Reaper::spawn`] starts.
    ///
    /// # Errors
    /// From sigprocmask(2), signalfd(2) or the runtime's epoll.
    pub fn new(signals: impl IntoIterator<Item = Signal>) -> io::Result<Self> {
        let set: SigSet = signals.into_iter().collect();
        set.thread_block()?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self {
            fd: sys::watch(fd.into(), Interest::READABLE)?,
        })
    }

    /// Waits for the next signal; the same signal sent twice may come once.
    ///
    /// # Errors
    /// From the runtime's epoll, or read(2).
    pub async fn next(&self) -> io::Result<Signal> {
        let mut info = [0; SIGINFO];
        loop {
            let mut ready = self.fd.readable().await?;
            match nix::unistd::read(self.fd.get_ref(), &mut info) {
                Ok(SIGINFO) => {
                    let number = i32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
                    return Ok(Signal::try_from(number)?);
                }
                Ok(_) | Err(nix::errno::Errno::EAGAIN) => ready.clear_ready(),
                Err(e) => return Err(e.into()),
            }
        }
    }
}
