//! The intake: every event goes through here, is judged, written down, and only then told.
//!
//! ```text
//!  shim ── Forward ──┐
//!  Publish, Forward ─┼─> checks ─> ledger: known? ─> journal ─> ledger ─> exchange ─> subscribers
//!  ourselves ────────┘                 │                          └─> who waits for an exit
//!                                      └─ known already: answered, not told again
//! ```

mod service;
mod sync;
mod unwritten;

pub use service::EventsService;

use crate::exchange::Exchange;
use crate::failure::{Failure, exhausted, unavailable};
use crate::filter::Filters;
use crate::journal::{Journal, Record};
use crate::ledger::{Exit, Key, Ledger, Origin, Verdict, container_of, process_of};
use crate::subscription::Subscription;
use protos::events::{TaskDelete, TaskExit};
use protos::types::Envelope;
use protos::{Any, Code, Timestamp, any, topic};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use task::ProcessId;
use tokio::sync::{Notify, mpsc, watch};
use unwritten::Unwritten;

pub struct Intake {
    journal: RefCell<Journal>,
    ledger: RefCell<Ledger>,
    pub exchange: Exchange,
    /// The number of the latest record.
    latest: watch::Sender<u64>,
    exits: mpsc::UnboundedSender<(Key, Exit)>,
    /// What we know ourselves and could not write down yet, in order. Whatever else comes waits
    /// behind it; shims keep theirs meanwhile.
    unwritten: RefCell<VecDeque<Unwritten>>,
    is_stuck: Notify,
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
            journal: journal.into(),
            ledger: ledger.into(),
            exchange: Exchange::default(),
            exits,
            unwritten: RefCell::default(),
            is_stuck: Notify::new(),
            on_disk: watch::Sender::new(0),
            is_syncing: Cell::new(false),
            counters: Counters::default(),
        }
    }

    /// Takes an event. When this returns it is in the journal, and subscribers have it.
    ///
    /// # Errors
    /// `InvalidArgument` for an envelope that is not whole, `ResourceExhausted` for one that is too
    /// long, `Unavailable` if the journal cannot be written: then nobody was told, and the sender
    /// should try again.
    pub fn take(&self, envelope: Envelope, origin: Origin) -> Result<(), Failure> {
        service::check(&envelope)?;
        count(&self.counters.received);
        self.write_down()?;
        self.tell(envelope, origin)
    }

    fn tell(&self, mut envelope: Envelope, origin: Origin) -> Result<(), Failure> {
        let verdict = self.ledger.borrow().judge(&envelope);
        match verdict {
            Verdict::Take => {}
            Verdict::Amend(event) => {
                count(&self.counters.conflicts);
                envelope.event = Some(event);
            }
            Verdict::Duplicate => {
                count(&self.counters.duplicates);
                return Ok(());
            }
            Verdict::Conflict { known, said } => {
                count(&self.counters.conflicts);
                let container = container_of(&envelope).unwrap_or_default();
                log::warn!(
                    "{}/{container}: exit status {said} contradicts {known}, which stands",
                    envelope.namespace
                );
                return Ok(());
            }
        }
        let record = Record {
            envelope: Some(envelope),
            origin: origin.name().into(),
            ..Default::default()
        };
        let seq = self.write(&record)?;
        let is_exit = record
            .envelope
            .as_ref()
            .is_some_and(|envelope| envelope.topic == topic::TASK_EXIT);
        // Nobody asks for an exec that is deleted.
        let is_replayable = is_exit && self.ledger.borrow().needs(seq, &record);
        let Some(envelope) = record.envelope else {
            return Ok(());
        };
        if envelope.topic == topic::TASK_OOM {
            count(&self.counters.ooms);
        }
        if envelope.topic == topic::TASK_DELETE {
            self.forget(&envelope);
        }
        self.exchange
            .publish(seq, origin.name(), &envelope, is_replayable);
        if is_exit {
            *self
                .counters
                .exits
                .borrow_mut()
                .entry(origin.name())
                .or_default() += 1;
            self.tell_exit(&envelope);
        }
        self.latest.send_replace(seq);
        Ok(())
    }

    fn write(&self, record: &Record) -> Result<u64, Failure> {
        let mut journal = self.journal.borrow_mut();
        let seq = journal.append(record).map_err(|e| match e.kind() {
            std::io::ErrorKind::InvalidInput => exhausted(format!("journal: {e}")),
            _ => unavailable(format!("journal: {e}")),
        })?;
        let mut ledger = self.ledger.borrow_mut();
        ledger.apply(seq, record);
        if journal.is_full()
            && let Err(e) = journal.compact(|seq, record| ledger.needs(seq, record))
        {
            log::error!("journal: compact: {e}");
        }
        Ok(seq)
    }

    /// Publishes an event of our own, as soon as it can be written down.
    pub fn publish(&self, namespace: &str, topic: &str, event: Any, origin: Origin) {
        let envelope = Envelope {
            timestamp: Some(task::event::now()),
            namespace: namespace.to_owned(),
            topic: topic.to_owned(),
            event: Some(event),
        };
        match self.take(envelope.clone(), origin) {
            Err(e) if e.code == Code::Unavailable && self.has_room(&envelope) => {
                self.keep(Unwritten::Event(envelope, origin));
            }
            Err(e) => log::error!("{namespace}: {topic}: {e}"),
            Ok(()) => {}
        }
    }

    /// Publishes an exit that we know from elsewhere than an event.
    pub fn publish_exit(
        &self,
        key: &Key,
        exec: &str,
        pid: u32,
        exit: (u32, Option<Timestamp>),
        origin: Origin,
    ) {
        let (namespace, id) = key;
        let event = TaskExit {
            container_id: id.clone(),
            id: if exec.is_empty() { id } else { exec }.to_owned(),
            pid,
            exit_status: exit.0,
            exited_at: exit.1.or_else(|| Some(task::event::now())),
        };
        self.publish(namespace, topic::TASK_EXIT, any::pack(&event), origin);
    }

    /// Publishes the end of a task, unless its shim has.
    pub fn publish_delete(&self, key: &Key, pid: u32, exit: (u32, Option<Timestamp>)) {
        let event = TaskDelete {
            container_id: key.1.clone(),
            pid,
            exit_status: exit.0,
            exited_at: exit.1,
            id: String::new(),
        };
        self.publish(&key.0, topic::TASK_DELETE, any::pack(&event), Origin::State);
    }

    pub fn ledger(&self) -> std::cell::Ref<'_, Ledger> {
        self.ledger.borrow()
    }

    pub fn exit(&self, key: &Key, exec: &str) -> Option<Exit> {
        self.ledger.borrow().facts(key)?.exit(exec).cloned()
    }

    /// Waits for the exit of a process.
    pub async fn exited(&self, key: &Key, exec: &str) -> Exit {
        let mut latest = self.latest.subscribe();
        loop {
            if let Some(exit) = self.exit(key, exec) {
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
            for (exec, process) in facts.processes.iter().filter(|(_, p)| !p.deleted) {
                let Some(exit) = &process.exit else { continue };
                let event = TaskExit {
                    container_id: key.1.clone(),
                    id: if exec.is_empty() { &key.1 } else { exec }.clone(),
                    pid: process.pid,
                    exit_status: exit.status,
                    exited_at: exit.at,
                };
                let envelope = Envelope {
                    timestamp: Some(exit.at.unwrap_or_else(task::event::now)),
                    namespace: key.0.clone(),
                    topic: topic::TASK_EXIT.into(),
                    event: Some(any::pack(&event)),
                };
                exits.push((exit.seq, envelope));
            }
        }
        exits.sort_unstable_by_key(|(seq, _)| *seq);
        exits
    }

    pub fn journal_dir(&self) -> std::path::PathBuf {
        self.journal.borrow().dir().to_owned()
    }

    pub fn last(&self) -> u64 {
        self.journal.borrow().last()
    }

    fn tell_exit(&self, envelope: &Envelope) {
        let exit = envelope.event.as_ref().and_then(any::unpack::<TaskExit>);
        if let Some(Ok(exit)) = exit
            && process_of(&exit) == ProcessId::Init
        {
            let key = (envelope.namespace.clone(), exit.container_id);
            if let Some(exit) = self.exit(&key, "") {
                let _ = self.exits.send((key, exit));
            }
        }
    }

    /// Exits of a deleted task are replayed to nobody.
    fn forget(&self, envelope: &Envelope) {
        let Some(container) = container_of(envelope) else {
            return;
        };
        let key = (envelope.namespace.clone(), container);
        let ledger = self.ledger.borrow();
        let facts = ledger.facts(&key).filter(|facts| facts.deleted);
        for process in facts.into_iter().flat_map(|facts| facts.processes.values()) {
            if let Some(exit) = &process.exit {
                self.exchange.forget(exit.seq);
            }
        }
    }
}
