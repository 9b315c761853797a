//! What we know ourselves and cannot write down, as on a full disk: it is kept, and comes first
//! once the journal can be written again.

use super::Intake;
use crate::failure::Failure;
use crate::journal::{ExecDeleted, Record, Started};
use crate::ledger::{Key, Origin};
use protos::types::Envelope;
use protos::{Message, topic};
use std::time::Duration;

/// How long to wait before the journal is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// Of events that tell of no end, so many bytes are kept.
const MOST: usize = 1 << 20;

pub enum Unwritten {
    Event(Envelope, Origin),
    Mark(Record),
}

impl Intake {
    /// Writes down that a process is running, before anybody is told that it was started. If that
    /// cannot be done now it is done later: the process runs, and saying otherwise would be worse.
    pub fn started(&self, started: Started) {
        self.mark(Record {
            started: Some(started),
            ..Default::default()
        });
    }

    /// An exec is gone for good: its name may be used again.
    pub fn forget_exec(&self, key: &Key, exec: &str) {
        {
            let ledger = self.ledger.borrow();
            let processes = ledger.facts(key).map(|facts| &facts.processes);
            let Some(process) = processes.and_then(|all| all.get(exec)) else {
                return;
            };
            if let Some(exit) = &process.exit {
                self.exchange.forget(exit.seq);
            }
        }
        let exec_deleted = ExecDeleted {
            namespace: key.0.clone(),
            container: key.1.clone(),
            exec: exec.to_owned(),
        };
        self.mark(Record {
            exec_deleted: Some(exec_deleted),
            ..Default::default()
        });
    }

    fn mark(&self, record: Record) {
        if self
            .write_down()
            .and_then(|()| self.write(&record))
            .is_err()
        {
            self.keep(Unwritten::Mark(record));
        }
    }

    /// True of an event that may be kept: one that tells the end of a process always, for there are
    /// no more of them than processes.
    pub(super) fn has_room(&self, envelope: &Envelope) -> bool {
        if matches!(
            envelope.topic.as_str(),
            topic::TASK_EXIT | topic::TASK_DELETE
        ) {
            return true;
        }
        let unwritten = self.unwritten.borrow();
        let kept = unwritten.iter().map(|it| match it {
            Unwritten::Event(envelope, _) => envelope.encoded_len(),
            Unwritten::Mark(record) => record.encoded_len(),
        });
        kept.sum::<usize>() + envelope.encoded_len() <= MOST
    }

    pub(super) fn keep(&self, unwritten: Unwritten) {
        self.unwritten.borrow_mut().push_back(unwritten);
        self.is_stuck.notify_one();
    }

    /// Writes down what could not be written when it happened.
    pub(super) fn write_down(&self) -> Result<(), Failure> {
        loop {
            let Some(next) = self.unwritten.borrow_mut().pop_front() else {
                return Ok(());
            };
            let (written, next) = match next {
                Unwritten::Event(envelope, origin) => (
                    self.tell(envelope.clone(), origin),
                    Unwritten::Event(envelope, origin),
                ),
                Unwritten::Mark(record) => (self.write(&record).map(drop), Unwritten::Mark(record)),
            };
            if let Err(e) = written {
                self.unwritten.borrow_mut().push_front(next);
                return Err(e);
            }
        }
    }

    /// Tries again, for ever, to write down what could not be written.
    pub async fn run(&self) {
        loop {
            self.is_stuck.notified().await;
            while self.write_down().is_err() {
                tokio::time::sleep(RETRY).await;
            }
            log::info!("journal: can be written again");
        }
    }
}
