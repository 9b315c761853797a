// SPDX-License-Identifier: Apache-2.0
//! What a shim holds a VM by that it has not booted: while it is open anywhere, the VM lives.

use crate::child::Child;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use std::io;
use std::os::fd::OwnedFd;
use task::handover::Kept;

pub struct Leash {
    fd: OwnedFd,
    /// The parent of the VM's processes.
    holder: u32,
}

impl Leash {
    /// # Errors
    /// If it is no connection to another process of root's.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let peer = getsockopt(&fd, PeerCredentials)?;
        if peer.uid() != 0 {
            let why = format!("user {} listens there", peer.uid());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        let holder = peer.pid().cast_unsigned();
        Ok(Self { fd, holder })
    }

    /// The process that holds the VM.
    pub fn holder(&self) -> u32 {
        self.holder
    }

    /// A process of the VM.
    pub fn child(&self, pid: u32) -> Child {
        Child::of_another(pid, self.holder)
    }

    /// Describes it for another process image.
    ///
    /// # Errors
    /// If no fd is free.
    pub fn hand_over(&self, kept: &mut Kept) -> io::Result<i32> {
        kept.keep(&self.fd)
    }

    /// Goes on with that of another process image.
    ///
    /// # Errors
    /// As for [`Leash::new`], or if nothing is open there.
    pub fn take_over(fd: i32) -> io::Result<Self> {
        Self::new(task::sys::adopt(fd)?)
    }
}
