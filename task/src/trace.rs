// SPDX-License-Identifier: Apache-2.0
//! Spans: what was done on whose behalf, from when to when, as OTLP has them.
//!
//! They are made only if `DUNNAGE_TRACE` says where to (`out`), and only of what somebody up the line
//! records too, or nobody has a trace of. A trace is passed on in any case.

mod out;

pub use out::{is_on, start};

use crate::command::Command;
use protos::ttrpc::{Context, Trace, hex};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

/// So many attributes a span has at most, and so long is each, in bytes.
const MOST_ATTRIBUTES: usize = 16;
const MOST_VALUE: usize = 256;

/// What a span is to the one above it (opentelemetry/proto/trace/v1/trace.proto, SpanKind).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Internal = 1,
    /// It answers a call.
    Server = 2,
    /// It waits for an answer.
    Client = 3,
}

/// Something that is being done, until this is dropped; nothing at all, if nobody wants to know.
pub struct Span(Option<Box<Open>>);

struct Open {
    own: Rc<Trace>,
    parent: Option<[u8; 8]>,
    name: String,
    kind: Kind,
    began: u64,
    attributes: RefCell<Vec<Value>>,
    failed: RefCell<Option<String>>,
}

impl Span {
    /// A part of what `context` is a part of, if that is recorded.
    pub fn of(context: &Context, name: &str, kind: Kind) -> Self {
        match &context.trace {
            Some(trace) => Self::below(trace, name, kind),
            None => Self(None),
        }
    }

    /// The same; the first of a trace, if there is none.
    pub fn first_or_of(context: &Context, name: &str, kind: Kind) -> Self {
        match &context.trace {
            Some(trace) => Self::below(trace, name, kind),
            None => Self::first(name, kind),
        }
    }

    /// The first of a trace.
    pub fn first(name: &str, kind: Kind) -> Self {
        if !out::is_on() {
            return Self(None);
        }
        let own = Trace {
            id: id(),
            span: id(),
            flags: 1,
            ..Trace::default()
        };
        Self::open(own, None, name, kind)
    }

    pub fn below(trace: &Trace, name: &str, kind: Kind) -> Self {
        if !out::is_on() || !trace.is_sampled() {
            return Self(None);
        }
        let own = Trace {
            span: id(),
            ..trace.clone()
        };
        Self::open(own, Some(trace.span), name, kind)
    }

    fn open(own: Trace, parent: Option<[u8; 8]>, name: &str, kind: Kind) -> Self {
        Self(Some(Box::new(Open {
            own: Rc::new(own),
            parent,
            name: name.to_owned(),
            kind,
            began: now(),
            attributes: RefCell::default(),
            failed: RefCell::default(),
        })))
    }

    /// What parts of it are parts of; `None`: it is none.
    pub fn trace(&self) -> Option<Rc<Trace>> {
        self.0.as_ref().map(|open| Rc::clone(&open.own))
    }

    /// `context`, for what is a part of it.
    pub fn context(&self, context: &Context) -> Context {
        context.traced(self.trace().or_else(|| context.trace.clone()))
    }

    pub fn set(&self, key: &str, value: impl Into<Value>) {
        let Some(open) = &self.0 else { return };
        let value = match value.into() {
            Value::String(text) => json!({"stringValue": protos::text::cut(&text, MOST_VALUE)}),
            Value::Bool(is) => json!({"boolValue": is}),
            // 64 bits are text in protobuf's JSON.
            number => json!({"intValue": number.to_string()}),
        };
        let mut attributes = open.attributes.borrow_mut();
        if attributes.len() < MOST_ATTRIBUTES {
            attributes.push(json!({"key": key, "value": value}));
        }
    }

    /// It has come to this.
    pub fn done<T, E: std::fmt::Display>(&self, outcome: &Result<T, E>) {
        if let (Some(open), Err(e)) = (&self.0, outcome) {
            let text = e.to_string();
            let text = protos::text::cut(&text, MOST_VALUE).to_string();
            open.failed.replace(Some(text));
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(open) = self.0.take() {
            out::put(&open.json());
        }
    }
}

impl Open {
    /// By OTLP's JSON: ids are hexadecimal, times are text, enums are numbers.
    fn json(&self) -> Value {
        let own = &self.own;
        let mut span = json!({
            "traceId": hex(&own.id),
            "spanId": hex(&own.span),
            "flags": own.flags,
            "name": self.name,
            "kind": self.kind as u8,
            "startTimeUnixNano": self.began.to_string(),
            "endTimeUnixNano": now().max(self.began).to_string(),
            "attributes": self.attributes.take(),
            "status": {},
        });
        if let Some(parent) = self.parent {
            span["parentSpanId"] = hex(&parent).into();
        }
        if !own.state.is_empty() {
            span["traceState"] = own.state.clone().into();
        }
        if let Some(message) = self.failed.take() {
            span["status"] = json!({"code": 2, "message": message});
        }
        span
    }
}

/// The environment of a program that is run on behalf of `context`; each variable with its value, or
/// without one if it must not have it. (OpenTelemetry, "Environment Variables as Context Propagation
/// Carriers"; containerd does the same from 2.5 on.)
fn environment(context: &Context) -> [(&'static str, Option<String>); 3] {
    let trace = context.trace.as_deref();
    let said = |value: &String| Some(value.clone()).filter(|value| !value.is_empty());
    [
        ("TRACEPARENT", trace.map(Trace::traceparent)),
        ("TRACESTATE", trace.and_then(|trace| said(&trace.state))),
        ("BAGGAGE", trace.and_then(|trace| said(&trace.baggage))),
    ]
}

/// Has `command` run with [`environment`].
pub fn tell(command: &mut Command, context: &Context) {
    for (name, value) in environment(context) {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
}

/// Random enough that no two are the same.
fn id<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    for part in bytes.chunks_mut(8) {
        // Keyed by the kernel's randomness; each one that is made is keyed otherwise.
        let mut hasher = RandomState::new().build_hasher();
        hasher.write_u32(std::process::id());
        hasher.write_u64(now());
        let random = hasher.finish().to_ne_bytes();
        part.copy_from_slice(&random[..part.len()]);
    }
    bytes
}

/// In nanoseconds since 1970.
fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_not_the_same() {
        let ids: std::collections::HashSet<[u8; 8]> = (0..1000).map(|_| id()).collect();
        assert_eq!(ids.len(), 1000);
    }

    /// Without a place for them there are none, and a trace is passed on as it came.
    #[test]
    fn what_nobody_records_is_passed_on() {
        let trace = Trace::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        let trace = trace.unwrap().with(Some("a=b"), None);
        let context = Context::background().traced(Some(Rc::new(trace.clone())));
        let span = Span::of(&context, "x", Kind::Internal);
        assert!(span.trace().is_none());
        let expected = [
            ("TRACEPARENT", Some(trace.traceparent())),
            ("TRACESTATE", Some("a=b".to_owned())),
            ("BAGGAGE", None),
        ];
        assert_eq!(environment(&span.context(&context)), expected);
        let none = environment(&Context::background());
        assert!(none.iter().all(|(_, value)| value.is_none()));
    }
}
