// SPDX-License-Identifier: Apache-2.0
//! What is to be written down, in order: the journal may lie on a disk that is full or stands still.
//!
//! What others tell us is theirs until it is written: they are told if it is not in time, and tell
//! it again. What we know ourselves stays here until it is.

use super::{Intake, PATIENCE, count};
use crate::failure::{Failure, unavailable};
use crate::journal::{ExecDeleted, Record, Started};
use crate::ledger::{Ledger, Origin};
use crate::names::Key;
use protos::events::TaskExit;
use protos::types::Envelope;
use protos::{Message, Timestamp, any, topic};
use std::cell::RefCell;
use std::collections::VecDeque;
use task::ProcessId;
use task::reaper::{ExitStatus, Heir};
use tokio::sync::{Notify, oneshot, watch};

/// So many bytes wait of events that tell of no end, and so many of what others tell us; but one
/// always may.
const MOST: usize = 1 << 20;
/// So many ends of children wait of whom it is not known yet whose they were: a container that has no
/// shim any more leaves us as many orphans as it likes.
const MOST_REAPED: usize = 4096;

/// Something to be written down when its turn comes.
pub enum Entry {
    Event(Envelope, Origin),
    Mark(Record),
    /// A process that nobody here had started has ended: whose it was, the ledger knows once all
    /// that came before is written down.
    Reaped {
        pid: u32,
        status: u32,
        at: Timestamp,
    },
    /// Nobody will tell any more how a task's processes ended: those that have not ended by then
    /// end like this.
    Over(End),
}

pub struct End {
    pub key: Key,
    /// If it is known that there was an init.
    pub init: Option<u32>,
    pub status: u32,
    pub at: Option<Timestamp>,
    pub origin: Origin,
}

/// Who is told what became of an entry.
pub(super) type Told = oneshot::Sender<Result<(), Failure>>;

pub(super) struct Item {
    pub entry: Entry,
    pub number: u64,
    /// Whoever keeps it himself.
    pub told: Option<Told>,
}

impl Item {
    fn len(&self) -> usize {
        match &self.entry {
            Entry::Event(envelope, _) => envelope.encoded_len(),
            Entry::Mark(record) => record.encoded_len(),
            Entry::Reaped { .. } | Entry::Over(_) => size_of::<Self>(),
        }
    }

    /// Nobody waits for it any more, and it is kept elsewhere.
    fn is_given_up(&self) -> bool {
        self.told.as_ref().is_some_and(oneshot::Sender::is_closed)
    }
}

pub(super) struct Queue {
    items: RefCell<VecDeque<Item>>,
    /// The number of the item that came last, and of the one that is done with all before it.
    came: std::cell::Cell<u64>,
    done: watch::Sender<u64>,
    /// The journal could not be written when it was tried last.
    pub failing: watch::Sender<bool>,
    pub arrived: Notify,
    /// How many of the items are [`Entry::Reaped`]; and that there is room for more of them.
    reaped: std::cell::Cell<usize>,
    pub has_room: Notify,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            items: RefCell::default(),
            came: 0.into(),
            done: watch::Sender::new(0),
            failing: watch::Sender::new(false),
            arrived: Notify::new(),
            reaped: 0.into(),
            has_room: Notify::new(),
        }
    }
}

impl Queue {
    fn push(&self, entry: Entry, told: Option<Told>) {
        let number = self.came.get() + 1;
        self.came.set(number);
        if matches!(entry, Entry::Reaped { .. }) {
            self.reaped.set(self.reaped.get() + 1);
        }
        let item = Item {
            entry,
            number,
            told,
        };
        self.items.borrow_mut().push_back(item);
        self.arrived.notify_one();
    }

    /// The next whose turn it is.
    pub fn next(&self) -> Option<Item> {
        loop {
            let item = self.items.borrow_mut().pop_front()?;
            if matches!(item.entry, Entry::Reaped { .. }) {
                self.reaped.set(self.reaped.get() - 1);
                self.has_room.notify_one();
            }
            if !item.is_given_up() {
                return Some(item);
            }
            self.done(item.number);
        }
    }

    /// Its turn comes again.
    pub fn put_back(&self, item: Item) {
        self.items.borrow_mut().push_front(item);
    }

    pub fn done(&self, number: u64) {
        // What one entry has become is several, of one number.
        self.done.send_if_modified(|done| {
            let is_more = number > *done;
            *done = number.max(*done);
            is_more
        });
    }

    pub fn is_empty(&self) -> bool {
        self.items.borrow().is_empty()
    }

    /// Tells all who keep theirs themselves that it was not written down.
    pub fn refuse(&self, failure: &Failure) {
        self.items.borrow_mut().retain_mut(|item| {
            let told = item.told.take();
            let is_ours = told.is_none();
            if let Some(told) = told {
                let _ = told.send(Err(failure.clone()));
            }
            is_ours
        });
    }

    /// True if so many bytes more may wait, of what is ours or of what is not.
    fn has_room(&self, length: usize, is_ours: bool) -> bool {
        let mut items = self.items.borrow_mut();
        items.retain(|item| !item.is_given_up());
        let such = items.iter().filter(|item| item.told.is_none() == is_ours);
        let waiting: usize = such.map(Item::len).sum();
        waiting == 0 || waiting + length <= MOST
    }
}

impl Intake {
    /// Has what somebody else tells written down, who keeps it if that fails.
    pub(super) async fn put(&self, envelope: Envelope, origin: Origin) -> Result<(), Failure> {
        if !self.queue.has_room(envelope.encoded_len(), false) {
            return Err(unavailable("journal: too much waits to be written"));
        }
        let (told, answer) = oneshot::channel();
        self.queue.push(Entry::Event(envelope, origin), Some(told));
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) => answer,
            _ => Err(unavailable(format!(
                "journal: not written within {PATIENCE:?}"
            ))),
        }
    }

    /// Has what we know ourselves written down, as soon as that can be.
    pub(super) fn keep(&self, entry: Entry) {
        if let Entry::Event(envelope, _) = &entry {
            count(&self.counters.received);
            if !self.may_be_kept(envelope) {
                let (of, topic) = (&envelope.namespace, &envelope.topic);
                return log::error!("{of}: {topic}: journal: too much waits to be written");
            }
        }
        self.queue.push(entry, None);
    }

    /// True of an event that tells the end of a process always, for there are no more of them than
    /// processes.
    fn may_be_kept(&self, envelope: &Envelope) -> bool {
        let tells_an_end = matches!(
            envelope.topic.as_str(),
            topic::TASK_EXIT | topic::TASK_DELETE
        );
        tells_an_end || self.queue.has_room(envelope.encoded_len(), true)
    }

    /// Writes down that a process is running, before anybody is told that it was started. If that
    /// cannot be done now it is done later: the process runs, and saying otherwise would be worse.
    pub async fn started(&self, started: Started) {
        self.keep(Entry::Mark(Record {
            started: Some(started),
            ..Default::default()
        }));
        self.settled().await;
    }

    /// An exec is gone for good: its name may be used again.
    pub fn forget_exec(&self, key: &Key, exec: &ProcessId) {
        self.keep(Entry::Mark(Record {
            exec_deleted: Some(ExecDeleted::new(key, exec)),
            ..Default::default()
        }));
    }

    /// The pids that are somebody's, or will be when what waits is written down.
    fn known_pids(&self) -> Vec<u32> {
        let ledger = self.ledger.borrow();
        let running = ledger.all().flat_map(|(_, facts)| facts.running());
        let mut pids: Vec<u32> = running.map(|(_, process)| process.pid).collect();
        let items = self.queue.items.borrow();
        pids.extend(items.iter().filter_map(|item| match &item.entry {
            Entry::Mark(record) => record.started.as_ref().map(|started| started.pid),
            _ => None,
        }));
        // 0 would be any child of our process group (waitpid(2)).
        pids.retain(|pid| *pid != 0);
        pids
    }

    /// Ends all processes of a task that have not ended; init last.
    pub fn over(&self, end: End) {
        self.keep(Entry::Over(end));
    }

    /// Waits until what has come is written down, and the ledger knows it; but not for a disk that
    /// is full, and not for long.
    pub async fn settled(&self) {
        let came = self.queue.came.get();
        let (mut done, mut failing) = (self.queue.done.subscribe(), self.queue.failing.subscribe());
        let settled = async {
            tokio::select! {
                _ = done.wait_for(|done| *done >= came) => {}
                _ = failing.wait_for(|failing| *failing) => {}
            }
        };
        let _ = tokio::time::timeout(PATIENCE, settled).await;
    }

    /// True if all that has come is written down, or the journal cannot be written at all.
    pub fn is_settled(&self) -> bool {
        *self.queue.done.borrow() >= self.queue.came.get() || *self.queue.failing.borrow()
    }

    /// Waits until an event may be kept; not for long.
    pub(super) async fn room_for(&self, envelope: &Envelope) {
        let mut done = self.queue.done.subscribe();
        let room = async { while !self.may_be_kept(envelope) && done.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(PATIENCE, room).await;
    }
}

impl Heir for Intake {
    /// A child that we did not spawn has ended: a shim, or a process that a dead shim left us.
    fn reaped(&self, pid: u32, status: ExitStatus) {
        let (status, at) = (status.number(), task::event::now());
        self.keep(Entry::Reaped { pid, status, at });
    }

    fn takes_only(&self) -> Option<Vec<u32>> {
        (self.queue.reaped.get() >= MOST_REAPED).then(|| self.known_pids())
    }

    async fn has_room(&self) {
        self.queue.has_room.notified().await;
    }
}

impl Entry {
    /// True of what the ledger has to be asked about first.
    pub(super) fn is_folded(&self) -> bool {
        matches!(self, Self::Reaped { .. } | Self::Over(_))
    }

    /// The events that an entry turns out to be, now that all before it is written down.
    pub(super) fn unfold(self, ledger: &Ledger) -> Vec<Self> {
        match self {
            Self::Reaped { pid, status, at } => {
                let found = ledger.find_running(pid);
                let event = |(key, process)| {
                    let exit = (status, Some(at));
                    Self::Event(exit_of(key, process, pid, exit), Origin::Reaped)
                };
                found.map(event).into_iter().collect()
            }
            Self::Over(end) => end.events(ledger),
            other => vec![other],
        }
    }
}

impl End {
    fn events(self, ledger: &Ledger) -> Vec<Entry> {
        let facts = ledger.facts(&self.key);
        let running = facts.into_iter().flat_map(|facts| facts.running().rev());
        let mut ended: Vec<(&ProcessId, u32)> = running.map(|(id, it)| (id, it.pid)).collect();
        let init = &ProcessId::Init;
        let has_ended = facts.is_some_and(|facts| facts.exit(init).is_some());
        let is_told = ended.iter().any(|(id, _)| *id == init);
        if let Some(pid) = self.init
            && !has_ended
            && !is_told
        {
            ended.push((init, pid));
        }
        let exit = (self.status, self.at);
        let event = |(id, pid)| Entry::Event(exit_of(&self.key, id, pid, exit), self.origin);
        ended.into_iter().map(event).collect()
    }
}

/// An exit as an event.
pub(super) fn exit_of(
    key: &Key,
    process: &ProcessId,
    pid: u32,
    exit: (u32, Option<Timestamp>),
) -> Envelope {
    let now = task::event::now();
    let event = TaskExit {
        container_id: key.id.clone(),
        id: process.name(&key.id).to_owned(),
        pid,
        exit_status: exit.0,
        exited_at: exit.1.or(Some(now)),
    };
    Envelope {
        timestamp: Some(now),
        namespace: key.namespace.clone(),
        topic: topic::TASK_EXIT.to_owned(),
        event: Some(any::pack(&event)),
    }
}
