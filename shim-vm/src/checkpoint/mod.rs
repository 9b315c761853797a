// SPDX-License-Identifier: Apache-2.0
//! Checkpoints: a VM that is saved with its one container, and goes on as that in another shim, on this
//! host or another with the same processor.
//!
//! ```text
//!  <image>/state           what QEMU saved: memory, devices, and what the file server knew
//!          manifest.json   what it is of, its hash, and what a shim must know of the guest; it is written
//!                          last, and without it there is no checkpoint
//! ```
//!
//! ```text
//!  save     the container frozen by the guest ─> QEMU stands still ─> state ─> manifest ─> both go on, or end
//!  restore  (Create) file server, share mounted as it was ─> QEMU waits ─> state ─> the guest goes on, with
//!           another host ─> new randomness, clock, network      (Start) the container goes on
//! ```
//!
//! Files are not in it: what the guest knew of them must be there again, as it was (`fsd/state.rs`).

mod manifest;
mod restore;
mod save;

pub use manifest::{Built, Manifest};
pub use restore::{restore, start};
pub use save::save;

use crate::qemu::monitor::{self, Access};
use serde::{Deserialize, Serialize};
use std::io;
use task::handover::Kept;

const STATE: &str = "state";
const MANIFEST: &str = "manifest.json";

/// By what a VM can be saved.
pub struct Saving {
    pub monitor: Access,
    pub built: Built,
}

/// The same, for another process image.
#[derive(Debug, Serialize, Deserialize)]
pub struct Moved(monitor::Moved, Built);

impl Saving {
    /// Describes it for another process image.
    ///
    /// # Errors
    /// If no fd is free.
    pub fn hand_over(&self, kept: &mut Kept) -> io::Result<Moved> {
        Ok(Moved(self.monitor.hand_over(kept)?, self.built.clone()))
    }

    /// Goes on with that of another process image.
    ///
    /// # Errors
    /// If the fd is not there.
    pub fn take_over(Moved(monitor, built): Moved) -> io::Result<Self> {
        let monitor = Access::take_over(monitor)?;
        Ok(Self { monitor, built })
    }
}
