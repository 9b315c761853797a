// SPDX-License-Identifier: Apache-2.0
//! How and when a process ended, and those who wait to hear it.

use crate::event::NEVER;
use crate::handover;
use protos::Timestamp;
use protos::task::DeleteResponse;
use std::cell::Cell;
use tokio::sync::Notify;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exit {
    /// The exit code, or 128 plus the signal (X1).
    pub status: u32,
    pub at: Timestamp,
}

impl Exit {
    /// What is reported of a process that has not exited: Go's zero values (contract T6).
    pub const NONE: Self = Self {
        status: 0,
        at: NEVER,
    };

    /// The answer of a Delete.
    pub fn of_deleted(self, pid: u32) -> DeleteResponse {
        DeleteResponse {
            pid,
            exit_status: self.status,
            exited_at: Some(self.at),
        }
    }

    pub fn hand_over(self) -> handover::Exit {
        (self.status, self.at.seconds, self.at.nanos)
    }

    pub fn take_over((status, seconds, nanos): handover::Exit) -> Self {
        let at = Timestamp { seconds, nanos };
        Self { status, at }
    }
}

/// A place for one exit.
#[derive(Default)]
pub struct Slot {
    exit: Cell<Option<Exit>>,
    /// Those who wait may hear of it.
    announced: Cell<bool>,
    /// There will never be one.
    never: Cell<bool>,
    news: Notify,
}

impl Slot {
    pub fn set(&self, exit: Exit) {
        self.exit.set(Some(exit));
    }

    pub fn announce(&self) {
        self.announced.set(true);
        self.news.notify_waiters();
    }

    pub fn is_announced(&self) -> bool {
        self.announced.get()
    }

    /// The process will not run.
    pub fn set_never(&self) {
        self.never.set(true);
        self.news.notify_waiters();
    }

    pub fn is_never(&self) -> bool {
        self.never.get()
    }

    pub fn get(&self) -> Option<Exit> {
        self.exit.get()
    }

    /// Waits until the exit is told; `None` if there will never be one.
    pub async fn wait(&self) -> Option<Exit> {
        loop {
            if self.announced.get() {
                return self.exit.get();
            }
            if self.never.get() {
                return None;
            }
            self.news.notified().await;
        }
    }
}
