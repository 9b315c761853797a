//! What the host keeps of a container in a VM: what its clients named, and how its processes
//! ended. Everything else the guest knows.

use crate::hooks::Hooks;
use crate::vm::Vm;
use protos::Timestamp;
use protos::task::{DeleteResponse, StateResponse};
use protos::task_types::Status as TaskStatus;
use protos::types::Mount;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use task::ProcessId;
use task::aside;
use task::bundle::{Bundle, ExitRecord};
use task::event::NEVER;
use task::reaper::Reaper;
use task::stdio::{Ends, Io, Paths};
use tokio::sync::{Mutex, Notify};

/// How long output may take to arrive after an exit, for Wait and for Delete (contract T62).
pub const CLOSE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exit {
    pub status: u32,
    pub at: Timestamp,
}

impl Exit {
    /// Of a process that never ran.
    pub const NONE: Self = Self {
        status: 0,
        at: NEVER,
    };

    /// Of a process whose VM is gone.
    pub fn killed() -> Self {
        Self {
            status: 137,
            at: task::event::now(),
        }
    }
}

/// An init or exec process in the VM.
pub struct Process {
    /// Empty for init.
    pub exec_id: String,
    pub paths: Paths,
    /// Open to the guest, until the client's are too.
    pub ends: RefCell<Option<Ends>>,
    io: RefCell<Option<Rc<Io>>>,
    stdin_closed: Cell<bool>,
    /// The guest has told that it is there: of an exec by an event, of init by its container's.
    pub added: Cell<bool>,
    /// It has a pid.
    pub runs: Cell<bool>,
    /// The guest was told to kill it, and owes its exit.
    pub killed: Cell<bool>,
    /// The guest was told to delete it: from then on it may say that it is not there.
    pub deleting: Cell<bool>,
    exit: Cell<Option<Exit>>,
    /// Its exit has been published.
    told: Cell<bool>,
    /// It is deleted, and never ran.
    never: Cell<bool>,
    news: Notify,
}

impl Process {
    pub fn new(exec_id: String, paths: Paths, ends: Ends) -> Rc<Self> {
        Rc::new(Self {
            exec_id,
            paths,
            ends: RefCell::new(Some(ends)),
            io: RefCell::default(),
            stdin_closed: Cell::new(false),
            added: Cell::new(false),
            runs: Cell::new(false),
            killed: Cell::new(false),
            deleting: Cell::new(false),
            exit: Cell::new(None),
            told: Cell::new(false),
            never: Cell::new(false),
            news: Notify::new(),
        })
    }

    /// It has ended: see [`Process::exited`].
    pub fn set_exit(&self, exit: Exit) {
        self.exit.set(Some(exit));
        self.heard();
    }

    /// Its streams are connected.
    pub fn connected(&self, io: Io) {
        if self.stdin_closed.get() {
            io.close_stdin();
        }
        self.io.replace(Some(Rc::new(io)));
    }

    /// CloseIO, which may come before there are streams.
    pub fn close_stdin(&self) {
        self.stdin_closed.set(true);
        if let Some(io) = &*self.io.borrow() {
            io.close_stdin();
        }
    }

    pub fn exit(&self) -> Option<Exit> {
        self.exit.get()
    }

    /// The guest tells that this came true of it, once.
    ///
    /// # Errors
    /// If it was so before, or the process is said not to run.
    pub fn comes(&self, what: &str, fact: &Cell<bool>) -> Result<(), String> {
        if fact.replace(true) || self.never.get() {
            return Err(format!("{what} of {:?}, which can't be", self.exec_id));
        }
        self.heard();
        Ok(())
    }

    /// The guest has told something of it.
    pub fn heard(&self) {
        self.news.notify_waiters();
    }

    /// Waits until `is` true, which comes true by what the guest tells.
    pub async fn until(&self, is: impl Fn(&Self) -> bool) {
        while !is(self) {
            self.news.notified().await;
        }
    }

    /// Waits until it has ended, told or not.
    pub async fn exited(&self) {
        self.until(|process| process.exit().is_some()).await;
    }

    /// True if its output may still come.
    pub fn is_open(&self) -> bool {
        self.io.borrow().is_some()
    }

    /// Waits until clients have read its output, as long as they do (contract I9).
    pub async fn read_out(&self) {
        let io = self.io.borrow().clone();
        if let Some(io) = io {
            io.read_out().await;
        }
    }

    /// Its exit has been published.
    pub fn told(&self) {
        self.told.set(true);
        self.news.notify_waiters();
    }

    /// Nobody need wait for it any longer.
    pub fn deleted(&self) {
        self.never.set(true);
        self.news.notify_waiters();
    }

    /// Waits for its exit, and then for its output to arrive, which may take [`CLOSE`].
    pub async fn wait(&self) -> Exit {
        let exit = self.ended().await;
        let io = self.io.borrow().clone();
        if let Some(io) = io
            && tokio::time::timeout(CLOSE, io.drained()).await.is_err()
        {
            log::warn!(
                "{}: output still open {CLOSE:?} after the exit",
                self.exec_id
            );
        }
        exit
    }

    /// Waits until its exit has been published.
    pub async fn ended(&self) -> Exit {
        loop {
            if let Some(exit) = self.exit.get()
                && self.told.get()
            {
                return exit;
            }
            if self.never.get() {
                return Exit::NONE;
            }
            self.news.notified().await;
        }
    }

    /// Closes its streams; of a process that ran, once its output has arrived. From then on the guest
    /// can't keep them.
    pub async fn close(&self) {
        self.ends.take();
        let Some(io) = self.io.take() else { return };
        if self.exit.get().is_some() && tokio::time::timeout(CLOSE, io.drained()).await.is_err() {
            log::warn!("{}: output still open, closed", self.exec_id);
        }
        io.close().await;
    }
}

pub struct Container {
    pub id: String,
    pub bundle: Bundle,
    /// As they came with Create, for its event.
    pub rootfs: Vec<Mount>,
    pub vm: Rc<Vm>,
    pub init: Rc<Process>,
    pub execs: RefCell<BTreeMap<String, Rc<Process>>>,
    /// Owner of the pipes.
    pub io_uid: u32,
    pub io_gid: u32,
    pub hooks: Hooks,
    /// The guest has told that it has made it.
    pub created: Cell<bool>,
    /// Exits are recorded one after the other: a burst of them is no burst of threads.
    pub recording: Mutex<()>,
    /// And that it has deleted it: the last that it tells of it.
    pub forgotten: Cell<bool>,
}

impl Container {
    /// Init, or the exec `exec_id`.
    pub fn process(&self, exec_id: &str) -> Option<Rc<Process>> {
        if exec_id.is_empty() {
            Some(Rc::clone(&self.init))
        } else {
            self.execs.borrow().get(exec_id).cloned()
        }
    }

    /// A process, as the log names it.
    pub fn name_of(&self, process: &Process) -> String {
        match process.exec_id.as_str() {
            "" => self.id.clone(),
            exec_id => format!("{} {exec_id}", self.id),
        }
    }

    /// Waits until the exit of every exec that has ended has been published.
    pub async fn execs_told(&self) {
        let execs: Vec<_> = self.execs.borrow().values().cloned().collect();
        for exec in execs.iter().filter(|exec| exec.exit().is_some()) {
            exec.ended().await;
        }
    }

    /// The hooks that run once it is gone.
    pub async fn run_poststop(&self, reaper: &Reaper) {
        let bundle = self.bundle.path();
        self.hooks.run_poststop(&self.id, bundle, reaper).await;
    }

    /// What the answer of a Delete says.
    pub fn deleted(&self, exit: Exit) -> DeleteResponse {
        DeleteResponse {
            pid: self.vm.pid(),
            exit_status: exit.status,
            exited_at: Some(exit.at),
        }
    }

    /// The state of a process: as the guest says, in as far as the host does not know better; without
    /// a guest it has ended.
    pub fn state(&self, process: &Process, guest: Option<(TaskStatus, Exit)>) -> StateResponse {
        let paths = process.paths.clone();
        let (status, exit) = match (process.exit(), guest) {
            (Some(exit), _) => (TaskStatus::Stopped, exit),
            (None, Some(guest)) => guest,
            (None, None) => (TaskStatus::Stopped, Exit::NONE),
        };
        let is_init = process.exec_id.is_empty();
        let started = is_init || process.runs.get();
        StateResponse {
            id: if is_init { &self.id } else { &process.exec_id }.clone(),
            bundle: self.bundle.path().to_string_lossy().into_owned(),
            pid: if started { self.vm.pid() } else { 0 },
            status: status.into(),
            stdin: paths.stdin,
            stdout: paths.stdout,
            stderr: paths.stderr,
            terminal: paths.terminal,
            exit_status: exit.status,
            exited_at: Some(exit.at),
            exec_id: String::new(),
        }
    }

    /// A process has ended, with the exit that it has: writes it down where it outlives this one.
    pub async fn record(&self, process: &Process, exit: Exit) {
        let record = ExitRecord {
            pid: self.vm.pid(),
            exit_status: exit.status,
            exited_at: (exit.at.seconds, exit.at.nanos),
        };
        let id = ProcessId::in_request(&process.exec_id);
        let bundle = self.bundle.clone();
        let _turn = self.recording.lock().await;
        let written = aside::run(move || bundle.write_exit(&id, &record));
        if let Err(e) = written.await {
            log::warn!("{}: {}: record of the exit: {e}", self.id, process.exec_id);
        }
    }
}
