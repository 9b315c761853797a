// SPDX-License-Identifier: Apache-2.0
//! The trace of a command: its first span, or a part of what its caller traces.

use super::Args;
use clap::CommandFactory;
use protos::ttrpc::Trace;
use std::rc::Rc;
use std::time::Duration;
use task::aside;
use task::trace::{Kind, Span};

/// How long the end of a command waits for its spans to be written.
const LAST_SPANS: Duration = Duration::from_secs(1);

/// The span of this command, and what it asks on behalf of: its own, or our caller's.
pub fn command() -> (Span, Option<Rc<Trace>>) {
    task::trace::start("dunnage", crate::VERSION, &[]);
    let variable = |name| std::env::var(name).ok();
    let caller = variable("TRACEPARENT").and_then(|value| Trace::parse(&value));
    let caller = caller.map(|trace| {
        let (state, baggage) = (variable("TRACESTATE"), variable("BAGGAGE"));
        trace.with(state.as_deref(), baggage.as_deref())
    });
    // What it is called as its words say is only worth looking for if somebody wants to know.
    let known = task::trace::is_on().then(Args::command);
    let is_verb = |word: &String| {
        let verbs = known.iter().flat_map(|known| known.get_subcommands());
        verbs.into_iter().any(|it| it.get_name() == word)
    };
    let verb = std::env::args().skip(1).find(is_verb);
    let name = format!("dunnage {}", verb.unwrap_or_default());
    let span = match &caller {
        Some(trace) => Span::below(trace, &name, Kind::Client),
        None => Span::first(&name, Kind::Client),
    };
    let trace = span.trace().or_else(|| caller.map(Rc::new));
    (span, trace)
}

/// The command has come to this.
pub async fn ended(span: Span, outcome: &Result<u8, String>) {
    span.done(outcome);
    drop(span);
    if task::trace::is_on() {
        let _ = tokio::time::timeout(LAST_SPANS, aside::done()).await;
    }
}
