// SPDX-License-Identifier: Apache-2.0
//! What a server runs: services, the calls they see, and how long a caller waits.

use super::trace::Trace;
use crate::status::{Code, Status};
use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// The encoded answer of a call, or the status it failed with.
pub type Answer = Result<Vec<u8>, Status>;

/// One call as a [`Service`] sees it.
#[derive(Debug)]
pub struct Request {
    pub method: String,
    pub payload: Vec<u8>,
    pub context: Context,
    /// The call came to another process image, which was replaced by this one.
    pub moved: bool,
}

/// Something that answers calls. An unknown method answers [`Context::no_such_method`].
pub trait Service {
    fn call(self: Rc<Self>, request: Request) -> Pin<Box<dyn Future<Output = Answer>>>;

    /// True if `method` only waits, so that it may be called anew instead of being let end.
    fn only_waits(&self, _method: &str) -> bool {
        false
    }
}

/// How long a caller waits.
#[derive(Clone, Debug)]
pub struct Context {
    pub(super) deadline: Option<Instant>,
    pub(super) closed: watch::Receiver<bool>,
    /// On whose behalf it is made, if somebody traces that.
    pub trace: Option<Rc<Trace>>,
    /// What the call waits for, the last last; `None`: it is nobody's call.
    pub(super) waits: Option<Waits>,
}

pub(super) type Waits = Rc<RefCell<Vec<Waited>>>;

/// Something that a call waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waited {
    pub what: String,
    /// Of the process that it is, if it is one; else 0.
    pub pid: u32,
}

/// A call waits for something as long as this lives.
pub struct Waiting(Option<(Waits, Waited)>);

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some((waits, waited)) = &self.0 {
            let mut waits = waits.borrow_mut();
            let place = waits.iter().rposition(|one| one == waited);
            place.map(|at| waits.remove(at));
        }
    }
}

impl Context {
    /// Says what the call waits for from now on, to who looks at it; `pid` is that of a process, or 0.
    pub fn waits_for(&self, what: impl FnOnce() -> String, pid: u32) -> Waiting {
        Waiting(self.waits.as_ref().map(|waits| {
            let waited = Waited { what: what(), pid };
            waits.borrow_mut().push(waited.clone());
            (Rc::clone(waits), waited)
        }))
    }

    /// Waits until the caller gives up, and says why.
    pub async fn cancelled(&self) -> Status {
        let mut closed = self.closed.clone();
        let closed = async {
            match closed.wait_for(|&closed| closed).await {
                Ok(_) => Status::canceled(),
                // Nobody is left who could close it.
                Err(_) => std::future::pending().await,
            }
        };
        match self.deadline {
            None => closed.await,
            Some(deadline) => tokio::select! {
                status = closed => status,
                () = tokio::time::sleep_until(deadline) => Status::deadline_exceeded(),
            },
        }
    }

    /// How long the caller still waits; `None`: it did not say.
    pub fn remaining(&self) -> Option<Duration> {
        let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
        self.deadline.map(left)
    }

    /// A context nobody cancels: for work that the process does on its own behalf.
    pub fn background() -> Self {
        Self {
            deadline: None,
            closed: watch::channel(false).1,
            trace: None,
            waits: None,
        }
    }

    /// A context that gives up once `given_up` says so.
    pub fn until(given_up: watch::Receiver<bool>) -> Self {
        Self {
            closed: given_up,
            ..Self::background()
        }
    }

    /// A context that gives up after `time`: for work that must not go on for ever. A time that the
    /// clock does not reach is none.
    pub fn within(time: Duration) -> Self {
        Self {
            deadline: Instant::now().checked_add(time),
            ..Self::background()
        }
    }

    /// This one, made on behalf of `trace`.
    pub fn traced(&self, trace: Option<Rc<Trace>>) -> Self {
        Self {
            trace,
            ..self.clone()
        }
    }

    /// This one, that gives up after `time` at the latest.
    pub fn at_most(&self, time: Duration) -> Self {
        let end = Instant::now().checked_add(time);
        Self {
            deadline: [self.deadline, end].into_iter().flatten().min(),
            ..self.clone()
        }
    }

    /// The status of a method that a service does not have (ttrpc services.go).
    pub fn no_such_method(method: &str) -> Status {
        Status::new(Code::Unimplemented, format!("method {method}"))
    }
}
