// SPDX-License-Identifier: Apache-2.0
//! What waits for one subscriber, in bytes at most so much: its queue, with the exchange at one end
//! and a gRPC stream at the other.

use crate::failure::{Failure, exhausted};
use protos::Message;
use protos::types::Envelope;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// How much may wait for one subscriber, and for all together, in bytes: some 15,000 events, and
/// four times as many. An event that waits for several is there once.
pub const EACH: usize = 4 << 20;
pub const ALL: usize = 16 << 20;

/// An event with its number in the journal.
#[derive(Debug)]
pub struct Entry {
    pub seq: u64,
    /// Where an exit is known from; empty if it is told again.
    pub origin: &'static str,
    pub envelope: Envelope,
    size: usize,
    held: Held,
}

/// How many bytes of events wait for anybody.
pub type Held = Arc<AtomicUsize>;

impl Entry {
    pub fn new(seq: u64, origin: &'static str, envelope: Envelope, held: &Held) -> Arc<Self> {
        let size = envelope.encoded_len() + size_of::<Self>();
        held.fetch_add(size, Ordering::Relaxed);
        Arc::new(Self {
            seq,
            origin,
            envelope,
            size,
            held: Arc::clone(held),
        })
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.held.fetch_sub(self.size, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct State {
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    /// Nothing comes any more; what the subscriber is told behind the last entry.
    ended: bool,
    end: Option<Failure>,
    waker: Option<Waker>,
}

/// The exchange's end.
#[derive(Default)]
pub struct Queue(Arc<Mutex<State>>);

/// The subscriber's end.
pub struct Subscription(Arc<Mutex<State>>);

impl Queue {
    /// The other end. There is one: without it the queue [`Queue::is_gone`].
    pub fn subscription(&self) -> Subscription {
        Subscription(Arc::clone(&self.0))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The subscriber has gone away.
    pub fn is_gone(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// Adds an event; false if that would be too much. One event always has room.
    pub fn push(&self, entry: &Arc<Entry>) -> bool {
        let mut state = self.state();
        if !state.entries.is_empty() && state.bytes + entry.size > EACH {
            return false;
        }
        state.bytes += entry.size;
        state.entries.push_back(Arc::clone(entry));
        state.wake();
        true
    }

    pub fn bytes(&self) -> usize {
        self.state().bytes
    }

    pub fn is_ended(&self) -> bool {
        self.state().ended
    }

    /// What waits is all that the subscriber gets; then it is told that it has to come again.
    pub fn end(&self) {
        let mut state = self.state();
        if std::mem::replace(&mut state.ended, true) {
            return;
        }
        state.end = Some(exhausted(format!(
            "subscriber is more than {EACH} bytes of events behind, or all are more than {ALL}: \
             subscribe again; exits of what is not deleted are told again"
        )));
        state.wake();
    }

    /// Takes back what the subscriber has not got.
    pub fn take_back(&self) -> VecDeque<Arc<Entry>> {
        let mut state = self.state();
        state.bytes = 0;
        std::mem::take(&mut state.entries)
    }
}

impl State {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Subscription {
    /// The next event; an error is the last.
    pub fn poll_next(
        &self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Arc<Entry>, Failure>>> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = state.entries.pop_front() {
            state.bytes -= entry.size;
            if state.entries.is_empty() {
                // What a flood has made large does not stay so.
                state.entries = VecDeque::new();
            }
            return Poll::Ready(Some(Ok(entry)));
        }
        if state.ended {
            return Poll::Ready(state.end.take().map(Err));
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }
}
