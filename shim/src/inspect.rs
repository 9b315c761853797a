// SPDX-License-Identifier: Apache-2.0
//! The `Inspect` service: what this daemon does and waits for. It is answered at once, whatever hangs.

use crate::daemon::Daemon;
use crate::flags::Flags;
use protos::operator::{InspectRequest, InspectResponse};
use protos::ttrpc::{Answer, Call, Context, Handle, Ongoing, Request, Service, first_two};
use protos::{Code, Message, Status};
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::future::{Future, ready};
use std::pin::Pin;
use std::rc::Rc;
use task::look::Look;
use task::tally::Tally;

/// The methods whose second field is the id of an exec.
const OF_PROCESSES: [&str; 8] = [
    "CloseIO",
    "Delete",
    "Exec",
    "Kill",
    "ResizePty",
    "Start",
    "State",
    "Wait",
];

/// What a daemon tells. Fields may be added; who reads it must not need them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    pub namespace: String,
    pub id: String,
    pub pid: u32,
    /// Version and revision.
    pub version: String,
    /// But for this one.
    pub calls: Vec<OfCall>,
    #[serde(flatten)]
    pub engine: Look,
    /// What it has done since it, or the image before it, was replaced.
    pub tally: Tally,
}

/// A call that goes on.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct OfCall {
    pub method: String,
    pub container: String,
    /// Empty for init, and for a call that is about no process.
    pub exec: String,
    pub seconds: f64,
    /// How long its caller waits yet, if that ends.
    pub patience_seconds: Option<f64>,
    /// It waits for an exit, and for nothing that could hang.
    pub only_waits: bool,
    /// Its caller has the answer, or gave up; what it began is being undone.
    pub answered: bool,
    /// What it says that it waits for, and the pid of that, if it is a process; else 0.
    pub waits_for: String,
    pub waits_for_pid: u32,
}

/// The container and the exec that a call is about, if its request begins with them.
pub fn ids(method: &str, payload: &[u8]) -> (String, String) {
    let (container, second) = first_two(payload);
    let is_of_process = OF_PROCESSES.contains(&method);
    let exec = if is_of_process { second } else { String::new() };
    (container, exec)
}

impl From<Ongoing> for OfCall {
    fn from(call: Ongoing) -> Self {
        let (container, exec) = ids(&call.method, &call.payload);
        let waited = call.waits_for;
        Self {
            exec,
            container,
            method: call.method,
            seconds: call.since.as_secs_f64(),
            patience_seconds: call.left.map(|left| left.as_secs_f64()),
            only_waits: call.only_waits,
            answered: call.is_answered,
            waits_for_pid: waited.as_ref().map_or(0, |waited| waited.pid),
            waits_for: waited.map(|waited| waited.what).unwrap_or_default(),
        }
    }
}

pub struct Inspector {
    pub flags: Flags,
    pub handle: Handle,
    pub daemon: Rc<dyn Daemon>,
}

impl Inspector {
    /// What goes on now.
    pub fn report(&self) -> Report {
        let mut calls = self.handle.calls();
        calls.retain(|call| call.service != InspectRequest::SERVICE);
        calls.sort_by_key(|call| Reverse(call.since));
        Report {
            namespace: self.flags.namespace.clone(),
            id: self.flags.id.clone(),
            pid: std::process::id(),
            version: crate::version_and_revision(),
            calls: calls.into_iter().map(OfCall::from).collect(),
            engine: self.daemon.look(),
            tally: Tally::now(),
        }
    }

    fn answer(&self, method: &str) -> Answer {
        if method != InspectRequest::METHOD {
            return Err(Context::no_such_method(method));
        }
        let report = serde_json::to_vec(&self.report());
        let report = report.map_err(|e| Status::new(Code::Internal, e.to_string()))?;
        Ok(InspectResponse { report }.encode_to_vec())
    }
}

impl Service for Inspector {
    fn call(self: Rc<Self>, request: Request) -> Pin<Box<dyn Future<Output = Answer>>> {
        Box::pin(ready(self.answer(&request.method)))
    }
}
