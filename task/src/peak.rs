// SPDX-License-Identifier: Apache-2.0
//! Gives back the memory that a request needed for a moment, once there is nothing more to do.

use crate::sys;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

static OVER: AtomicBool = AtomicBool::new(false);

/// A request that needs much memory is answered.
pub fn over() {
    OVER.store(true, Relaxed);
}

/// For the event loop, before it waits: nobody waits for us then, and the stack is at its lowest.
pub fn give_back() {
    if OVER.swap(false, Relaxed) {
        sys::release_memory();
    }
}
