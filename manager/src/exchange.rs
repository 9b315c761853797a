//! The exchange: hands events to subscribers, in order, as containerd's filters choose.
//!
//! A subscriber's queue has no bound: one that is slow must not hold up the others, nor lose an
//! exit. New subscribers first get the exits of stopped tasks that nobody with the same filters
//! has been given: whoever was away when a container ended learns of it.

use crate::filter::{Fields, Filters};
use protos::events::{
    ContainerCreate, ContainerDelete, ContainerUpdate, NamespaceCreate, NamespaceDelete,
    NamespaceUpdate, TaskCreate, TaskExit,
};
use protos::types::Envelope;
use protos::{Any, any};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use tokio::sync::mpsc;

/// An event with its number in the journal.
#[derive(Debug)]
pub struct Entry {
    pub seq: u64,
    /// Where an exit is known from; empty if it is told again.
    pub origin: &'static str,
    pub envelope: Envelope,
}

#[derive(Default)]
pub struct Exchange {
    subscribers: RefCell<Vec<Subscriber>>,
    /// For each undeleted exit, by its number: filters of the subscribers that were given it.
    given: RefCell<HashMap<u64, Vec<String>>>,
    pub delivered: Cell<u64>,
    pub replayed: Cell<u64>,
}

struct Subscriber {
    filters: Filters,
    /// Their text: who asks the same again is taken for the same client.
    wanted: String,
    queue: mpsc::UnboundedSender<Entry>,
}

impl Exchange {
    /// Hands `envelope` to every subscriber that wants it. `replayable`: an exit that later
    /// subscribers may have to be told.
    pub fn publish(&self, seq: u64, origin: &'static str, envelope: &Envelope, replayable: bool) {
        let mut given = Vec::new();
        self.subscribers.borrow_mut().retain(|subscriber| {
            if subscriber.queue.is_closed() {
                return false;
            }
            if !subscriber.filters.matches(envelope) {
                return true;
            }
            if replayable {
                given.push(subscriber.wanted.clone());
            }
            self.delivered.set(self.delivered.get() + 1);
            let entry = Entry {
                seq,
                origin,
                envelope: envelope.clone(),
            };
            subscriber.queue.send(entry).is_ok()
        });
        if replayable && !given.is_empty() {
            self.given.borrow_mut().insert(seq, given);
        }
    }

    /// Adds a subscriber. `missed` are the exits that are not deleted.
    pub fn subscribe(
        &self,
        filters: &[String],
        parsed: Filters,
        missed: impl IntoIterator<Item = (u64, Envelope)>,
    ) -> mpsc::UnboundedReceiver<Entry> {
        let (queue, receiver) = mpsc::unbounded_channel();
        let wanted = filters.join("\n");
        let mut given = self.given.borrow_mut();
        for (seq, envelope) in missed {
            if !parsed.matches(&envelope) {
                continue;
            }
            let to = given.entry(seq).or_default();
            if !to.contains(&wanted) {
                to.push(wanted.clone());
                self.replayed.set(self.replayed.get() + 1);
                let _ = queue.send(Entry {
                    seq,
                    origin: "",
                    envelope,
                });
            }
        }
        self.subscribers.borrow_mut().push(Subscriber {
            filters: parsed,
            wanted,
            queue,
        });
        receiver
    }

    /// An exit whose task is deleted is not replayed any more.
    pub fn forget(&self, seq: u64) {
        self.given.borrow_mut().remove(&seq);
    }

    pub fn subscribers(&self) -> usize {
        let mut subscribers = self.subscribers.borrow_mut();
        subscribers.retain(|subscriber| !subscriber.queue.is_closed());
        subscribers.len()
    }
}

impl Fields for Envelope {
    /// As core/events/events.go: `namespace`, `topic`, and `event.*` of events that are known.
    fn field(&self, path: &[&str]) -> Option<String> {
        match path {
            ["namespace"] => Some(self.namespace.clone()).filter(|n| !n.is_empty()),
            ["topic"] => Some(self.topic.clone()).filter(|t| !t.is_empty()),
            ["event", rest @ ..] => event_field(self.event.as_ref()?, rest),
            _ => None,
        }
    }
}

fn event_field(event: &Any, path: &[&str]) -> Option<String> {
    fn of<M: protos::Name + Default>(event: &Any) -> Option<M> {
        any::unpack(event)?.ok()
    }
    let text = |text: String| Some(text).filter(|t| !t.is_empty());
    if let Some(event) = of::<ContainerCreate>(event) {
        return match path {
            ["id"] => text(event.id),
            ["image"] => text(event.image),
            ["runtime", "name"] => text(event.runtime?.name),
            _ => None,
        };
    }
    if let Some(event) = of::<ContainerUpdate>(event) {
        return match path {
            ["id"] => text(event.id),
            ["image"] => text(event.image),
            ["snapshot_key"] => text(event.snapshot_key),
            ["labels", rest @ ..] => field_of_labels(&event.labels, rest),
            _ => None,
        };
    }
    if let Some(event) = of::<ContainerDelete>(event) {
        return (path == ["id"]).then_some(event.id);
    }
    if let Some(NamespaceCreate { name, labels }) = of(event) {
        return named(path, name, &labels);
    }
    if let Some(NamespaceUpdate { name, labels }) = of(event) {
        return named(path, name, &labels);
    }
    if let Some(event) = of::<NamespaceDelete>(event) {
        return (path == ["name"]).then_some(event.name);
    }
    task_field(event, path)
}

/// A label's key may hold dots, whether it was quoted or not.
pub fn field_of_labels(labels: &HashMap<String, String>, path: &[&str]) -> Option<String> {
    labels.get(&path.join(".")).cloned()
}

fn named(path: &[&str], name: String, labels: &HashMap<String, String>) -> Option<String> {
    match path {
        ["name"] => Some(name),
        ["labels", rest @ ..] => field_of_labels(labels, rest),
        _ => None,
    }
}

fn task_field(event: &Any, path: &[&str]) -> Option<String> {
    /// Field 1 of every task event; field 2 of exec events. TaskStart's field 2 is a number and
    /// is skipped by none of the filters that name a text.
    fn first(event: &Any) -> Option<String> {
        let envelope = Envelope {
            topic: "/tasks/".into(),
            event: Some(event.clone()),
            ..Default::default()
        };
        crate::ledger::container_of(&envelope)
    }
    let kind = event.type_url.rsplit('/').next()?;
    if !kind.starts_with("containerd.events.Task") {
        return None;
    }
    match path {
        ["container_id"] => first(event).filter(|id| !id.is_empty()),
        ["id"] => Some(any::unpack::<TaskExit>(event)?.ok()?.id),
        ["exec_id"] => {
            use protos::events::{TaskExecAdded, TaskExecStarted};
            match any::unpack::<TaskExecAdded>(event) {
                Some(added) => Some(added.ok()?.exec_id),
                None => Some(any::unpack::<TaskExecStarted>(event)?.ok()?.exec_id),
            }
        }
        ["bundle"] => Some(any::unpack::<TaskCreate>(event)?.ok()?.bundle),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(container: &str) -> Envelope {
        let event = TaskExit {
            container_id: container.into(),
            id: container.into(),
            ..Default::default()
        };
        Envelope {
            timestamp: None,
            namespace: "moby".into(),
            topic: "/tasks/exit".into(),
            event: Some(any::pack(&event)),
        }
    }

    fn subscribe(
        exchange: &Exchange,
        filter: &str,
        missed: &[(u64, Envelope)],
    ) -> mpsc::UnboundedReceiver<Entry> {
        let filters = [filter.to_owned()];
        let parsed = Filters::parse(&filters).unwrap();
        exchange.subscribe(&filters, parsed, missed.to_vec())
    }

    #[test]
    fn events_go_to_those_who_asked() {
        let exchange = Exchange::default();
        let mut moby = subscribe(&exchange, "namespace==moby,topic~=|^/tasks/|", &[]);
        let mut other = subscribe(&exchange, "namespace==other", &[]);
        let mut one = subscribe(&exchange, "event.container_id==a", &[]);
        exchange.publish(1, "shim", &exit("a"), true);
        exchange.publish(2, "shim", &exit("b"), true);
        assert_eq!(moby.try_recv().unwrap().seq, 1);
        assert_eq!(moby.try_recv().unwrap().seq, 2);
        assert!(other.try_recv().is_err());
        assert_eq!(one.try_recv().unwrap().seq, 1);
        assert!(one.try_recv().is_err());
        drop(one);
        assert_eq!(exchange.subscribers(), 2);
    }

    #[test]
    fn a_new_subscriber_gets_what_nobody_like_it_has_got() {
        let exchange = Exchange::default();
        let first = subscribe(&exchange, "namespace==moby", &[]);
        exchange.publish(1, "shim", &exit("a"), true);
        drop(first);
        let missed = [(1, exit("a")), (2, exit("b"))];
        let mut same = subscribe(&exchange, "namespace==moby", &missed);
        assert_eq!(same.try_recv().unwrap().seq, 2);
        assert!(same.try_recv().is_err());
        let mut other = subscribe(&exchange, "topic==/tasks/exit", &missed);
        assert_eq!(other.try_recv().unwrap().seq, 1);
        assert_eq!(other.try_recv().unwrap().seq, 2);
    }
}
