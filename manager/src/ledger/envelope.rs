// SPDX-License-Identifier: Apache-2.0
//! What an envelope tells of itself: whose event it is, and whether it is the same as another.

use crate::names::Key;
use protos::events::TaskExit;
use protos::types::Envelope;
use protos::{Any, any};
use std::hash::{DefaultHasher, Hash, Hasher};
use task::ProcessId;

/// Tells events apart: sent again, one is the same to the nanosecond.
pub fn print_of(envelope: &Envelope) -> u64 {
    let mut hasher = DefaultHasher::new();
    envelope.topic.hash(&mut hasher);
    let time = envelope.timestamp.unwrap_or_default();
    (time.seconds, time.nanos).hash(&mut hasher);
    let event = envelope.event.as_ref();
    event.map(|event| &event.value).hash(&mut hasher);
    hasher.finish()
}

/// The container whose task's event it is; `None` for any other event.
pub fn key_of(envelope: &Envelope) -> Option<Key> {
    let event = envelope.event.as_ref()?;
    let is_tasks = envelope.topic.starts_with("/tasks/");
    let id = is_tasks.then(|| container_of(event))??;
    Some(Key::new(&envelope.namespace, &id))
}

/// The container that a task's event tells of.
pub fn container_of(event: &Any) -> Option<String> {
    /// Every task event has its container's id as field 1.
    #[derive(Clone, PartialEq, prost::Message)]
    struct About {
        #[prost(string, tag = "1")]
        container_id: String,
    }
    let about: About = prost::Message::decode(event.value.as_slice()).ok()?;
    Some(about.container_id)
}

/// Whose exit it is.
pub fn process_of(exit: &TaskExit) -> ProcessId {
    ProcessId::in_event(&exit.container_id, &exit.id)
}

/// The event, if it is of this kind.
pub fn decode<M: protos::Name + Default>(event: &Any) -> Option<M> {
    any::unpack(event)?.ok()
}
