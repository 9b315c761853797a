// SPDX-License-Identifier: Apache-2.0
//! The calls of a server that go on: what must be known of them to move them, or to tell of them.

use super::service::{Waited, Waits};
use super::trace::Trace;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;

/// So much of a call's payload is kept to tell whom it is about, in bytes.
const HEAD: usize = 512;

/// A call, from its request to the end of what it does.
pub(super) struct Call {
    pub service: String,
    pub method: String,
    /// All of it, if the call only waits; of another the first [`HEAD`] bytes, once it was taken.
    pub payload: Vec<u8>,
    since: Instant,
    pub deadline: Option<Instant>,
    pub only_waits: bool,
    /// Its caller has the answer, or gave up.
    pub is_answered: bool,
    pub waits: Waits,
    /// On whose behalf it is made, if somebody traces that.
    pub trace: Option<Rc<Trace>>,
}

impl Call {
    /// One that begins now; its caller waits so many nanoseconds, if that ends.
    pub fn new(service: String, method: String, payload: Vec<u8>, timeout: Option<u64>) -> Self {
        let since = Instant::now();
        let deadline = |nanos| since.checked_add(Duration::from_nanos(nanos));
        Self {
            service,
            method,
            payload,
            since,
            deadline: timeout.and_then(deadline),
            only_waits: false,
            is_answered: false,
            waits: Waits::default(),
            trace: None,
        }
    }

    /// The payload, for who answers the call.
    pub fn take_payload(&mut self) -> Vec<u8> {
        if self.only_waits {
            return self.payload.clone();
        }
        let head = self.head();
        std::mem::replace(&mut self.payload, head)
    }

    fn head(&self) -> Vec<u8> {
        self.payload[..self.payload.len().min(HEAD)].to_vec()
    }

    /// What is told of it.
    pub fn tell(&self) -> Ongoing {
        let now = Instant::now();
        let left = |deadline: Instant| deadline.saturating_duration_since(now);
        Ongoing {
            service: self.service.clone(),
            method: self.method.clone(),
            payload: self.head(),
            since: now.saturating_duration_since(self.since),
            left: self.deadline.map(left),
            only_waits: self.only_waits,
            is_answered: self.is_answered,
            waits_for: self.waits.borrow().last().cloned(),
        }
    }
}

/// A call that goes on.
pub struct Ongoing {
    pub service: String,
    pub method: String,
    /// The begin of its payload.
    pub payload: Vec<u8>,
    /// How long it has gone on, and how much patience its caller has left, if that ends.
    pub since: Duration,
    pub left: Option<Duration>,
    pub only_waits: bool,
    /// Its caller has its answer, or gave up; what it began is being undone.
    pub is_answered: bool,
    /// What it says that it waits for.
    pub waits_for: Option<Waited>,
}

/// The first two fields of a payload, if they are strings: of most calls of the Task API the ids of
/// container and exec.
pub fn first_two(payload: &[u8]) -> (String, String) {
    let mut rest = payload;
    let mut text = |field: u8| {
        // A field's number and its kind, which is "with a length", and the length.
        let [tag, length, more @ ..] = rest else {
            return String::new();
        };
        let length = usize::from(*length);
        if *tag != field << 3 | 2 || length > 127 || more.len() < length {
            return String::new();
        }
        let (text, after) = more.split_at(length);
        rest = after;
        String::from_utf8_lossy(text).into_owned()
    };
    (text(1), text(2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Message;
    use crate::task::{CreateTaskRequest, ShutdownRequest, WaitRequest};

    fn ids(payload: Vec<u8>) -> (String, String) {
        let call = Call::new("s".into(), "m".into(), payload, None);
        first_two(&call.tell().payload)
    }

    #[test]
    fn ids_are_the_first_two_strings() {
        let both = WaitRequest {
            id: "c".into(),
            exec_id: "e".into(),
        };
        assert_eq!(ids(both.encode_to_vec()), ("c".into(), "e".into()));
        let exec = WaitRequest {
            id: String::new(),
            exec_id: "e".into(),
        };
        assert_eq!(ids(exec.encode_to_vec()), (String::new(), "e".into()));
        let other = ShutdownRequest {
            id: "c".into(),
            now: true,
        };
        assert_eq!(ids(other.encode_to_vec()), ("c".into(), String::new()));
        let cut = CreateTaskRequest {
            id: "c".into(),
            bundle: "b".repeat(1000),
            ..Default::default()
        };
        assert_eq!(ids(cut.encode_to_vec()), ("c".into(), String::new()));
        for nonsense in [
            &b""[..],
            b"\x0a",
            b"\x0a\xff",
            b"\x0a\x05ab",
            b"\xff\xff\xff",
        ] {
            assert_eq!(ids(nonsense.to_vec()), Default::default());
        }
    }
}
