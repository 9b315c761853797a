// SPDX-License-Identifier: Apache-2.0
//! The exchange: hands events to subscribers, in order, as containerd's filters choose.
//!
//! New subscribers first get the exits of stopped tasks that nobody with the same filters has been
//! given: whoever was away when a container ended learns of it. So does one that was too slow: its
//! queue has a bound, at which it is told to come again, and what it had not got counts as not given.

use crate::filter::{Fields, Filters};
use crate::ledger::container_of;
use crate::subscription::{ALL, EACH, Entry, Held, Queue, Subscription};
use protos::events::{
    ContainerCreate, ContainerDelete, ContainerUpdate, NamespaceCreate, NamespaceDelete,
    NamespaceUpdate, TaskCreate, TaskExit,
};
use protos::types::Envelope;
use protos::{Any, any};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::Ordering;

/// So many different askers of one exit are remembered; others before them are told once more.
const ASKERS: usize = 64;

#[derive(Default)]
pub struct Exchange {
    subscribers: RefCell<Vec<Subscriber>>,
    /// For each undeleted exit, by its number: what the subscribers that were given it had asked.
    given: RefCell<HashMap<u64, Vec<Wanted>>>,
    held: Held,
    pub delivered: Cell<u64>,
    pub replayed: Cell<u64>,
    /// Subscribers that were too slow.
    pub behind: Cell<u64>,
}

/// A print of some filters' text: who asks the same again is taken for the same client.
type Wanted = u64;

struct Subscriber {
    filters: Filters,
    wanted: Wanted,
    queue: Queue,
}

impl Exchange {
    /// Hands `envelope` to every subscriber that wants it. `replayable`: an exit that later
    /// subscribers may have to be told.
    pub fn publish(&self, seq: u64, origin: &'static str, envelope: &Envelope, replayable: bool) {
        self.sweep();
        let mut subscribers = self.subscribers.borrow_mut();
        let mut entry = None;
        subscribers.retain(|subscriber| {
            if subscriber.queue.is_ended() || !subscriber.filters.matches(envelope) {
                return true;
            }
            let entry =
                entry.get_or_insert_with(|| Entry::new(seq, origin, envelope.clone(), &self.held));
            if !subscriber.queue.push(entry) {
                self.turn_away(subscriber);
                return false;
            }
            if replayable {
                self.give(seq, subscriber.wanted);
            }
            self.delivered.set(self.delivered.get() + 1);
            true
        });
        while self.held.load(Ordering::Relaxed) > ALL {
            let sizes = subscribers.iter().map(|it| it.queue.bytes()).enumerate();
            match sizes.max_by_key(|(_, bytes)| *bytes) {
                Some((slowest, 1..)) => self.turn_away(&subscribers.swap_remove(slowest)),
                _ => return,
            }
        }
    }

    /// Adds a subscriber. `missed` are the exits that are not deleted.
    pub fn subscribe(
        &self,
        filters: &[String],
        parsed: Filters,
        missed: impl IntoIterator<Item = (u64, Envelope)>,
    ) -> Subscription {
        self.sweep();
        let mut hasher = DefaultHasher::new();
        filters.hash(&mut hasher);
        let subscriber = Subscriber {
            filters: parsed,
            wanted: hasher.finish(),
            queue: Queue::default(),
        };
        let subscription = subscriber.queue.subscription();
        for (seq, envelope) in missed {
            if self.was_given(seq, subscriber.wanted) || !subscriber.filters.matches(&envelope) {
                continue;
            }
            let entry = Entry::new(seq, "", envelope, &self.held);
            if !subscriber.queue.push(&entry) {
                // More than it may have waiting: the rest is for its next try.
                subscriber.queue.end();
                break;
            }
            self.give(seq, subscriber.wanted);
            self.replayed.set(self.replayed.get() + 1);
        }
        self.subscribers.borrow_mut().push(subscriber);
        subscription
    }

    /// Forgets who has gone away.
    fn sweep(&self) {
        self.subscribers.borrow_mut().retain(|subscriber| {
            let is_gone = subscriber.queue.is_gone();
            if is_gone {
                self.take_back(subscriber);
            }
            !is_gone
        });
    }

    /// Ends the queue of one that is too slow.
    fn turn_away(&self, subscriber: &Subscriber) {
        self.take_back(subscriber);
        subscriber.queue.end();
        self.behind.set(self.behind.get() + 1);
        log::warn!("a subscriber is too slow, {EACH} bytes of events behind: it has to come again");
    }

    /// What a subscriber has not got has not been given.
    fn take_back(&self, subscriber: &Subscriber) {
        let mut given = self.given.borrow_mut();
        for entry in subscriber.queue.take_back() {
            if let Some(to) = given.get_mut(&entry.seq) {
                to.retain(|wanted| *wanted != subscriber.wanted);
            }
        }
    }

    fn was_given(&self, seq: u64, wanted: Wanted) -> bool {
        let given = self.given.borrow();
        given.get(&seq).is_some_and(|to| to.contains(&wanted))
    }

    fn give(&self, seq: u64, wanted: Wanted) {
        let mut given = self.given.borrow_mut();
        let to = given.entry(seq).or_default();
        if !to.contains(&wanted) {
            if to.len() == ASKERS {
                to.remove(0);
            }
            to.push(wanted);
        }
    }

    /// An exit whose task is deleted is not replayed any more.
    pub fn forget(&self, seq: u64) {
        self.given.borrow_mut().remove(&seq);
    }

    pub fn subscribers(&self) -> usize {
        self.sweep();
        self.subscribers.borrow().len()
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
    let kind = event.type_url.rsplit('/').next()?;
    if !kind.starts_with("containerd.events.Task") {
        return None;
    }
    match path {
        ["container_id"] => container_of(event).filter(|id| !id.is_empty()),
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
    use std::task::{Context, Poll};

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

    fn subscribe(exchange: &Exchange, filter: &str, missed: &[(u64, Envelope)]) -> Subscription {
        let filters = [filter.to_owned()];
        let parsed = Filters::parse(&filters).unwrap();
        exchange.subscribe(&filters, parsed, missed.to_vec())
    }

    /// The number of the next event, or why there are no more; `None`: nothing waits.
    fn next(from: &Subscription) -> Option<Result<u64, protos::Code>> {
        let mut context = Context::from_waker(std::task::Waker::noop());
        match from.poll_next(&mut context) {
            Poll::Ready(next) => next.map(|next| next.map(|it| it.seq).map_err(|e| e.code)),
            Poll::Pending => None,
        }
    }

    #[test]
    fn events_go_to_those_who_asked() {
        let exchange = Exchange::default();
        let moby = subscribe(&exchange, "namespace==moby,topic~=|^/tasks/|", &[]);
        let other = subscribe(&exchange, "namespace==other", &[]);
        let one = subscribe(&exchange, "event.container_id==a", &[]);
        exchange.publish(1, "shim", &exit("a"), true);
        exchange.publish(2, "shim", &exit("b"), true);
        assert_eq!(next(&moby), Some(Ok(1)));
        assert_eq!(next(&moby), Some(Ok(2)));
        assert_eq!(next(&other), None);
        assert_eq!(next(&one), Some(Ok(1)));
        assert_eq!(next(&one), None);
        drop(one);
        assert_eq!(exchange.subscribers(), 2);
    }

    #[test]
    fn a_new_subscriber_gets_what_nobody_like_it_has_got() {
        let exchange = Exchange::default();
        let first = subscribe(&exchange, "namespace==moby", &[]);
        exchange.publish(1, "shim", &exit("a"), true);
        assert_eq!(next(&first), Some(Ok(1)));
        drop(first);
        let missed = [(1, exit("a")), (2, exit("b"))];
        let same = subscribe(&exchange, "namespace==moby", &missed);
        assert_eq!(next(&same), Some(Ok(2)));
        assert_eq!(next(&same), None);
        let other = subscribe(&exchange, "topic==/tasks/exit", &missed);
        assert_eq!(next(&other), Some(Ok(1)));
        assert_eq!(next(&other), Some(Ok(2)));
    }

    /// R2: at least once means that what lay in its queue is for its next try.
    #[test]
    fn what_a_subscriber_left_unread_is_told_to_the_next_like_it() {
        let exchange = Exchange::default();
        let first = subscribe(&exchange, "namespace==moby", &[]);
        exchange.publish(1, "shim", &exit("a"), true);
        drop(first);
        let same = subscribe(&exchange, "namespace==moby", &[(1, exit("a"))]);
        assert_eq!(next(&same), Some(Ok(1)));
    }

    /// R2, and a bound in bytes.
    #[test]
    fn one_that_does_not_read_is_told_to_come_again_and_gets_the_exits_then() {
        let exchange = Exchange::default();
        let slow = subscribe(&exchange, "namespace==moby", &[]);
        let quick = subscribe(&exchange, "topic==/tasks/exit", &[]);
        let large = exit(&"x".repeat(EACH / 4));
        exchange.publish(1, "shim", &exit("a"), true);
        for seq in 2..10 {
            exchange.publish(seq, "shim", &large, false);
            while next(&quick).is_some() {}
            assert!(exchange.held.load(Ordering::Relaxed) <= EACH + EACH / 2);
        }
        assert_eq!(next(&slow), Some(Err(protos::Code::ResourceExhausted)));
        assert_eq!(next(&slow), None);
        assert_eq!((exchange.subscribers(), exchange.behind.get()), (1, 1));
        assert_eq!(exchange.held.load(Ordering::Relaxed), 0);
        let again = subscribe(&exchange, "namespace==moby", &[(1, exit("a"))]);
        assert_eq!(next(&again), Some(Ok(1)));
    }

    #[test]
    fn all_that_do_not_read_have_one_bound_together() {
        let exchange = Exchange::default();
        let of = |n: usize| format!("event.container_id=={}", n.to_string().repeat(EACH / 2));
        let slow: Vec<_> = (0..9).map(|n| subscribe(&exchange, &of(n), &[])).collect();
        for n in 0..9 {
            let event = exit(&n.to_string().repeat(EACH / 2));
            exchange.publish(n as u64 + 1, "shim", &event, false);
            assert!(exchange.held.load(Ordering::Relaxed) <= ALL);
        }
        assert!(exchange.behind.get() > 0);
        let ended = slow.iter().filter_map(next).filter(Result::is_err).count();
        assert_eq!(ended as u64, exchange.behind.get());
    }

    /// More exits than may wait at once are told in several goes, none twice.
    #[test]
    fn a_long_replay_comes_in_parts() {
        let exchange = Exchange::default();
        let missed: Vec<_> = (1..=10)
            .map(|seq| (seq, exit(&seq.to_string().repeat(EACH / 8))))
            .collect();
        let mut told = Vec::new();
        loop {
            let part = subscribe(&exchange, "namespace==moby", &missed);
            let mut more = false;
            while let Some(next) = next(&part) {
                match next {
                    Ok(seq) => told.push(seq),
                    Err(_) => more = true,
                }
            }
            if !more {
                break;
            }
        }
        assert_eq!(told, (1..=10).collect::<Vec<_>>());
    }
}
