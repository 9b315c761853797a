// SPDX-License-Identifier: Apache-2.0
//! The Events service: what clients publish, and what they subscribe to.

use super::{Stream, service};
use crate::failure::{Failure, invalid};
use crate::ledger::Origin;
use crate::manager::Manager;
use crate::names::check_namespace;
use crate::subscription::Subscription;
use protos::services::events::v1::*;
use protos::types::Envelope;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

service! {
    crate::services::containerd::services::events::v1::events_server::Events,
    namespaced: false;
    [type SubscribeStream = Stream<Envelope>]
    publish(PublishRequest) -> ();
    forward(ForwardRequest) -> ();
    subscribe(SubscribeRequest) -> Stream<Envelope>;
}

async fn publish(
    manager: Rc<Manager>,
    namespace: String,
    request: PublishRequest,
) -> Result<(), Failure> {
    check_namespace(&namespace)?;
    let envelope = Envelope {
        timestamp: Some(task::event::now()),
        namespace,
        topic: request.topic,
        event: request.event,
    };
    take(&manager, envelope).await
}

async fn forward(manager: Rc<Manager>, _: String, request: ForwardRequest) -> Result<(), Failure> {
    take(
        &manager,
        request.envelope.ok_or_else(|| invalid("no envelope"))?,
    )
    .await
}

async fn take(manager: &Manager, envelope: Envelope) -> Result<(), Failure> {
    manager.intake.take(envelope, Origin::Shim).await?;
    manager.intake.synced().await;
    Ok(())
}

async fn subscribe(
    manager: Rc<Manager>,
    namespace: String,
    request: SubscribeRequest,
) -> Result<Stream<Envelope>, Failure> {
    super::optional_namespace(&namespace)?;
    let queue = manager.intake.subscribe(&request.filters, true)?;
    Ok(Stream::new(Events(queue)))
}

struct Events(Subscription);

impl tokio_stream::Stream for Events {
    type Item = Result<Envelope, tonic::Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = std::task::ready!(self.0.poll_next(context));
        Poll::Ready(next.map(|next| match next {
            Ok(entry) => Ok(entry.envelope.clone()),
            Err(end) => Err(super::refused(end)),
        }))
    }
}
