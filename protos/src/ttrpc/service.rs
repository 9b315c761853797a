//! What a server runs: services, the calls they see, and how long a caller waits.

use crate::status::{Code, Status};
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
}

impl Context {
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
        }
    }

    /// A context that gives up once `given_up` says so.
    pub fn until(given_up: watch::Receiver<bool>) -> Self {
        Self {
            deadline: None,
            closed: given_up,
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
