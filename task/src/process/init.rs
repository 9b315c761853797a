//! What is done to a container's init process: create, start, delete, pause, resume, update.

use super::Exit;
use crate::aside;
use crate::container::Container;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::foreign::read_made;
use crate::json;
use crate::leftovers::Leftovers;
use crate::reaper::Reaper;
use crate::rootfs;
use crate::runtime::{Console, Failure};
use crate::service::Engine;
use crate::state::{Request, State};
use crate::stdio;
use crate::sys;
use protos::events::{TaskPaused, TaskResumed, TaskStart};
use protos::runc::CheckpointOptions;
use protos::ttrpc::Context;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

/// The greatest signal (signal(7)).
const SIGRTMAX: u32 = 64;
const SIGKILL: u32 = 9;
/// How long the OCI runtime may take to remove what it has half made.
const UNDO: Duration = Duration::from_secs(10);
/// How long a killed init may take to be reaped.
const REAP: Duration = Duration::from_secs(10);

impl Container {
    /// Has the OCI runtime make the container: created, with init waiting for Start (T10), or
    /// restored from its checkpoint, with init running (T21).
    ///
    /// # Errors
    /// Code Unknown with the runtime's words (T11); the runtime's half-made container is removed.
    pub(crate) async fn make_init(&self, engine: &Rc<Engine>, context: &Context) -> Result<()> {
        let (init, options) = (&self.init, &self.options);
        let of = stdio::Of {
            namespace: &engine.namespace,
            process: &self.id,
            bundle: &self.bundle,
            io_uid: options.io_uid,
            io_gid: options.io_gid,
        };
        let prepared = stdio::prepare(&init.paths, init.ends.take(), of, &engine.reaper, context);
        let (streams, prepared) = prepared.await?;
        let socket = prepared.console_socket().map(ToOwned::to_owned);
        let console = Console(socket.as_deref());
        let what = match self.checkpoint {
            None => "OCI runtime create failed",
            Some(_) => "OCI runtime restore failed",
        };
        // In boxes, here and where this is called: else each of the functions through which a future
        // is handed has room for it twice.
        let make = Box::pin(async {
            let (id, runtime) = (&self.id, &self.runtime);
            match &self.checkpoint {
                None => runtime.create(id, options, console, streams, context).await,
                Some(from) => {
                    runtime
                        .restore(id, options, from, console, streams, context)
                        .await
                }
            }
        });
        let mut not_ours = false;
        let made = prepared.connect(make, |failure: Failure| {
            not_ours = failure.is_known_container();
            failure.oci(what)
        });
        let pid_file = self.bundle.pid(&init.id);
        let made = match made.await {
            Ok(io) => aside::run(move || read_made(&pid_file))
                .await
                .map(|(pid, at)| {
                    init.made_at.set(at);
                    init.made(pid, io);
                })
                .map_err(|e| Failure::broken_promise(e.to_string()).oci(what)),
            Err(e) => Err(e),
        };
        match made {
            Ok(()) => self.find_cgroup(engine),
            Err(_) if not_ours => {}
            Err(_) => self.force_delete().await,
        }
        made
    }

    /// Removes what a failed create may have left with the OCI runtime (U3).
    async fn force_delete(&self) {
        // A runtime that hangs must not hang Create, whose caller may have set no deadline.
        let context = Context::within(UNDO);
        let deleted = self.runtime.delete(&self.id, true, &context).await;
        if let Err(failure) = deleted
            && !failure.is_unknown_container()
        {
            log::debug!("{}: delete after failed create: {failure}", self.id);
        }
        // A runtime that was killed half way has no record of these.
        let (bundle, id, options) = (self.bundle.clone(), self.id.clone(), self.options.clone());
        let leftovers = aside::run(move || Leftovers::of(bundle, &id, &options)).await;
        if !leftovers.remove_empty_cgroups().await {
            log::warn!("{}: the cgroup of a failed create is in use", self.id);
        }
    }

    /// Lets init run (T20). An exit meanwhile is held back until TaskStart is on its way (X3).
    ///
    /// # Errors
    /// The state's refusal, or code Unknown with the runtime's words; init's exit is still told.
    pub(crate) async fn start(
        self: &Rc<Self>,
        engine: &Rc<Engine>,
        context: &Context,
    ) -> Result<u32> {
        let run = async {
            if self.checkpoint.is_some() {
                return Box::pin(self.make_init(engine, context)).await;
            }
            let started = self.runtime.start(&self.id, context).await;
            started.map_err(|failure| failure.oci("OCI runtime start failed"))
        };
        self.start_by(engine, run, context).await
    }

    /// [`Container::start`], with `run` as what lets init run.
    pub(crate) async fn start_by(
        self: &Rc<Self>,
        engine: &Rc<Engine>,
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
        let starting = engine.exits.starting();
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
            engine.track(pid, self, init);
        }
        drop(starting);
        engine.release(self);
        started.map(|()| pid)
    }

    /// Removes the container from the OCI runtime and unmounts its root file system (T60, T61).
    /// A created container is killed by it; its exit is told before this returns.
    ///
    /// # Errors
    /// The state's refusal, or code Unknown; then the container is still there.
    pub(crate) async fn delete(&self, context: &Context) -> Result<Exit> {
        let remove = async {
            match self.runtime.delete(&self.id, false, context).await {
                Err(failure) if !failure.is_unknown_container() => {
                    Err(failure.oci("failed to delete task"))
                }
                _ => Ok(()),
            }
        };
        let unmount = async {
            let unmounted =
                rootfs::unmount_recursive(self.runtime.reaper(), self.bundle.rootfs()).await;
            unmounted.map_err(|e| Error::Refused(format!("failed rootfs umount: {e}")))
        };
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
    pub(crate) async fn pause(&self, engine: &Engine, context: &Context) -> Result<()> {
        let init = &self.init;
        let _turn = init.turn(context).await?;
        init.state.get().init_allows(Request::Pause)?;
        init.state.set(State::Pausing);
        let paused = self.runtime.pause(&self.id, context).await;
        // It may have ended meanwhile.
        if init.state.get() == State::Pausing {
            init.state.set(if paused.is_ok() {
                State::Paused
            } else {
                State::Running
            });
        }
        paused.map_err(|failure| failure.oci("OCI runtime pause failed"))?;
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
    pub(crate) async fn resume(&self, engine: &Engine, context: &Context) -> Result<()> {
        let init = &self.init;
        let _turn = init.turn(context).await?;
        init.state.get().init_allows(Request::Resume)?;
        let resumed = self.runtime.resume(&self.id, context).await;
        resumed.map_err(|failure| failure.oci("OCI runtime resume failed"))?;
        if init.state.get() == State::Paused {
            init.state.set(State::Running);
        }
        let event = TaskResumed {
            container_id: self.id.clone(),
        };
        engine.outbox.push(Event::Resumed(event));
        Ok(())
    }

    /// Writes a checkpoint into `image` (T73). CRIU works in `work_path`, or in a directory that
    /// goes again.
    ///
    /// # Errors
    /// The state's refusal, or code Unknown with what the runtime said and where CRIU's log is.
    pub(crate) async fn checkpoint(
        &self,
        image: &Path,
        options: &CheckpointOptions,
        context: &Context,
    ) -> Result<()> {
        let init = &self.init;
        let _turn = init.turn(context).await?;
        init.state.get().init_allows(Request::Checkpoint)?;
        let own = self.bundle.work().join("criu-work");
        let work = match options.work_path.as_str() {
            "" => own.clone(),
            path => PathBuf::from(path),
        };
        let made = work.clone();
        aside::run(move || fs::create_dir_all(&made).map_err(Error::io("mkdir", &made))).await?;
        let done = self
            .runtime
            .checkpoint(&self.id, image, &work, options, context)
            .await;
        let (id, log, failed) = (self.id.clone(), self.bundle.criu_dump_log(), done.is_err());
        let kept = log.clone();
        aside::run(move || {
            if failed && let Err(e) = fs::copy(work.join("dump.log"), kept) {
                log::error!("{id}: copy of CRIU's dump.log: {e}");
            }
            if work == own {
                let _ = fs::remove_dir_all(own);
            }
        })
        .await;
        done.map_err(|failure| failure.checkpoint(&log))
    }

    /// Sets limits (T74); `resources` is an OCI LinuxResources as JSON.
    ///
    /// # Errors
    /// The state's refusal, JSON that is none, or code Unknown with the runtime's words.
    pub(crate) async fn update(&self, resources: Vec<u8>, context: &Context) -> Result<()> {
        let init = &self.init;
        let _turn = init.turn(context).await?;
        init.state.get().init_allows(Request::Update)?;
        let resources =
            json::object(&resources).map_err(|e| Error::Refused(format!("resources: {e}")))?;
        let resources = Value::Object(resources).to_string().into_bytes();
        let updated = self.runtime.update(&self.id, resources, context).await;
        updated.map_err(|failure| failure.oci("OCI runtime update failed"))
    }

    /// Sends `signal` to init, or with `all` to every process of the container (T50). Init's exit
    /// is told once this is answered: who hears of it may hang up on us (T4).
    ///
    /// # Errors
    /// NotFound once it has ended; else code Unknown with the runtime's words.
    pub(crate) async fn kill(
        &self,
        engine: &Engine,
        signal: u32,
        all: bool,
        context: &Context,
    ) -> Result<()> {
        self.init.state.get().allows_kill(self.init.pid.get())?;
        if self.takes_signal_itself(signal, all) {
            return sys::kill(self.init.pid.get(), signal).map_err(|e| {
                Error::Refused(format!("unknown error after kill: signal {signal}: {e}"))
            });
        }
        self.last_exit.hold();
        let killed = self.runtime.kill(&self.id, signal, all, context).await;
        // T72: what is frozen does not die; runc thaws it, crun does not.
        if killed.is_ok() && signal == SIGKILL && self.init.state.get() == State::Paused {
            self.thaw();
        }
        engine.release(self);
        killed.map_err(Failure::kill)
    }

    /// True if kill(2) does all that the runtime would do, which takes it some milliseconds: it
    /// also kills what shares init's pid namespace with the host, and thaws what is paused. An init
    /// whose exit is only held back has no pid any more: it may be another child's by now (X10).
    fn takes_signal_itself(&self, signal: u32, all: bool) -> bool {
        !all && (1..=SIGRTMAX).contains(&signal)
            && self.own_pid_namespace
            && self.init.state.get() == State::Running
            && !self.last_exit.init_exited()
            && self.runtime.writes_inits_pid()
            && Reaper::runs(self.init.pid.get())
    }
}
