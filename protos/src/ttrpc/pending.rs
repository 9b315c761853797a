// SPDX-License-Identifier: Apache-2.0
//! The calls of a client that are under way.

use super::wire;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use tokio::sync::{Notify, oneshot};

/// Who waits for which answer.
#[derive(Default)]
pub(super) struct Pending {
    pub waiting: RefCell<HashMap<u32, oneshot::Sender<wire::Response>>>,
    /// How many calls were made.
    pub made: Cell<u32>,
    /// How many requests and answers are on their way, not whole yet.
    partial: Cell<u32>,
    /// Something of the above has changed.
    pub changed: Notify,
}

/// A frame is on its way.
pub(super) struct Partial<'a>(&'a Pending);

impl<'a> Partial<'a> {
    pub fn new(pending: &'a Pending) -> Self {
        pending.partial.set(pending.partial.get() + 1);
        Self(pending)
    }
}

impl Drop for Partial<'_> {
    fn drop(&mut self) {
        self.0.partial.set(self.0.partial.get() - 1);
        self.0.changed.notify_waiters();
    }
}

impl Pending {
    /// Who waits for the answer on `stream`; none, if nobody does any more.
    ///
    /// # Errors
    /// If there was no such call.
    pub fn take(&self, stream: u32) -> Result<Option<oneshot::Sender<wire::Response>>, String> {
        if stream.is_multiple_of(2) || stream / 2 >= self.made.get() {
            return Err(format!("an answer on stream {stream}, to no call"));
        }
        let waiting = self.waiting.borrow_mut().remove(&stream);
        self.changed.notify_waiters();
        Ok(waiting)
    }

    pub fn is_idle(&self) -> bool {
        self.partial.get() == 0 && self.waiting.borrow().is_empty()
    }
}

/// Takes a call that nobody awaits any more off the list.
pub(super) struct Forget<'a> {
    pub pending: &'a Pending,
    pub stream: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.pending.waiting.borrow_mut().remove(&self.stream);
        self.pending.changed.notify_waiters();
    }
}
