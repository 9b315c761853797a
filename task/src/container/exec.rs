// SPDX-License-Identifier: Apache-2.0
//! What is done to an exec process: add, start, kill, delete.

use super::Container;
use crate::aside;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::process::Exit;
use crate::process::exec::Exec;
use crate::runtime::Runtime;
use crate::service::Engine;
use crate::state::{Request, State};
use crate::stdio::{Io, Paths};
use protos::events::{TaskExecAdded, TaskExecStarted};
use protos::ttrpc::Context;
use std::fs;
use std::rc::Rc;

/// What the execs of a container may take together, in bytes: some 8,000 of them.
const MOST: usize = 8 << 20;

impl<R: Runtime> Container<R> {
    /// Adds an exec; nothing runs yet (T30).
    ///
    /// # Errors
    /// AlreadyExists, the state's refusal, or [`Exec::new`]'s.
    pub(crate) fn add_exec(
        &self,
        engine: &Engine<R>,
        id: &str,
        spec: &[u8],
        paths: Paths,
    ) -> Result<()> {
        // Init's exit goes by the container's id: an exec of that name would end the container for
        // whoever hears of events.
        if id == self.id || self.execs.borrow().contains_key(id) {
            return Err(Error::AlreadyExists(format!("id {id}")));
        }
        self.init.state.get().init_allows(Request::Exec)?;
        let ends = engine.ends(&paths)?;
        let exec = Rc::new(Exec::new(id, spec, paths, ends)?);
        let there: usize = self.execs.borrow().values().map(|exec| exec.size()).sum();
        if there + exec.size() > MOST {
            let text = format!("execs that are not deleted take {there} bytes, {MOST} is the most");
            return Err(Error::Exhausted(text));
        }
        self.execs.borrow_mut().insert(id.to_owned(), exec);
        let event = TaskExecAdded {
            container_id: self.id.clone(),
            exec_id: id.to_owned(),
        };
        engine.outbox.push(Event::ExecAdded(event));
        Ok(())
    }

    /// Starts an exec (T22). While it starts, init's exit is held back (X5), and so is its own
    /// until TaskExecStarted is on its way (X3).
    ///
    /// # Errors
    /// The state's refusal, FailedPrecondition once init is gone, or code Unknown with the
    /// runtime's words; then it can only be deleted (T23, U1).
    pub(crate) async fn start_exec(
        self: &Rc<Self>,
        engine: &Rc<Engine<R>>,
        exec: &Exec,
        context: &Context,
    ) -> Result<u32> {
        let make = Box::pin(R::exec(engine, self, exec, context));
        self.start_exec_by(engine, exec, make, context).await
    }

    /// [`Container::start_exec`], with `make` as what makes the process.
    pub(crate) async fn start_exec_by(
        self: &Rc<Self>,
        engine: &Rc<Engine<R>>,
        exec: &Exec,
        make: impl Future<Output = Result<(u32, Io)>>,
        context: &Context,
    ) -> Result<u32> {
        let process = &exec.process;
        let _turn = process.turn(context).await?;
        if self.last_exit.init_exited() {
            let text = format!("container {} init process is not running", self.id);
            return Err(Error::FailedPrecondition(text));
        }
        process.state.get().exec_allows_start()?;
        if process.exit.is_never() {
            return Err(Error::Refused("cannot start a failed process".into()));
        }
        self.last_exit.hold();
        self.starting_execs.set(self.starting_execs.get() + 1);
        let starting = engine.runtime.starting();
        let made = make.await;
        self.starting_execs.set(self.starting_execs.get() - 1);
        let pid = match made {
            Ok((pid, io)) => {
                process.made(pid, io);
                process.state.set(State::Running);
                engine.outbox.push(Event::ExecStarted(TaskExecStarted {
                    container_id: self.id.clone(),
                    exec_id: exec.id().to_owned(),
                    pid,
                }));
                R::track(engine, self, process);
                drop(starting);
                Ok(pid)
            }
            Err(e) => {
                process.exit.set_never();
                self.may_have_strays.set(true);
                Err(e)
            }
        };
        if self.may_have_strays.get() && self.starting_execs.get() == 0 {
            self.may_have_strays.set(false);
            R::kill_strays(engine, self);
        }
        if pid.is_err() {
            engine.release(self);
        }
        pid
    }

    /// Sends `signal` to an exec (T50).
    ///
    /// # Errors
    /// FailedPrecondition before it was started, NotFound once it has ended, else code Unknown.
    pub(crate) async fn kill_exec(
        self: &Rc<Self>,
        engine: &Rc<Engine<R>>,
        exec: &Exec,
        signal: u32,
        context: &Context,
    ) -> Result<()> {
        let process = &exec.process;
        process.state.get().allows_kill(process.pid.get())?;
        if process.reaped.get() {
            return Err(Error::finished());
        }
        R::kill(engine, self, process, signal, false, context).await
    }

    /// Forgets an exec that does not run (T62).
    ///
    /// # Errors
    /// The state's refusal.
    pub(crate) async fn delete_exec(
        self: &Rc<Self>,
        engine: &Rc<Engine<R>>,
        exec: &Exec,
        context: &Context,
    ) -> Result<Exit> {
        let process = &exec.process;
        let _turn = process.turn(context).await?;
        process.state.get().exec_allows_delete()?;
        // Its exit is told first.
        if process.exit().is_some() {
            process.wait(context).await?;
        }
        process.close_io(&self.id).await;
        let (bundle, id) = (self.bundle.clone(), process.id.clone());
        aside::run(move || {
            let _ = fs::remove_file(bundle.pid(&id));
            bundle.remove_exit(&id);
        })
        .await;
        R::forget(engine, self, process);
        process.deleted();
        self.execs.borrow_mut().remove(exec.id());
        Ok(process.exit().unwrap_or(Exit::NONE))
    }
}
