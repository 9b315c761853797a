// SPDX-License-Identifier: Apache-2.0
//! Bringing back a shim that was killed, where what it has started outlives it.
//!
//! ```text
//!  start ──> daemon ──fork──> keeper: the parent, which keeps open what the daemon has open, and
//!                   └───────> daemon: the child            what it has written down of itself
//!
//!  daemon ── a file, by number ──> keeper            the daemon is killed:
//!         ── its state ──────────>   │                 keeper ── adopt ──> daemon, with the same
//!         ── a file is closed ───>   │                                     listener, files and state
//! ```
//!
//! The keeper is a child subreaper: what the dead daemon had started becomes its children. They are
//! reaped when there is nothing to go on with any more, so that the pids in the state are nobody else's.
//! If the next daemon does not serve in time, they are killed, and so are they if there is no state. A
//! daemon dies with its keeper.
//!
//! The state is what an upgrade hands over ([`task::handover`]), written down before anything that
//! follows from it is heard outside ([`task::record`]).

mod held;
mod process;

pub use held::Held;
pub use process::run;

use crate::error::{Error, Result};
use crate::flags::Flags;
use crate::sys;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

/// The fd at which a daemon and its keeper find each other.
pub const KEEPER_FD: i32 = 5;
/// A daemon sends it to a keeper that does not hear it: nothing that it has is true any more.
const FORGET: Signal = Signal::SIGUSR1;
/// What the keeper is called as, and a daemon that takes the place of one that has died.
pub const KEEP: &str = "keep";
pub const ADOPT: &str = "adopt";

/// Forks the daemon off this process, which becomes its keeper: it returns in the daemon, with its
/// end of the socket between them.
///
/// # Errors
/// If there can be none; this is the daemon then, and has none.
pub fn fork(flags: &Flags, listener: BorrowedFd<'_>, patience: Duration) -> Result<OwnedFd> {
    let failed = |e: io::Error| Error::new(format!("keeper: {e}"));
    let exe = std::env::current_exe().map_err(failed)?;
    let (keepers, daemons) = pair().map_err(failed)?;
    if sys::fork_child().map_err(failed)? {
        drop(keepers);
        return Ok(daemons);
    }
    drop(daemons);
    let kept = sys::move_fd(keepers, KEEPER_FD).and_then(|fd| {
        sys::survive_exec(listener, true)?;
        sys::survive_exec(fd.as_fd(), true).map(|()| fd)
    });
    let mut keeper = Command::new(exe);
    keeper.args(flags.of_daemon(Some(KEEP)));
    keeper.arg(patience.as_secs().to_string());
    let why = match kept {
        Ok(_kept) => keeper.exec(),
        Err(e) => e,
    };
    // The daemon dies with us, as it must without a keeper.
    Err(failed(why))
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
    Ok(socketpair(family, kind, None, SockFlag::SOCK_CLOEXEC)?)
}

/// What a daemon says to its keeper: a byte, a number, and perhaps a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// It serves; the number is its pid.
    Serves = 1,
    /// The file is to be kept open under the number.
    Keep = 2,
    /// The file of that number is closed.
    Close = 3,
    /// The file is the state.
    State = 4,
    /// There is nothing to go on with.
    Nothing = 5,
}

impl Word {
    const LENGTH: usize = 5;

    fn write(self, number: u32) -> [u8; Self::LENGTH] {
        let [a, b, c, d] = number.to_be_bytes();
        [self as u8, a, b, c, d]
    }

    fn read(bytes: &[u8]) -> Option<(Self, u32)> {
        let [word, a, b, c, d] = *bytes else {
            return None;
        };
        let all = [
            Self::Serves,
            Self::Keep,
            Self::Close,
            Self::State,
            Self::Nothing,
        ];
        let word = all.into_iter().find(|known| *known as u8 == word)?;
        Some((word, u32::from_be_bytes([a, b, c, d])))
    }
}
