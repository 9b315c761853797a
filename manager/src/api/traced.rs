// SPDX-License-Identifier: Apache-2.0
//! Who traces a request: what the daemon asks of shims meanwhile is asked on behalf of the same.

use crate::failure::Failure;
use protos::ttrpc::{CALLER, Trace};
use std::rc::Rc;
use task::trace::{Kind, Span};
use tonic::Request;

/// The methods that begin a trace, where their client has not.
const CHANGES: [&str; 10] = [
    "Checkpoint",
    "Create",
    "Delete",
    "DeleteProcess",
    "Exec",
    "Kill",
    "Pause",
    "Resume",
    "Start",
    "Update",
];
const TASKS: &str = "containerd.services.tasks.v1.Tasks/";

/// The method that a request is for, by its full name.
#[derive(Clone)]
pub struct Called(pub String);

pub struct Caller {
    method: String,
    trace: Option<Trace>,
}

impl Caller {
    pub fn of<T>(request: &Request<T>) -> Self {
        let called = request.extensions().get::<Called>();
        let metadata = request.metadata();
        let value = |key: &str| metadata.get(key).and_then(|value| value.to_str().ok());
        let trace = value("traceparent").and_then(Trace::parse);
        Self {
            method: called.map_or_else(String::new, |called| called.0.clone()),
            trace: trace.map(|trace| trace.with(value("tracestate"), value("baggage"))),
        }
    }

    /// Does `work` on its behalf.
    pub async fn traced<T>(
        self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let change = self.method.strip_prefix(TASKS);
        let span = match &self.trace {
            Some(trace) => Span::below(trace, &self.method, Kind::Server),
            None if change.is_some_and(|change| CHANGES.contains(&change)) => {
                Span::first(&self.method, Kind::Server)
            }
            None => return work.await,
        };
        let caller = span.trace().or_else(|| self.trace.map(Rc::new));
        let outcome = CALLER.scope(caller, work).await;
        span.done(&outcome);
        outcome
    }
}
