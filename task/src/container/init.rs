// SPDX-License-Identifier: Apache-2.0
//! What is done to a container's init process: start, delete, pause, resume, update, kill.

use super::Container;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::json;
use crate::process::Exit;
use crate::runtime::Runtime;
use crate::service::Engine;
use crate::state::{Request, State};
use protos::events::{TaskPaused, TaskResumed, TaskStart};
use protos::runc::CheckpointOptions;
use protos::ttrpc::Context;
use serde_json::Value;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// How long a killed init may take to be reaped.
const REAP: Duration = Duration::from_secs(10);

impl<R: Runtime> Container<R> {
    /// Lets init run (T20). An exit meanwhile is held back until TaskStart is on its way (X3).
    ///
    /// # Errors
    /// The state's refusal, or code Unknown with the runtime's words; init's exit is still told.
    pub(crate) async fn start(
        self: &Rc<Self>,
        engine: &Rc<Engine<R>>,
        context: &Context,
    ) -> Result<u32> {
        self.start_by(engine, R::start(engine, self, context), context)
            .await
    }

    /// [`Container::start`], with `run` as what lets init run.
    pub(crate) async fn start_by(
        self: &Rc<Self>,
        engine: &Rc<Engine<R>>,
        run: impl Future<Output = Result<()>>,
        context: &Context,
    ) -> Result<u32> {
        let init = &self.init;
        let _turn = init.turn(context).await?;
        init.state.get().init_allows(Request::Start)?;
        if self.last_exit.init_exited() {
            // Its exit is only held back: nobody must be tracked by its pid again.
            State::Stopped.init_allows(Request::Start)?;
        }
        // One that is to be restored is made only now.
        let starting = engine.runtime.starting();
        let is_made = init.pid.get() != 0;
        self.last_exit.hold();
        let started = run.await;
        let pid = init.pid.get();
        if started.is_ok() {
            init.state.set(State::Running);
            let event = TaskStart {
                container_id: self.id.clone(),
                pid,
            };
            engine.outbox.push(Event::Start(event));
        }
        if !is_made {
            R::track(engine, self, init);
        }
        drop(starting);
        engine.release(self);
        started.map(|()| pid)
    }

    /// Init runs, and nobody waits for the answer of a Start any more: that is told all the same.
    pub fn runs_unasked(&self, engine: &Engine<R>) {
        let init = &self.init;
        if init.state.get() != State::Created || !init.is_idle() {
            return;
        }
        init.state.set(State::Running);
        engine.outbox.push(Event::Start(TaskStart {
            container_id: self.id.clone(),
            pid: init.pid.get(),
        }));
    }

    /// Whether it is frozen, where a Pause or a Resume was lost before its answer.
    pub fn is_frozen(&self, is: bool) {
        let init = &self.init;
        match (init.state.get(), is) {
            _ if !init.is_idle() => {}
            (State::Running | State::Pausing, true) => init.state.set(State::Paused),
            (State::Paused | State::Pausing, false) => init.state.set(State::Running),
            _ => {}
        }
    }

    /// Removes the container from the runtime and unmounts its root file system (T60, T61).
    /// A created container is killed by it; its exit is told before this returns.
    ///
    /// # Errors
    /// The state's refusal, or code Unknown; then the container is still there.
    pub(crate) async fn delete(
        self: &Rc<Self>,
        engine: &Rc<Engine<R>>,
        context: &Context,
    ) -> Result<Exit> {
        let (remove, unmount) = (R::remove(engine, self, context), R::unmount(engine, self));
        self.delete_by(remove, unmount, context).await
    }

    /// [`Container::delete`], with `remove` and `unmount` as what removes it.
    pub(crate) async fn delete_by(
        &self,
        remove: impl Future<Output = Result<()>>,
        unmount: impl Future<Output = Result<()>>,
        context: &Context,
    ) -> Result<Exit> {
        let init = &self.init;
        let _turn = init.turn(context).await?;
        init.state.get().init_allows(Request::Delete)?;
        let stopped = init.exit().is_some();
        if stopped {
            init.close_io(&self.id).await;
        }
        remove.await?;
        if !stopped && init.pid.get() != 0 {
            let forever = Context::background();
            if tokio::time::timeout(REAP, init.wait(&forever))
                .await
                .is_err()
            {
                log::error!(
                    "{}: init {} outlived its container",
                    self.id,
                    init.pid.get()
                );
            }
            init.close_io(&self.id).await;
        }
        unmount.await?;
        init.deleted();
        for exec in self.execs.borrow().values() {
            exec.process.deleted();
        }
        Ok(init.exit().unwrap_or(Exit::NONE))
    }

    /// Freezes the container (T71).
    ///
    /// # Errors
    /// The state's refusal, or code Unknown with the runtime's words.
    pub(crate) async fn pause(
        self: &Rc<Self>,
        engine: &Engine<R>,
        context: &Context,
    ) -> Result<()> {
        let init = &self.init;
        let _turn = init.turn(context).await?;
        init.state.get().init_allows(Request::Pause)?;
        init.state.set(State::Pausing);
        let paused = R::pause(self, context).await;
        // It may have ended meanwhile.
        if init.state.get() == State::Pausing {
            init.state.set(if paused.is_ok() {
                State::Paused
            } else {
                State::Running
            });
        }
        paused?;
        let event = TaskPaused {
            container_id: self.id.clone(),
        };
        engine.outbox.push(Event::Paused(event));
        Ok(())
    }

    /// Thaws the container (T71).
    ///
    /// # Errors
    /// The state's refusal, or code Unknown with the runtime's words.
    pub(crate) async fn resume(
        self: &Rc<Self>,
        engine: &Engine<R>,
        context: &Context,
    ) -> Result<()> {
        let init = &self.init;
        let _turn = init.turn(context).await?;
        init.state.get().init_allows(Request::Resume)?;
        R::resume(self, context).await?;
        if init.state.get() == State::Paused {
            init.state.set(State::Running);
        }
        let event = TaskResumed {
            container_id: self.id.clone(),
        };
        engine.outbox.push(Event::Resumed(event));
        Ok(())
    }

    /// Writes a checkpoint into `image` (T73).
    ///
    /// # Errors
    /// The state's refusal, or the runtime's words.
    pub(crate) async fn checkpoint(
        self: &Rc<Self>,
        engine: &Rc<Engine<R>>,
        image: &Path,
        options: &CheckpointOptions,
        context: &Context,
    ) -> Result<()> {
        let init = &self.init;
        let _turn = init.turn(context).await?;
        init.state.get().init_allows(Request::Checkpoint)?;
        R::checkpoint(engine, self, image, options, context).await
    }

    /// Sets limits (T74); `resources` is an OCI LinuxResources as JSON.
    ///
    /// # Errors
    /// The state's refusal, JSON that is none, or code Unknown with the runtime's words.
    pub(crate) async fn update(
        self: &Rc<Self>,
        resources: Vec<u8>,
        context: &Context,
    ) -> Result<()> {
        let init = &self.init;
        let _turn = init.turn(context).await?;
        init.state.get().init_allows(Request::Update)?;
        let resources =
            json::object(&resources).map_err(|e| Error::Refused(format!("resources: {e}")))?;
        R::update(self, Value::Object(resources), context).await
    }

    /// Sends `signal` to init, or with `all` to every process of the container (T50). Init's exit
    /// is told once this is answered: who hears of it may hang up on us (T4).
    ///
    /// # Errors
    /// NotFound once it has ended; else code Unknown with the runtime's words.
    pub(crate) async fn kill(
        self: &Rc<Self>,
        engine: &Rc<Engine<R>>,
        signal: u32,
        all: bool,
        context: &Context,
    ) -> Result<()> {
        self.init.state.get().allows_kill(self.init.pid.get())?;
        self.last_exit.hold();
        let killed = R::kill(engine, self, &self.init, signal, all, context).await;
        engine.release(self);
        killed
    }
}
