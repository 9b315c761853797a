// SPDX-License-Identifier: Apache-2.0
//! The ttrpc service that shims send their events to, and what an event has to be.

use super::Intake;
use crate::failure::{Failure, invalid};
use crate::health;
use crate::ledger::Origin;
use crate::names::{check_id, check_topic};
use protos::api::events::{self, Events};
use protos::events_service::ForwardRequest;
use protos::topic;
use protos::ttrpc::{Answer, Context, Request, Service};
use protos::types::Envelope;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

/// core/events/exchange/exchange.go.
pub(super) fn check(envelope: &Envelope) -> Result<(), Failure> {
    check_id(&envelope.namespace).map_err(|e| {
        invalid(format!(
            "event envelope has invalid namespace: {}",
            e.message
        ))
    })?;
    check_topic(&envelope.topic).map_err(|e| {
        invalid(format!(
            "envelope topic {:?}: {}",
            envelope.topic, e.message
        ))
    })?;
    match envelope.timestamp {
        None => Err(invalid("timestamp must be set on forwarded event")),
        Some(_) => Ok(()),
    }
}

/// The ttrpc service that shims publish to.
pub struct EventsService {
    pub intake: Rc<Intake>,
}

impl Events for EventsService {
    type Error = Failure;

    async fn forward(self: &Rc<Self>, request: ForwardRequest, _: &Context) -> Result<(), Failure> {
        let envelope = request.envelope.ok_or_else(|| invalid("no envelope"))?;
        if health::is_of_check(&envelope) {
            return Ok(());
        }
        let wants_sync = matches!(envelope.topic.as_str(), topic::TASK_EXIT | topic::TASK_OOM);
        self.intake.take(envelope, Origin::Shim).await?;
        if wants_sync {
            self.intake.synced().await;
        }
        Ok(())
    }
}

impl Service for EventsService {
    fn call(self: Rc<Self>, request: Request) -> Pin<Box<dyn Future<Output = Answer>>> {
        events::serve(self, request)
    }
}
