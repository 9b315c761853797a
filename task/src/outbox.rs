//! The queue between the engine and whoever publishes: events leave in the order they happened.

use crate::event::{Event, now};
use crate::handover;
use protos::{Any, Timestamp};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use tokio::sync::Notify;

/// The most events that wait, some 3 MiB of them. One more, and the oldest that tells of no exit
/// is lost; if all do, the oldest.
const MOST: usize = 10_000;

/// In order. One publisher sends the head, and only then removes it, so that a failed send keeps
/// its place.
#[derive(Default)]
pub struct Outbox {
    queue: RefCell<VecDeque<(Timestamp, Event)>>,
    /// The publisher is sending the head.
    sending: Cell<bool>,
    pushed: Notify,
    changed: Notify,
}

impl Outbox {
    /// Queues `event`; its time is now.
    pub fn push(&self, event: Event) {
        let mut queue = self.queue.borrow_mut();
        if queue.len() >= MOST {
            // Not the head, which may be on its way.
            let mut rest = queue.iter().skip(1);
            let oldest = rest.position(|(_, event)| !event.tells_exit());
            let oldest = oldest.unwrap_or(0) + 1;
            if let Some((_, lost)) = queue.remove(oldest) {
                log::error!("{MOST} events wait, lost: {lost:?}");
            }
        }
        queue.push_back((now(), event));
        self.pushed.notify_one();
    }

    /// Waits for the head of the queue. It stays there until [`Outbox::sent`].
    pub async fn head(&self) -> (Timestamp, Event) {
        loop {
            if let Some(head) = self.queue.borrow().front() {
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
        self.queue.borrow_mut().pop_front();
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
        self.queue.borrow().iter().map(describe).collect()
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
                    self.queue.borrow_mut().push_back((at, event));
                }
                None => log::error!("event {} of another version is lost", any.type_url),
            }
        }
        self.pushed.notify_one();
    }

    /// Waits until every event pushed so far has arrived.
    pub async fn drained(&self) {
        while !self.queue.borrow().is_empty() {
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

    #[tokio::test]
    async fn exits_are_the_last_to_be_lost() {
        let outbox = Outbox::default();
        let exit = |pid| {
            Event::Exit(protos::events::TaskExit {
                pid,
                ..Default::default()
            })
        };
        outbox.push(exit(1));
        outbox.push(oom("a"));
        for pid in 2..=MOST as u32 {
            outbox.push(exit(pid));
        }
        assert_eq!(outbox.queue.borrow().len(), MOST);
        assert_eq!(outbox.head().await.1, exit(1));
        outbox.sent();
        assert_eq!(outbox.head().await.1, exit(2));
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
