// SPDX-License-Identifier: Apache-2.0
//! The intake: every event goes through here, is judged, written down, and only then told.
//!
//! ```text
//!  shim ── Forward ──┐
//!  Publish, Forward ─┼─> checks ─> queue ─> ledger: known? ─> journal ─> ledger ─> exchange ─> subscribers
//!  ourselves ────────┘                            │         (beside the loop)  └─> who waits for an exit
//!                                                 └─ known already: answered, not told again
//! ```

mod queue;
mod service;
mod sync;
mod writer;

pub use service::EventsService;

pub use queue::End;

use crate::exchange::Exchange;
use crate::failure::Failure;
use crate::filter::Filters;
use crate::journal::Journal;
use crate::ledger::{Exit, Ledger, Origin, key_of, process_of};
use crate::names::Key;
use crate::subscription::Subscription;
use protos::events::{TaskDelete, TaskExit};
use protos::types::Envelope;
use protos::{Any, Timestamp, any, topic};
use queue::{Entry, Queue};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;
use task::ProcessId;
use tokio::sync::{mpsc, watch};

/// How long the journal may take before whoever waits for it is told so, or goes on without.
const PATIENCE: Duration = Duration::from_secs(2);

pub struct Intake {
    journal: writer::Shared,
    /// Where the journal is, and whether it has to survive a power loss.
    dir: PathBuf,
    is_durable: bool,
    /// The number of the latest record.
    last: Cell<u64>,
    ledger: RefCell<Ledger>,
    pub exchange: Exchange,
    /// The number of the latest event.
    latest: watch::Sender<u64>,
    exits: mpsc::UnboundedSender<(Key, Exit)>,
    queue: Queue,
    /// The number up to which the journal survives a power loss, if it is to.
    on_disk: watch::Sender<u64>,
    is_syncing: Cell<bool>,
    pub counters: Counters,
}

/// For the metrics.
#[derive(Default)]
pub struct Counters {
    pub received: Cell<u64>,
    pub duplicates: Cell<u64>,
    pub conflicts: Cell<u64>,
    pub ooms: Cell<u64>,
    pub exits: RefCell<HashMap<&'static str, u64>>,
}

fn count(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

impl Intake {
    /// Init's exits go to `exits` too, for restart policies.
    pub fn new(
        journal: Journal,
        ledger: Ledger,
        exits: mpsc::UnboundedSender<(Key, Exit)>,
    ) -> Self {
        Self {
            latest: watch::Sender::new(journal.last()),
            last: journal.last().into(),
            dir: journal.dir().to_owned(),
            is_durable: journal.is_durable(),
            journal: writer::Shared::new(journal),
            ledger: ledger.into(),
            exchange: Exchange::default(),
            exits,
            queue: Queue::default(),
            on_disk: watch::Sender::new(0),
            is_syncing: Cell::new(false),
            counters: Counters::default(),
        }
    }

    /// Takes an event. When this returns it is in the journal, and subscribers have it.
    ///
    /// # Errors
    /// `InvalidArgument` for an envelope that is not whole, `ResourceExhausted` for one that is too
    /// long, `Unavailable` if the journal cannot be written, or not in time: then the sender should
    /// try again.
    pub async fn take(&self, envelope: Envelope, origin: Origin) -> Result<(), Failure> {
        service::check(&envelope)?;
        count(&self.counters.received);
        self.put(envelope, origin).await
    }

    /// Publishes an event of our own, as soon as it can be written down; waits for that, but not for
    /// long.
    pub async fn publish(&self, namespace: &str, topic: &str, event: Any, origin: Origin) {
        let envelope = Envelope {
            timestamp: Some(task::event::now()),
            namespace: namespace.to_owned(),
            topic: topic.to_owned(),
            event: Some(event),
        };
        if let Err(e) = service::check(&envelope) {
            return log::error!("{namespace}: {topic}: {e}");
        }
        self.room_for(&envelope).await;
        self.keep(Entry::Event(envelope, origin));
        self.settled().await;
    }

    /// Publishes an exit that we know from elsewhere than an event, as soon as it can be written down.
    pub fn publish_exit(
        &self,
        key: &Key,
        process: &ProcessId,
        pid: u32,
        exit: (u32, Option<Timestamp>),
        origin: Origin,
    ) {
        let envelope = queue::exit_of(key, process, pid, exit);
        self.keep(Entry::Event(envelope, origin));
    }

    /// Publishes the end of a task, unless its shim has; as soon as it can be written down.
    pub fn publish_delete(&self, key: &Key, pid: u32, exit: (u32, Option<Timestamp>)) {
        let event = TaskDelete {
            container_id: key.id.clone(),
            pid,
            exit_status: exit.0,
            exited_at: exit.1,
            id: String::new(),
        };
        let envelope = Envelope {
            timestamp: Some(task::event::now()),
            namespace: key.namespace.clone(),
            topic: topic::TASK_DELETE.to_owned(),
            event: Some(any::pack(&event)),
        };
        self.keep(Entry::Event(envelope, Origin::State));
    }

    pub fn ledger(&self) -> std::cell::Ref<'_, Ledger> {
        self.ledger.borrow()
    }

    pub fn exit(&self, key: &Key, process: &ProcessId) -> Option<Exit> {
        self.ledger.borrow().facts(key)?.exit(process).cloned()
    }

    /// Waits for the exit of a process.
    pub async fn exited(&self, key: &Key, process: &ProcessId) -> Exit {
        let mut latest = self.latest.subscribe();
        loop {
            if let Some(exit) = self.exit(key, process) {
                return exit;
            }
            if latest.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until the task's deletion has been published.
    pub async fn deleted(&self, key: &Key) {
        let mut latest = self.latest.subscribe();
        while self
            .ledger
            .borrow()
            .facts(key)
            .is_none_or(|facts| !facts.deleted)
        {
            if latest.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// A new subscriber: what it missed, then all that comes.
    ///
    /// # Errors
    /// `InvalidArgument` with the filter that does not parse.
    pub fn subscribe(&self, filters: &[String], replay: bool) -> Result<Subscription, Failure> {
        let parsed = Filters::parse(filters)?;
        let missed = if replay {
            self.undeleted_exits()
        } else {
            Vec::new()
        };
        Ok(self.exchange.subscribe(filters, parsed, missed))
    }

    /// Exits of stopped tasks that nobody has deleted, oldest first.
    fn undeleted_exits(&self) -> Vec<(u64, Envelope)> {
        let mut exits = Vec::new();
        for (key, facts) in self
            .ledger
            .borrow()
            .all()
            .filter(|(_, facts)| !facts.deleted)
        {
            for (id, process) in facts.processes.iter().filter(|(_, p)| !p.deleted) {
                let Some(exit) = &process.exit else { continue };
                let told = queue::exit_of(key, id, process.pid, (exit.status, exit.at));
                let envelope = Envelope {
                    timestamp: exit.at.or(told.timestamp),
                    ..told
                };
                exits.push((exit.seq, envelope));
            }
        }
        exits.sort_unstable_by_key(|(seq, _)| *seq);
        exits
    }

    pub fn journal_dir(&self) -> PathBuf {
        self.dir.clone()
    }

    pub fn last(&self) -> u64 {
        self.last.get()
    }

    fn tell_exit(&self, envelope: &Envelope) {
        let exit = envelope.event.as_ref().and_then(any::unpack::<TaskExit>);
        if let Some(Ok(exit)) = exit
            && process_of(&exit) == ProcessId::Init
        {
            let key = Key::new(&envelope.namespace, &exit.container_id);
            if let Some(exit) = self.exit(&key, &ProcessId::Init) {
                let _ = self.exits.send((key, exit));
            }
        }
    }

    /// Exits of a deleted task are replayed to nobody.
    fn forget(&self, envelope: &Envelope) {
        let Some(key) = key_of(envelope) else {
            return;
        };
        let ledger = self.ledger.borrow();
        let facts = ledger.facts(&key).filter(|facts| facts.deleted);
        for process in facts.into_iter().flat_map(|facts| facts.processes.values()) {
            if let Some(exit) = &process.exit {
                self.exchange.forget(exit.seq);
            }
        }
    }
}
