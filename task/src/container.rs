// SPDX-License-Identifier: Apache-2.0
//! One container: its bundle, its init process and its execs, and what may be done to them when.

mod exec;
mod handover;
mod init;

use crate::aside;
use crate::bundle::{Bundle, ExitRecord};
use crate::error::{Error, Result};
use crate::last_exit::LastExit;
use crate::oom::Ooms;
use crate::process::exec::Exec;
use crate::process::{Exit, Process};
use crate::runtime::Runtime;
use crate::state::State;
use protos::task::StateResponse;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use tokio::sync::Mutex;

pub struct Container<R: Runtime> {
    pub id: String,
    pub bundle: Bundle,
    pub init: Rc<Process>,
    pub(crate) execs: RefCell<HashMap<String, Rc<Exec>>>,
    pub(crate) last_exit: LastExit,
    pub ooms: Rc<Ooms>,
    /// Exits are recorded one after the other: a burst of them is no burst of threads.
    recording: Mutex<()>,
    starting_execs: Cell<usize>,
    /// An exec has failed since nothing was being started; see [`Runtime::kill_strays`].
    may_have_strays: Cell<bool>,
    /// What the runtime keeps of it.
    pub own: R::Container,
}

impl<R: Runtime> Container<R> {
    /// A container without execs, of which the runtime keeps `own`.
    pub fn new(id: String, bundle: Bundle, init: Process, own: R::Container) -> Self {
        Self {
            id,
            bundle,
            init: Rc::new(init),
            execs: RefCell::default(),
            last_exit: LastExit::default(),
            ooms: Rc::default(),
            recording: Mutex::default(),
            starting_execs: Cell::default(),
            may_have_strays: Cell::default(),
            own,
        }
    }

    /// Writes the exit into the bundle, where it outlives this process.
    pub(crate) async fn record_exit(&self, process: &Process, exit: Exit) {
        let record = ExitRecord {
            pid: process.pid.get(),
            exit_status: exit.status,
            exited_at: (exit.at.seconds, exit.at.nanos),
        };
        let (bundle, id) = (self.bundle.clone(), process.id.clone());
        let _turn = self.recording.lock().await;
        let written = aside::run(move || bundle.write_exit(&id, &record));
        if let Err(e) = written.await {
            log::warn!("{}: {}: record of the exit: {e}", self.id, process.id);
        }
    }

    /// # Errors
    /// NotFound (T2).
    pub(crate) fn exec(&self, id: &str) -> Result<Rc<Exec>> {
        let exec = self.execs.borrow().get(id).cloned();
        exec.ok_or_else(|| Error::NotFound(format!("process does not exist {id}")))
    }

    /// Every exec that is not deleted.
    pub fn execs(&self) -> Vec<Rc<Exec>> {
        self.execs.borrow().values().cloned().collect()
    }

    /// The init process, or the exec process `exec_id`.
    ///
    /// # Errors
    /// NotFound (T2).
    pub(crate) fn process(&self, exec_id: &str) -> Result<Rc<Process>> {
        if exec_id.is_empty() {
            Ok(Rc::clone(&self.init))
        } else {
            Ok(Rc::clone(&self.exec(exec_id)?.process))
        }
    }

    /// The answer to State (T40): init or an exec as its client named it, with its state and its exit.
    pub(crate) fn state(&self, process: &Process) -> StateResponse {
        let own = process.state.get();
        let state = match (own, self.init.state.get()) {
            // An exec is frozen with its container.
            (State::Running, container @ (State::Paused | State::Pausing)) => container,
            _ => own,
        };
        let exit = process.exit().unwrap_or(Exit::NONE);
        let paths = process.paths.clone();
        StateResponse {
            id: process.id.name(&self.id).to_owned(),
            bundle: self.bundle.path().to_string_lossy().into_owned(),
            pid: process.pid.get(),
            status: state.status().into(),
            stdin: paths.stdin,
            stdout: paths.stdout,
            stderr: paths.stderr,
            terminal: paths.terminal,
            exit_status: exit.status,
            exited_at: Some(exit.at),
            exec_id: String::new(),
        }
    }
}
