// SPDX-License-Identifier: Apache-2.0
//! The events of a task, one enum for the whole API (contract B73).

use protos::{Any, Message, Name, Timestamp, any, events, topic};

/// Everything a task tells the world.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Create(events::TaskCreate),
    Start(events::TaskStart),
    Oom(events::TaskOom),
    Exit(events::TaskExit),
    Delete(events::TaskDelete),
    ExecAdded(events::TaskExecAdded),
    ExecStarted(events::TaskExecStarted),
    Paused(events::TaskPaused),
    Resumed(events::TaskResumed),
}

impl Event {
    /// The topic it is published under, and the event as an Any.
    pub fn envelope(&self) -> (&'static str, Any) {
        fn pack<M: Name>(topic: &'static str, event: &M) -> (&'static str, Any) {
            (topic, any::pack(event))
        }
        match self {
            Self::Create(e) => pack(topic::TASK_CREATE, e),
            Self::Start(e) => pack(topic::TASK_START, e),
            Self::Oom(e) => pack(topic::TASK_OOM, e),
            Self::Exit(e) => pack(topic::TASK_EXIT, e),
            Self::Delete(e) => pack(topic::TASK_DELETE, e),
            Self::ExecAdded(e) => pack(topic::TASK_EXEC_ADDED, e),
            Self::ExecStarted(e) => pack(topic::TASK_EXEC_STARTED, e),
            Self::Paused(e) => pack(topic::TASK_PAUSED, e),
            Self::Resumed(e) => pack(topic::TASK_RESUMED, e),
        }
    }
}

impl Event {
    /// The event in `any`; `None` if it is none of a task, or does not decode.
    pub fn from_any(any: &Any) -> Option<Self> {
        fn unpack<M: Name + Default>(any: &Any, event: fn(M) -> Event) -> Option<Event> {
            any::unpack::<M>(any)?.ok().map(event)
        }
        None.or_else(|| unpack(any, Self::Create))
            .or_else(|| unpack(any, Self::Start))
            .or_else(|| unpack(any, Self::Oom))
            .or_else(|| unpack(any, Self::Exit))
            .or_else(|| unpack(any, Self::Delete))
            .or_else(|| unpack(any, Self::ExecAdded))
            .or_else(|| unpack(any, Self::ExecStarted))
            .or_else(|| unpack(any, Self::Paused))
            .or_else(|| unpack(any, Self::Resumed))
    }

    /// How long it is on the wire, in bytes.
    pub fn encoded_len(&self) -> usize {
        match self {
            Self::Create(e) => e.encoded_len(),
            Self::Start(e) => e.encoded_len(),
            Self::Oom(e) => e.encoded_len(),
            Self::Exit(e) => e.encoded_len(),
            Self::Delete(e) => e.encoded_len(),
            Self::ExecAdded(e) => e.encoded_len(),
            Self::ExecStarted(e) => e.encoded_len(),
            Self::Paused(e) => e.encoded_len(),
            Self::Resumed(e) => e.encoded_len(),
        }
    }

    /// True for an event without which somebody waits for ever.
    pub fn tells_exit(&self) -> bool {
        matches!(self, Self::Exit(_) | Self::Delete(_))
    }
}

/// Now, as the wire has it.
pub fn now() -> Timestamp {
    std::time::SystemTime::now().into()
}

/// Go's zero time, which clients read as "has not exited" (contract T6).
pub const NEVER: Timestamp = Timestamp {
    seconds: -62_135_596_800,
    nanos: 0,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envelopes_carry_containerds_names() {
        let oom = Event::Oom(events::TaskOom {
            container_id: "c".into(),
        });
        let (topic, any) = oom.envelope();
        assert_eq!(
            (topic, any.type_url.as_str()),
            ("/tasks/oom", "containerd.events.TaskOOM")
        );
        assert_eq!(Event::from_any(&any), Some(oom));
        assert_eq!(Event::from_any(&Any::default()), None);
        let added = Event::ExecAdded(events::TaskExecAdded::default());
        assert_eq!(
            added.envelope().1.type_url,
            "containerd.events.TaskExecAdded"
        );
    }
}
