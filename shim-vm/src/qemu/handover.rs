// SPDX-License-Identifier: Apache-2.0
//! A QEMU that runs, for another process image.

use super::Qemu;
use crate::child::Child;
use crate::console::{self, Console};
use crate::machine::Machine;
use crate::users::{self, User};
use serde::{Deserialize, Serialize};
use std::io;
use task::handover::Kept;

#[derive(Debug, Serialize, Deserialize)]
pub struct Moved {
    pid: u32,
    user: users::Moved,
    console: console::Moved,
}

impl Qemu {
    /// Describes it for another process image.
    ///
    /// # Errors
    /// If no fd is free.
    pub fn hand_over(&self, kept: &mut Kept) -> io::Result<Moved> {
        Ok(Moved {
            pid: self.pid(),
            user: self.user.hand_over(kept)?,
            console: self.console.hand_over(kept)?,
        })
    }

    /// Goes on with one that another image of this process has started, or another process: `child`
    /// tells which process it is.
    ///
    /// # Errors
    /// If an fd is not what it is said to be.
    pub fn take_over(moved: Moved, child: impl FnOnce(u32) -> Child) -> io::Result<Self> {
        Ok(Self {
            user: User::take_over(&moved.user)?,
            console: Console::take_over(moved.console)?,
            debug: false,
            prepared: None,
            child: Some(child(moved.pid)),
        })
    }
}
