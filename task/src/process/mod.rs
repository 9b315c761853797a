// SPDX-License-Identifier: Apache-2.0
//! A process of a container, init or exec: its state, its exit, and one operation at a time.

pub mod exec;
mod exit;
mod id;

pub use exit::Exit;
pub use id::ProcessId;

use crate::error::{Error, Result};
use crate::handover::{self, Kept, Means};
use crate::state::State;
use crate::stdio::{Ends, Io, Paths};
use protos::Timestamp;
use protos::ttrpc::Context;
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard};

/// How long Delete waits for the end of the output, which somebody may hold open whom the process
/// has left behind; and how often, while the process's own is on its way to a slow reader (T60, T62).
const DRAIN: Duration = Duration::from_secs(2);
const DRAINS: u32 = 5;

pub struct Process {
    pub id: ProcessId,
    pub paths: Paths,
    pub state: Cell<State>,
    /// 0 until there is one.
    pub pid: Cell<u32>,
    /// An exec that was reaped has no pid any more, whatever is known of its exit.
    pub reaped: Cell<bool>,
    /// When the OCI runtime wrote its pid file.
    pub made_at: Cell<Option<Timestamp>>,
    pub(crate) exit: exit::Slot,
    /// Its streams on a link, if it has them there, until the process is made.
    pub ends: RefCell<Option<Ends>>,
    io: RefCell<Option<Rc<Io>>>,
    /// CloseIO was called.
    stdin_closed: Cell<bool>,
    operation: Mutex<()>,
}

impl Process {
    pub fn new(id: ProcessId, paths: Paths, ends: Option<Ends>) -> Self {
        Self {
            id,
            paths,
            state: Cell::new(State::Created),
            pid: Cell::new(0),
            reaped: Cell::new(false),
            made_at: Cell::default(),
            exit: exit::Slot::default(),
            ends: RefCell::new(ends),
            io: RefCell::default(),
            stdin_closed: Cell::new(false),
            operation: Mutex::new(()),
        }
    }

    /// Waits for its turn: start, delete, pause and the like run one after the other.
    ///
    /// # Errors
    /// `GivenUp` if the caller does not wait that long.
    pub async fn turn(&self, context: &Context) -> Result<MutexGuard<'_, ()>> {
        let _waiting = context.waits_for(|| "its turn".to_owned(), 0);
        tokio::select! {
            biased;
            turn = self.operation.lock() => Ok(turn),
            why = context.cancelled() => Err(Error::GivenUp(why)),
        }
    }

    /// True if no operation is under way.
    pub fn is_idle(&self) -> bool {
        self.operation.try_lock().is_ok()
    }

    /// The OCI runtime has made the process.
    pub fn made(&self, pid: u32, io: Io) {
        self.pid.set(pid);
        if self.stdin_closed.get() {
            io.close_stdin();
        }
        self.io.replace(Some(Rc::new(io)));
    }

    /// CloseIO (T78), which may come while the process is being made.
    pub fn close_stdin(&self) {
        self.stdin_closed.set(true);
        if let Some(io) = self.io() {
            io.close_stdin();
        }
    }

    /// The process was reaped: its streams, if a client has not read all that came out of them.
    pub fn unread_output(&self) -> Option<Rc<Io>> {
        let io = self.io()?;
        io.process_exited();
        io.is_unread().then_some(io)
    }

    /// The process has ended; those who wait for that hear it when it is [`Process::announce`].
    pub fn exited(&self, exit: Exit) {
        self.state.set(State::Stopped);
        self.exit.set(exit);
    }

    pub fn announce(&self) {
        self.exit.announce();
    }

    /// The process is deleted: if it never ran, nobody need wait for it any longer.
    pub fn deleted(&self) {
        self.state.set(State::Deleted);
        self.ends.take();
        if self.exit.get().is_none() {
            self.exit.set_never();
        }
    }

    /// It never ran, and nobody can start it any more.
    pub fn never_runs(&self) {
        self.exit.set_never();
    }

    /// Its exit, if it has ended.
    pub fn exit(&self) -> Option<Exit> {
        self.exit.get()
    }

    /// Waits for the exit (T75). A process that never ran, and never will, has none to wait for:
    /// status 0, and Go's zero time (T23).
    ///
    /// # Errors
    /// `GivenUp` if the caller does not wait that long.
    pub async fn wait(&self, context: &Context) -> Result<Exit> {
        tokio::select! {
            biased;
            exit = self.exit.wait() => Ok(exit.unwrap_or(Exit::NONE)),
            why = context.cancelled() => Err(Error::GivenUp(why)),
        }
    }

    pub fn io(&self) -> Option<Rc<Io>> {
        self.io.borrow().clone()
    }

    /// Describes the process for another process image.
    ///
    /// # Errors
    /// If no fd is free.
    pub fn hand_over(&self, kept: &mut Kept) -> io::Result<handover::Process> {
        // An exit that nobody has been told of is the runtime's to tell again.
        let is_unannounced = kept.is_record() && !self.exit.is_announced();
        let exit = self.exit.get().filter(|_| !is_unannounced);
        let state = match self.state.get() {
            State::Stopped if exit.is_none() => State::Running,
            state => state,
        };
        Ok(handover::Process {
            paths: self.paths.clone(),
            state,
            pid: self.pid.get(),
            exit: exit.map(Exit::hand_over),
            never: self.exit.is_never(),
            stdin_closed: self.stdin_closed.get(),
            io: self.io().map(|io| io.hand_over(kept)).transpose()?,
        })
    }

    /// Goes on with a process of another process image.
    ///
    /// # Errors
    /// If an fd is not what it is said to be.
    pub fn take_over(id: ProcessId, process: handover::Process, means: &Means<'_>) -> Result<Self> {
        let new = Self::new(id, process.paths, None);
        new.state.set(process.state);
        new.pid.set(process.pid);
        new.reaped.set(process.exit.is_some());
        if let Some(exit) = process.exit {
            new.exit.set(Exit::take_over(exit));
            new.exit.announce();
        }
        if process.never {
            new.exit.set_never();
        }
        new.stdin_closed.set(process.stdin_closed);
        let io = process.io.map(|io| Io::take_over(io, means)).transpose()?;
        new.io.replace(io.map(Rc::new));
        Ok(new)
    }

    /// Lets the output arrive, within [`DRAIN`] or a few of them, and closes the streams.
    pub(crate) async fn close_io(&self, container: &str) {
        let Some(io) = self.io.take() else { return };
        for n in 1..=DRAINS {
            if tokio::time::timeout(DRAIN, io.drained()).await.is_ok() {
                break;
            }
            if n == DRAINS || io.has_own_output() {
                let after = n * DRAIN;
                log::warn!(
                    "{container}: {}: output still open, closed after {after:?}",
                    self.id
                );
                break;
            }
        }
        io.close().await;
    }
}
