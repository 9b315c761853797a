// SPDX-License-Identifier: Apache-2.0
//! The pipes a process gets, and who owns them (contract I1, I3).

use crate::error::{Error, Result};
use nix::unistd::{Gid, Uid, fchown};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;

/// Who may open the pipe again, as `/dev/stdout` in a container does.
#[derive(Clone, Copy)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// The end of a pipe that the process gets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    Read,
    Write,
}

/// A new pipe (read end, write end), whose `theirs` end belongs to `owner`.
///
/// # Errors
/// From pipe(2) or fchown(2).
pub fn pipe_for(owner: Owner, theirs: End) -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = io::pipe().map_err(Error::io("make", "pipe"))?;
    let (read, write) = (OwnedFd::from(read), OwnedFd::from(write));
    if (owner.uid, owner.gid) != (0, 0) {
        let end = if theirs == End::Read { &read } else { &write };
        let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        fchown(end, Some(uid), Some(gid)).map_err(|e| Error::io("chown", "pipe")(e.into()))?;
    }
    Ok((read, write))
}

/// `/dev/null`, for a stream nobody asked for.
///
/// # Errors
/// From open(2).
pub fn null() -> Result<OwnedFd> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null");
    Ok(null.map_err(Error::io("open", "/dev/null"))?.into())
}
