// SPDX-License-Identifier: Apache-2.0
//! The queue between the engine and whoever publishes: events leave in the order they happened.

use crate::event::{Event, now};
use crate::handover;
use crate::look::OfEvents;
use protos::{Any, Timestamp};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use tokio::sync::Notify;

/// How much waits at most, in bytes: some 10,000 events. For more, the oldest that tell of no exit
/// are lost; what tells of one makes way only for its like, and is in the bundle all the same.
const MOST: usize = 4 << 20;

/// What an event takes, in bytes.
fn size(event: &Event) -> usize {
    size_of::<(Timestamp, Event)>() + event.encoded_len()
}

#[derive(Default)]
struct Queue {
    events: VecDeque<(Timestamp, Event)>,
    bytes: usize,
    /// How many of them tell of no exit.
    others: usize,
}

impl Queue {
    fn push(&mut self, at: Timestamp, event: Event) {
        self.bytes += size(&event);
        self.others += usize::from(!event.tells_exit());
        self.events.push_back((at, event));
    }

    fn remove(&mut self, index: usize) -> Option<Event> {
        let (_, event) = self.events.remove(index)?;
        self.bytes -= size(&event);
        self.others -= usize::from(!event.tells_exit());
        if self.events.is_empty() {
            // What an outage of containerd has made large does not stay so.
            self.events = VecDeque::new();
        }
        Some(event)
    }

    /// Loses what is to be lost for `event`; false: that is the event itself.
    fn make_room(&mut self, event: &Event) -> bool {
        // Not the head, which may be on its way; beside it one event always has room.
        while self.bytes + size(event) > MOST && self.events.len() > 1 {
            let index = match self.oldest_but_exits() {
                Some(index) => index,
                None if event.tells_exit() => 1,
                None => return false,
            };
            if let Some(lost) = self.remove(index) {
                log::error!("{MOST} bytes of events wait, lost: {lost:?}");
            }
        }
        true
    }

    fn oldest_but_exits(&self) -> Option<usize> {
        let is_other = |(_, event): &(Timestamp, Event)| !event.tells_exit();
        let is_head = self.events.front().is_some_and(is_other);
        if self.others == usize::from(is_head) {
            return None;
        }
        Some(self.events.iter().skip(1).position(is_other)? + 1)
    }
}

/// In order. One publisher sends the head, and only then removes it, so that a failed send keeps
/// its place.
#[derive(Default)]
pub struct Outbox {
    queue: RefCell<Queue>,
    /// The publisher is sending the head.
    sending: Cell<bool>,
    pushed: Notify,
    changed: Notify,
}

impl Outbox {
    /// Queues `event`; its time is now.
    pub fn push(&self, event: Event) {
        let mut queue = self.queue.borrow_mut();
        if !queue.make_room(&event) {
            return log::error!("{MOST} bytes of exits wait, lost: {event:?}");
        }
        queue.push(now(), event);
        self.pushed.notify_one();
    }

    /// Waits for the head of the queue. It stays there until [`Outbox::sent`].
    pub async fn head(&self) -> (Timestamp, Event) {
        loop {
            if let Some(head) = self.queue.borrow().events.front() {
                return head.clone();
            }
            self.pushed.notified().await;
        }
    }

    /// The head is on its way, so that nobody can say whether it has arrived; false: it is not,
    /// or not any more.
    pub fn set_sending(&self, sending: bool) {
        self.sending.set(sending);
        self.changed.notify_waiters();
    }

    /// The head has arrived, or was refused for good.
    pub fn sent(&self) {
        self.queue.borrow_mut().remove(0);
        self.set_sending(false);
    }

    pub fn is_settled(&self) -> bool {
        !self.sending.get()
    }

    /// Waits until it is known of every event whether it has arrived.
    pub async fn settled(&self) {
        while self.sending.get() {
            self.changed.notified().await;
        }
    }

    /// What waits in it.
    pub fn look(&self) -> OfEvents {
        let queue = self.queue.borrow();
        let oldest = queue.events.front().map(|(at, _)| at.seconds);
        let waited = oldest.map_or(0, |at| now().seconds.saturating_sub(at));
        OfEvents {
            waiting: queue.events.len(),
            bytes: queue.bytes,
            // The clock may have been moved back.
            oldest_seconds: u64::try_from(waited).unwrap_or(0),
            sending: self.sending.get(),
        }
    }

    /// Describes the events that have not arrived; [`Outbox::settled`] must have come true.
    pub fn hand_over(&self) -> Vec<handover::Event> {
        let describe = |(at, event): &(Timestamp, Event)| {
            let any = event.envelope().1;
            handover::Event {
                at: (at.seconds, at.nanos),
                type_url: any.type_url,
                value: any.value,
            }
        };
        self.queue.borrow().events.iter().map(describe).collect()
    }

    /// Goes on with the events of another process image; an event we do not know is lost.
    pub fn take_over(&self, events: Vec<handover::Event>) {
        for event in events {
            let (seconds, nanos) = event.at;
            let any = Any {
                type_url: event.type_url,
                value: event.value,
            };
            match Event::from_any(&any) {
                Some(event) => {
                    let at = Timestamp { seconds, nanos };
                    self.queue.borrow_mut().push(at, event);
                }
                None => log::error!("event {} of another version is lost", any.type_url),
            }
        }
        self.pushed.notify_one();
    }

    /// Waits until every event pushed so far has arrived.
    pub async fn drained(&self) {
        while !self.queue.borrow().events.is_empty() {
            self.changed.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protos::events::TaskOom;
    use std::rc::Rc;

    fn oom(id: &str) -> Event {
        Event::Oom(TaskOom {
            container_id: id.into(),
        })
    }

    fn exit(pid: u32, id: &str) -> Event {
        Event::Exit(protos::events::TaskExit {
            pid,
            id: id.into(),
            ..Default::default()
        })
    }

    /// All that waits, in order.
    async fn rest(outbox: &Outbox) -> Vec<Event> {
        let mut rest = Vec::new();
        while !outbox.queue.borrow().events.is_empty() {
            rest.push(outbox.head().await.1);
            outbox.sent();
        }
        assert_eq!(outbox.queue.borrow().bytes, 0);
        rest
    }

    #[tokio::test]
    async fn exits_are_the_last_to_be_lost() {
        let outbox = Outbox::default();
        outbox.push(oom("head"));
        for pid in 0..20_000 {
            outbox.push(oom("a"));
            if pid % 2 == 0 {
                outbox.push(exit(pid, "e"));
            }
        }
        assert!(outbox.queue.borrow().bytes <= MOST);
        let rest = rest(&outbox).await;
        assert_eq!(rest[0], oom("head"), "it may be on its way");
        let exits = rest.iter().filter(|event| event.tells_exit()).count();
        assert_eq!(exits, 10_000);
    }

    /// However long they are: 500 MB went into a shim once.
    #[tokio::test]
    async fn what_waits_has_a_bound_in_bytes() {
        let outbox = Outbox::default();
        outbox.push(exit(1, "first"));
        for _ in 0..500 {
            outbox.push(oom(&"x".repeat(1 << 20)));
            assert!(outbox.queue.borrow().bytes <= MOST + (2 << 20));
        }
        for pid in 2..=50_000 {
            outbox.push(exit(pid, "e"));
        }
        outbox.push(oom("no room"));
        assert!(outbox.queue.borrow().bytes <= MOST);
        let rest = rest(&outbox).await;
        assert!(rest.iter().all(Event::tells_exit));
        assert_eq!(rest.first(), Some(&exit(1, "first")));
        assert_eq!(rest.last(), Some(&exit(50_000, "e")));
    }

    #[tokio::test]
    async fn events_leave_in_order_and_drained_waits_for_the_last() {
        let outbox = Rc::new(Outbox::default());
        outbox.push(oom("a"));
        outbox.push(oom("b"));
        assert_eq!(outbox.head().await.1, oom("a"));
        outbox.sent();
        assert_eq!(outbox.head().await.1, oom("b"));
        let mut drained = Box::pin(outbox.drained());
        tokio::select! {
            biased;
            () = &mut drained => panic!("b has not arrived yet"),
            () = std::future::ready(()) => {}
        }
        outbox.sent();
        drained.await;
    }
}
