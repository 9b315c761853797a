// SPDX-License-Identifier: Apache-2.0
//! The one who writes down, beside the loop, what has come; and then tells it.

use super::queue::{Entry, Item};
use super::{Intake, count};
use crate::failure::{Failure, exhausted, unavailable};
use crate::journal::{ExecDeleted, Journal, Record};
use crate::ledger::{Origin, Verdict, key_of};
use protos::types::Envelope;
use protos::{Code, topic};
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use task::aside;

/// How long to wait before the journal is tried again, unless something comes.
const RETRY: Duration = Duration::from_millis(500);

/// Only ever locked beside the loop: who has it may wait for the disk.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<Journal>>);

impl Shared {
    pub fn new(journal: Journal) -> Self {
        Self(Arc::new(Mutex::new(journal)))
    }

    /// Not for the loop.
    pub fn lock(&self) -> MutexGuard<'_, Journal> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What could not be written, and why.
type Unwritten = (Failure, Record);

impl Intake {
    /// Writes down what comes, for ever.
    pub async fn run(&self) {
        loop {
            match self.queue.next() {
                Some(item) => self.work_on(item).await,
                None => self.queue.arrived.notified().await,
            }
        }
    }

    async fn work_on(&self, item: Item) {
        let Item {
            entry,
            number,
            told,
        } = item;
        if entry.is_folded() {
            let events = entry.unfold(&self.ledger.borrow());
            return self.instead(events, number);
        }
        let (written, entry) = match entry {
            Entry::Event(envelope, origin) => match self.tell(envelope, origin).await {
                Ok(()) => (Ok(()), None),
                Err((e, record)) => (Err(e), record.envelope.map(|it| Entry::Event(it, origin))),
            },
            Entry::Mark(record) => match self.mark(record).await {
                Ok(()) => (Ok(()), None),
                Err((e, record)) => (Err(e), Some(Entry::Mark(record))),
            },
            Entry::Reaped { .. } | Entry::Over(_) => (Ok(()), None),
        };
        let passes = |e: &Failure| e.code == Code::Unavailable;
        match (&written, entry) {
            (Err(e), Some(entry)) if told.is_none() && passes(e) => {
                self.queue.put_back(Item {
                    entry,
                    number,
                    told: None,
                });
            }
            (Err(e), _) if told.is_none() => {
                log::error!("{e}");
                self.queue.done(number);
            }
            _ => self.queue.done(number),
        }
        let failure = written.as_ref().err().filter(|e| passes(e)).cloned();
        if let Some(told) = told {
            let _ = told.send(written);
        }
        match failure {
            None => {
                if self.queue.failing.send_replace(false) {
                    log::info!("journal: can be written again");
                }
            }
            Some(failure) => self.pause(&failure).await,
        }
    }

    /// An entry turned out to be these.
    fn instead(&self, events: Vec<Entry>, number: u64) {
        if events.is_empty() {
            return self.queue.done(number);
        }
        // Together they are what it was: it is not done before the last of them is.
        let last = events.len() - 1;
        for (n, entry) in events.into_iter().enumerate().rev() {
            let number = if n == last { number } else { number - 1 };
            self.queue.put_back(Item {
                entry,
                number,
                told: None,
            });
        }
    }

    /// The journal cannot be written: until it is tried again.
    async fn pause(&self, failure: &Failure) {
        self.queue.failing.send_replace(true);
        self.queue.refuse(failure);
        if !self.queue.is_empty() {
            let _ = tokio::time::timeout(RETRY, self.queue.arrived.notified()).await;
        }
    }

    async fn tell(&self, mut envelope: Envelope, origin: Origin) -> Result<(), Unwritten> {
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
                if let Some(key) = key_of(&envelope) {
                    log::warn!("{key}: exit status {said} contradicts {known}, which stands");
                }
                return Ok(());
            }
        }
        let record = Record {
            envelope: Some(envelope),
            origin: origin.name().into(),
            ..Default::default()
        };
        let (seq, record, is_full) = self.write(record).await?;
        self.publish_record(seq, record, origin);
        if is_full {
            self.compact().await;
        }
        Ok(())
    }

    /// Tells what is in the journal to all who want to know.
    fn publish_record(&self, seq: u64, record: Record, origin: Origin) {
        let is_exit = record
            .envelope
            .as_ref()
            .is_some_and(|envelope| envelope.topic == topic::TASK_EXIT);
        // Nobody asks for an exec that is deleted.
        let is_replayable = is_exit && self.ledger.borrow().needs(seq, &record);
        let Some(envelope) = record.envelope else {
            return;
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
    }

    async fn mark(&self, record: Record) -> Result<(), Unwritten> {
        if let Some(gone) = &record.exec_deleted
            && !self.knows(gone)
        {
            return Ok(());
        }
        let (_, record, is_full) = self.write(record).await?;
        if let Some(gone) = &record.exec_deleted {
            self.forget_exit(gone);
        }
        if is_full {
            self.compact().await;
        }
        Ok(())
    }

    fn knows(&self, gone: &ExecDeleted) -> bool {
        let ledger = self.ledger.borrow();
        let facts = ledger.facts(&gone.key());
        facts.is_some_and(|facts| facts.processes.contains_key(&gone.process()))
    }

    /// The exit of an exec that is deleted is replayed to nobody.
    fn forget_exit(&self, gone: &ExecDeleted) {
        if let Some(exit) = self.exit(&gone.key(), &gone.process()) {
            self.exchange.forget(exit.seq);
        }
    }

    /// The number that the record has got, and whether it has filled a segment.
    async fn write(&self, record: Record) -> Result<(u64, Record, bool), Unwritten> {
        let journal = self.journal.clone();
        let append = move || {
            let mut journal = journal.lock();
            let appended = journal.append(&record);
            (appended, record, journal.is_full())
        };
        let (appended, record, is_full) = aside::run(append).await;
        match appended {
            Ok(seq) => {
                self.last.set(seq);
                self.ledger.borrow_mut().apply(seq, &record);
                Ok((seq, record, is_full))
            }
            Err(e) if e.kind() == ErrorKind::InvalidInput => {
                Err((exhausted(format!("journal: {e}")), record))
            }
            Err(e) => Err((unavailable(format!("journal: {e}")), record)),
        }
    }

    /// Nothing is written meanwhile, so that the ledger stays as it was.
    async fn compact(&self) {
        let journal = self.journal.clone();
        let ledger = self.ledger.borrow().undeleted();
        let compact = move || {
            let mut journal = journal.lock();
            journal.compact(|seq, record| ledger.needs(seq, record))
        };
        if let Err(e) = aside::run(compact).await {
            log::error!("journal: compact: {e}");
        }
    }
}
