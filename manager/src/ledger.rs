// SPDX-License-Identifier: Apache-2.0
//! What is known of every process from events: one exit each, and never two different ones.
//!
//! ```text
//!  TaskCreate ──> created ──Started mark or TaskStart──> started ──TaskExit──> exited
//!                    └───────────────────────── TaskDelete ───────────────────────┴──> deleted
//! ```
//! Pure: records go in, judgements come out. The same code runs over the journal at start and
//! over live events, so a restart knows what the process before it knew.

mod envelope;
mod room;

pub use envelope::{container_of, key_of, process_of};

use crate::journal::Record;
use crate::names::{Key, MAX_ID};
use envelope::{decode, print_of};
use protos::events::{TaskCreate, TaskDelete, TaskExecStarted, TaskExit, TaskStart};
use protos::types::Envelope;
use protos::{Any, Timestamp, any, topic};
use std::collections::{BTreeMap, HashMap, VecDeque};
use task::ProcessId;

/// How many deleted containers, and deleted execs, are remembered: to know late duplicates of
/// their events, and an exec's exit that comes after its deletion.
const REMEMBERED: usize = 256;

/// How many events of a container a shim may send again: Go's may have some on their way.
const SENT_AGAIN: usize = 8;

/// Where the knowledge of an exit came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An event that the shim sent.
    Shim,
    /// The exit record that the shim left in the bundle.
    Record,
    /// The shim's answer to State.
    State,
    /// We were the parent.
    Reaped,
    /// Nobody knows any more; the status is 255.
    Unknown,
}

impl Origin {
    pub fn name(self) -> &'static str {
        match self {
            Self::Shim => "shim",
            Self::Record => "record",
            Self::State => "state",
            Self::Reaped => "reaped",
            Self::Unknown => "unknown",
        }
    }
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Exit {
    pub seq: u64,
    pub status: u32,
    pub at: Option<Timestamp>,
}

/// One process of a container.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Process {
    pub pid: u32,
    pub started: bool,
    pub start_time: u64,
    pub exit: Option<Exit>,
    /// An exec that is gone for good, and only remembered.
    pub deleted: bool,
}

/// One container's processes.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub created: bool,
    pub deleted: bool,
    pub processes: BTreeMap<ProcessId, Process>,
    /// Its latest events: a shim that was not answered sends them again.
    recent: VecDeque<u64>,
}

impl Facts {
    pub fn init(&self) -> Option<&Process> {
        self.processes.get(&ProcessId::Init)
    }

    pub fn exit(&self, process: &ProcessId) -> Option<&Exit> {
        self.processes.get(process)?.exit.as_ref()
    }

    /// Processes that were started and whose exit is not known; init comes first.
    pub fn running(&self) -> impl DoubleEndedIterator<Item = (&ProcessId, &Process)> {
        let of = self.processes.iter();
        of.filter(|(_, p)| p.started && p.exit.is_none() && !p.deleted)
    }

    /// `None` if nothing is known that is against it.
    fn judge_exit(&self, exit: &TaskExit) -> Option<Verdict> {
        let process = self.processes.get(&process_of(exit))?;
        let known = process.exit.as_ref().filter(|_| process.pid == exit.pid)?;
        Some(match known.status == exit.exit_status {
            true => Verdict::Duplicate,
            false => Verdict::Conflict {
                known: known.status,
                said: exit.exit_status,
            },
        })
    }

    /// As [`Facts::judge_exit`].
    fn judge_delete(&self, mut delete: TaskDelete) -> Option<Verdict> {
        let init = self.init().filter(|init| init.pid == delete.pid)?;
        if !is_of_init(&delete) {
            return None;
        }
        if self.deleted {
            return Some(Verdict::Duplicate);
        }
        let exit = init.exit.as_ref()?;
        if exit.status == delete.exit_status {
            return None;
        }
        delete.exit_status = exit.status;
        delete.exited_at = exit.at;
        Some(Verdict::Amend(any::pack(&delete)))
    }
}

fn is_of_init(delete: &TaskDelete) -> bool {
    ProcessId::in_event(&delete.container_id, &delete.id) == ProcessId::Init
}

/// What to do with an event.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    Take,
    /// Take this instead: the event contradicted an exit that is already known.
    Amend(Any),
    Duplicate,
    /// An exit that is already known, with another status.
    Conflict {
        known: u32,
        said: u32,
    },
}

#[derive(Default)]
pub struct Ledger {
    containers: HashMap<Key, Facts>,
    deleted: VecDeque<Key>,
    /// With their pids.
    deleted_execs: VecDeque<(Key, ProcessId, u32)>,
    /// How many processes of each namespace there are.
    known: HashMap<String, usize>,
}

impl Ledger {
    pub fn facts(&self, key: &Key) -> Option<&Facts> {
        self.containers.get(key)
    }

    pub fn all(&self) -> impl Iterator<Item = (&Key, &Facts)> {
        self.containers.iter()
    }

    /// The running process that has this pid.
    pub fn find_running(&self, pid: u32) -> Option<(&Key, &ProcessId)> {
        self.containers.iter().find_map(|(key, facts)| {
            let mut running = facts.running();
            let (process, _) = running.find(|(_, p)| p.pid == pid)?;
            Some((key, process))
        })
    }

    /// Judges an event before it is written down.
    pub fn judge(&self, envelope: &Envelope) -> Verdict {
        let facts = key_of(envelope).and_then(|key| self.facts(&key));
        let (Some(event), Some(facts)) = (&envelope.event, facts) else {
            return Verdict::Take;
        };
        if facts.recent.contains(&print_of(envelope)) {
            return Verdict::Duplicate;
        }
        let verdict = match envelope.topic.as_str() {
            topic::TASK_EXIT => decode(event).and_then(|exit| facts.judge_exit(&exit)),
            topic::TASK_DELETE => decode(event).and_then(|delete| facts.judge_delete(delete)),
            _ => None,
        };
        verdict.unwrap_or(Verdict::Take)
    }

    /// Learns from a record that is in the journal.
    pub fn apply(&mut self, seq: u64, record: &Record) {
        if let Some(started) = &record.started {
            let (pid, start_time) = (started.pid, started.start_time);
            self.start(started.key(), started.process(), pid, start_time);
        }
        if let Some(gone) = &record.exec_deleted {
            self.delete_exec(gone.key(), gone.process());
        }
        let Some(envelope) = &record.envelope else {
            return;
        };
        let Some(key) = key_of(envelope).filter(|key| key.id.len() <= MAX_ID) else {
            return;
        };
        self.learn(seq, &key, envelope);
        if let Some(facts) = self.containers.get_mut(&key) {
            if facts.recent.len() == SENT_AGAIN {
                facts.recent.pop_front();
            }
            facts.recent.push_back(print_of(envelope));
        }
    }

    fn learn(&mut self, seq: u64, key: &Key, envelope: &Envelope) {
        let Some(event) = &envelope.event else {
            return;
        };
        match envelope.topic.as_str() {
            topic::TASK_CREATE => {
                if let Some(event) = decode::<TaskCreate>(event) {
                    self.create(key.clone(), event.pid);
                }
            }
            topic::TASK_START => {
                if let Some(event) = decode::<TaskStart>(event) {
                    self.start(key.clone(), ProcessId::Init, event.pid, 0);
                }
            }
            topic::TASK_EXEC_STARTED => {
                if let Some(event) = decode::<TaskExecStarted>(event) {
                    let exec = ProcessId::in_request(&event.exec_id);
                    self.start(key.clone(), exec, event.pid, 0);
                }
            }
            topic::TASK_EXIT => {
                if let Some(event) = decode::<TaskExit>(event) {
                    self.exit(seq, key, &event);
                }
            }
            topic::TASK_DELETE => {
                if let Some(event) = decode::<TaskDelete>(event)
                    && is_of_init(&event)
                {
                    self.delete(key.clone());
                }
            }
            _ => {}
        }
    }

    /// True if the record must not be dropped from the journal: it tells of a process of a
    /// container that has not been deleted.
    pub fn needs(&self, seq: u64, record: &Record) -> bool {
        if let Some(started) = &record.started {
            return self.lives(&started.key(), &started.process());
        }
        let Some(envelope) = &record.envelope else {
            return false;
        };
        let Some(key) = key_of(envelope) else {
            return false;
        };
        let Some(facts) = self.facts(&key).filter(|facts| !facts.deleted) else {
            return false;
        };
        match envelope.topic.as_str() {
            topic::TASK_EXIT => facts
                .processes
                .values()
                .any(|p| !p.deleted && p.exit.as_ref().is_some_and(|exit| exit.seq == seq)),
            topic::TASK_EXEC_STARTED => {
                let event = envelope.event.as_ref().and_then(decode::<TaskExecStarted>);
                event.is_some_and(|event| self.lives(&key, &ProcessId::in_request(&event.exec_id)))
            }
            topic::TASK_CREATE | topic::TASK_START => true,
            _ => false,
        }
    }

    /// True of a process that is there, ended or not, in a container that is.
    fn lives(&self, key: &Key, process: &ProcessId) -> bool {
        let facts = self.facts(key).filter(|facts| !facts.deleted);
        facts.is_some_and(|facts| facts.processes.get(process).is_some_and(|p| !p.deleted))
    }

    fn create(&mut self, key: Key, pid: u32) {
        if !self.has_room(&key, &ProcessId::Init) {
            return;
        }
        let facts = self.containers.entry(key.clone()).or_default();
        if facts.deleted || facts.init().is_some_and(|init| init.pid != pid) {
            let processes = facts.processes.keys();
            let execs = processes.filter(|id| **id != ProcessId::Init).count();
            *facts = Facts::default();
            self.deleted.retain(|deleted| *deleted != key);
            self.gone(&key.namespace, execs);
        }
        let facts = self.containers.entry(key).or_default();
        facts.created = true;
        facts.processes.entry(ProcessId::Init).or_default().pid = pid;
    }

    fn start(&mut self, key: Key, id: ProcessId, pid: u32, start_time: u64) {
        if !self.has_room(&key, &id) {
            return;
        }
        let facts = self.containers.entry(key).or_default();
        let process = facts.processes.entry(id).or_default();
        // Another of the same name: its pid may be the same, as it is in a VM.
        if process.pid != pid || process.deleted {
            *process = Process::default();
        }
        process.pid = pid;
        process.started = true;
        process.start_time = process.start_time.max(start_time);
    }

    fn exit(&mut self, seq: u64, key: &Key, exit: &TaskExit) {
        let id = process_of(exit);
        if !self.has_room(key, &id) {
            return;
        }
        let facts = self.containers.entry(key.clone()).or_default();
        let process = facts.processes.entry(id).or_default();
        if process.pid != exit.pid {
            *process = Process::default();
        }
        process.pid = exit.pid;
        process.exit = Some(Exit {
            seq,
            status: exit.exit_status,
            at: exit.exited_at,
        });
    }

    fn delete_exec(&mut self, key: Key, exec: ProcessId) {
        let facts = self.containers.get_mut(&key);
        let Some(process) = facts.and_then(|facts| facts.processes.get_mut(&exec)) else {
            return;
        };
        process.deleted = true;
        self.deleted_execs.push_back((key, exec, process.pid));
        if self.deleted_execs.len() > REMEMBERED
            && let Some((key, exec, pid)) = self.deleted_execs.pop_front()
            && let Some(facts) = self.containers.get_mut(&key)
            && facts
                .processes
                .get(&exec)
                .is_some_and(|p| p.deleted && p.pid == pid)
        {
            facts.processes.remove(&exec);
            self.gone(&key.namespace, 1);
        }
    }

    fn delete(&mut self, key: Key) {
        let facts = self.containers.entry(key.clone()).or_default();
        if std::mem::replace(&mut facts.deleted, true) {
            return;
        }
        self.deleted.push_back(key);
        if self.deleted.len() > REMEMBERED
            && let Some(oldest) = self.deleted.pop_front()
            && let Some(facts) = self.containers.remove(&oldest)
        {
            self.gone(&oldest.namespace, facts.processes.len());
        }
    }
}

#[cfg(test)]
mod tests;
