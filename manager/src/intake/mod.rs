//! The intake: every event goes through here, is judged, written down, and only then told.
//!
//! ```text
//!  shim ── Forward ──┐
//!  Publish, Forward ─┼─> checks ─> ledger: known? ─> journal ─> ledger ─> exchange ─> subscribers
//!  ourselves ────────┘                 │                          └─> who waits for an exit
//!                                      └─ known already: answered, not told again
//! ```

use crate::exchange::{Entry, Exchange};
use crate::failure::{Failure, invalid, unavailable};
use crate::filter::Filters;
use crate::journal::{Journal, Record, Started};
use crate::ledger::{Exit, Key, Ledger, Origin, Verdict, container_of, exec_of};
use crate::names::{check_id, check_topic};
use protos::events::{TaskDelete, TaskExit};
use protos::events_service::ForwardRequest;
use protos::ttrpc::{Answer, Context, Request, Service};
use protos::types::Envelope;
use protos::{Any, Message, Name, Timestamp, any, topic};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use tokio::sync::{mpsc, watch};

pub struct Intake {
    journal: RefCell<Journal>,
    ledger: RefCell<Ledger>,
    pub exchange: Exchange,
    /// The number of the latest record.
    latest: watch::Sender<u64>,
    exits: mpsc::UnboundedSender<(Key, Exit)>,
    /// Journals that must survive a power loss are synced.
    durable: bool,
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
        durable: bool,
        exits: mpsc::UnboundedSender<(Key, Exit)>,
    ) -> Self {
        Self {
            latest: watch::Sender::new(journal.last()),
            journal: journal.into(),
            ledger: ledger.into(),
            exchange: Exchange::default(),
            exits,
            durable,
            counters: Counters::default(),
        }
    }

    /// Takes an event. When this returns it is in the journal, and subscribers have it.
    ///
    /// # Errors
    /// `InvalidArgument` for an envelope that is not whole, `Unavailable` if the journal cannot
    /// be written: then nobody was told, and the sender should try again.
    pub fn take(&self, mut envelope: Envelope, origin: Origin) -> Result<(), Failure> {
        check(&envelope)?;
        count(&self.counters.received);
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
            started: None,
        };
        let seq = self.write(&record)?;
        let Some(envelope) = record.envelope else {
            return Ok(());
        };
        let is_exit = envelope.topic == topic::TASK_EXIT;
        if envelope.topic == topic::TASK_OOM {
            count(&self.counters.ooms);
        }
        if envelope.topic == topic::TASK_DELETE {
            self.forget(&envelope);
        }
        self.exchange
            .publish(seq, origin.name(), &envelope, is_exit);
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

    /// Writes down that a process is running, before anybody is told that it was started.
    ///
    /// # Errors
    /// `Unavailable` if the journal cannot be written.
    pub fn started(&self, started: Started) -> Result<(), Failure> {
        let record = Record {
            started: Some(started),
            ..Default::default()
        };
        self.write(&record).map(drop)
    }

    fn write(&self, record: &Record) -> Result<u64, Failure> {
        let mut journal = self.journal.borrow_mut();
        let seq = journal
            .append(record)
            .map_err(|e| unavailable(format!("journal: {e}")))?;
        let mut ledger = self.ledger.borrow_mut();
        ledger.apply(seq, record);
        if journal.is_full()
            && let Err(e) = journal.compact(|seq, record| ledger.needs(seq, record))
        {
            log::error!("journal: compact: {e}");
        }
        Ok(seq)
    }

    /// Waits until what was written is on disk, if it has to be.
    pub async fn synced(&self) {
        let file = self.durable.then(|| self.journal.borrow().file()).flatten();
        if let Some(file) = file {
            let synced = tokio::task::spawn_blocking(move || file.sync_data()).await;
            if !matches!(synced, Ok(Ok(()))) {
                log::error!("journal: sync failed");
            }
        }
    }

    /// Publishes an event of our own; a refusal is logged.
    pub fn publish(&self, namespace: &str, topic: &str, event: Any, origin: Origin) {
        let envelope = Envelope {
            timestamp: Some(task::event::now()),
            namespace: namespace.to_owned(),
            topic: topic.to_owned(),
            event: Some(event),
        };
        if let Err(e) = self.take(envelope, origin) {
            log::error!("{namespace}: {topic}: {e}");
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

    pub fn forget_exec(&self, key: &Key, exec: &str) {
        if let Some(exit) = self.exit(key, exec) {
            self.exchange.forget(exit.seq);
        }
        self.ledger.borrow_mut().forget_exec(key, exec);
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
    pub fn subscribe(
        &self,
        filters: &[String],
        replay: bool,
    ) -> Result<mpsc::UnboundedReceiver<Entry>, Failure> {
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
            for (exec, process) in &facts.processes {
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
            && exec_of(&exit.container_id, &exit.id).is_empty()
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

/// core/events/exchange.go:201-238.
fn check(envelope: &Envelope) -> Result<(), Failure> {
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

impl Service for EventsService {
    fn call(self: Rc<Self>, request: Request) -> Pin<Box<dyn Future<Output = Answer>>> {
        Box::pin(async move {
            if request.method != "Forward" {
                return Err(Context::no_such_method(&request.method));
            }
            let forward = ForwardRequest::decode(request.payload.as_slice())
                .map_err(|e| invalid(format!("{}: {e}", ForwardRequest::full_name())))?;
            let envelope = forward.envelope.ok_or_else(|| invalid("no envelope"))?;
            let wants_sync = matches!(envelope.topic.as_str(), topic::TASK_EXIT | topic::TASK_OOM);
            self.intake.take(envelope, Origin::Shim)?;
            if wants_sync {
                self.intake.synced().await;
            }
            Ok(Vec::new())
        })
    }
}
