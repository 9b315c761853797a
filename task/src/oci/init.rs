// SPDX-License-Identifier: Apache-2.0
//! Making a container and its init, and signals to it.

use super::checkpoint::Checkpoint;
use super::cli::{Cli, Console};
use super::failure::Failure;
use super::options::Options;
use super::{Oci, Own, SIGKILL, streams_of};
use crate::aside;
use crate::bundle::Bundle;
use crate::cgroup::{Cgroup, OomWatch};
use crate::container::Container;
use crate::error::{Error, Result};
use crate::foreign::read_made;
use crate::leftovers::Leftovers;
use crate::process::{Process, ProcessId};
use crate::reaper::Reaper;
use crate::rootfs;
use crate::service::Engine;
use crate::state::State;
use crate::stdio::{self, Paths, check_lengths};
use crate::sys;
use crate::trace::{Kind, Span};
use protos::task::CreateTaskRequest;
use protos::ttrpc::Context;
use std::rc::Rc;
use std::time::Duration;

/// The greatest signal (signal(7)).
const SIGRTMAX: u32 = 64;
/// How long the OCI runtime may take to remove what it has half made.
const UNDO: Duration = Duration::from_secs(10);

impl Container<Oci> {
    /// Makes a container out of its bundle (T10): mounts, streams, `create`, cgroup.
    ///
    /// # Errors
    /// The contract's (T11); nothing is left of the container.
    pub(super) async fn create(
        engine: &Rc<Engine<Oci>>,
        request: &CreateTaskRequest,
        context: &Context,
    ) -> Result<Rc<Self>> {
        engine.expects_move();
        let bundle = Bundle::new(&request.bundle);
        let mounts = request.rootfs.clone();
        let mounted = !mounts.is_empty();
        let prepared = {
            let (bundle, options) = (bundle.clone(), request.options.clone());
            aside::run(move || {
                let options = Options::from_any(options.as_ref())?;
                // An unreadable spec is the OCI runtime's to refuse; until then expect the worst.
                let spec = bundle.read_spec();
                let own_pid_namespace = spec.is_ok_and(|spec| spec.has_own_pid_namespace());
                if mounted {
                    bundle.make_rootfs()?;
                }
                bundle.write_options(&options)?;
                Ok::<_, Error>((options, own_pid_namespace))
            })
        };
        let (options, own_pid_namespace) = prepared.await?;
        let paths = Paths::from(request);
        check_lengths(&request.id, &paths)?;
        let ends = engine.ends(&paths)?;
        let checkpoint = (!request.checkpoint.is_empty()).then(|| Checkpoint {
            image: request.checkpoint.clone(),
            parent: request.parent_checkpoint.clone(),
        });
        let reaper = &engine.runtime.reaper;
        let cli = Cli::new(
            Rc::clone(reaper),
            &options,
            &engine.namespace,
            bundle.clone(),
        );
        let init = Process::new(ProcessId::Init, paths, ends);
        let own = Own::new(cli, options, own_pid_namespace, checkpoint);
        let container = Rc::new(Self::new(request.id.clone(), bundle, init, own));
        let bundle = &container.bundle;
        if mounted {
            let span = Span::of(context, "mount rootfs", Kind::Internal);
            let context = &span.context(context);
            let mounted = rootfs::mount_all(reaper, context, bundle.rootfs(), mounts).await;
            span.done(&mounted);
            drop(span);
            mounted
                .map_err(|e| Error::Refused(format!("failed to mount rootfs component: {e}")))?;
        }
        if container.own.checkpoint.is_some() {
            container.init.state.set(State::Restorable);
            return Ok(container);
        }
        if let Err(e) = Box::pin(container.make_init(engine, context)).await {
            let rootfs = bundle.rootfs();
            if mounted && let Err(e) = rootfs::unmount_recursive(reaper, rootfs).await {
                log::error!("{}: unmount after failed create: {e}", container.id);
            }
            return Err(e);
        }
        Ok(container)
    }

    /// Has the OCI runtime make the container: created, with init waiting for Start (T10), or
    /// restored from its checkpoint, with init running (T21).
    ///
    /// # Errors
    /// Code Unknown with the runtime's words (T11); the runtime's half-made container is removed.
    pub(super) async fn make_init(
        self: &Rc<Self>,
        engine: &Rc<Engine<Oci>>,
        context: &Context,
    ) -> Result<()> {
        let (init, options) = (&self.init, &self.own.options);
        let of = streams_of(engine, self, &self.id);
        let prepared = stdio::prepare(
            &init.paths,
            init.ends.take(),
            of,
            &engine.runtime.reaper,
            context,
        );
        let (streams, prepared) = prepared.await?;
        let socket = prepared.console_socket().map(ToOwned::to_owned);
        let console = Console(socket.as_deref());
        let what = match self.own.checkpoint {
            None => "OCI runtime create failed",
            Some(_) => "OCI runtime restore failed",
        };
        // In boxes, here and where this is called: else each of the functions through which a future
        // is handed has room for it twice.
        let make = Box::pin(async {
            let (id, cli) = (&self.id, &self.own.cli);
            match &self.own.checkpoint {
                None => cli.create(id, options, console, streams, context).await,
                Some(from) => {
                    cli.restore(id, options, from, console, streams, context)
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
        let deleted = self.own.cli.delete(&self.id, true, &context).await;
        if let Err(failure) = deleted
            && !failure.is_unknown_container()
        {
            log::debug!("{}: delete after failed create: {failure}", self.id);
        }
        // A runtime that was killed half way has no record of these.
        let (bundle, id, options) = (
            self.bundle.clone(),
            self.id.clone(),
            self.own.options.clone(),
        );
        let leftovers = aside::run(move || Leftovers::of(bundle, &id, &options)).await;
        if !leftovers.remove_empty_cgroups().await {
            log::warn!("{}: the cgroup of a failed create is in use", self.id);
        }
    }

    /// Finds the cgroup and watches it for OOM kills (O3, T79); failures are only logged.
    pub(super) fn find_cgroup(self: &Rc<Self>, engine: &Rc<Engine<Oci>>) {
        let pid = self.init.pid.get();
        let cgroup = match Cgroup::of_pid(pid) {
            // Of a child: one that was reaped has left its pid to anybody.
            Ok(cgroup) if Reaper::is_child(pid) => Rc::new(cgroup),
            Ok(_) => return log::warn!("{}: init {pid} has ended already", self.id),
            Err(e) => return log::error!("{}: cgroup: {e}", self.id),
        };
        if let Err(e) = cgroup.enable_controllers() {
            log::warn!("{}: enable controllers: {e}", self.id);
        }
        self.watch_oom(engine, &cgroup, 0);
        self.own.cgroup.replace(Some(cgroup));
    }

    /// Tells of OOM kills from now on; `told` were told of before.
    pub(super) fn watch_oom(
        self: &Rc<Self>,
        engine: &Rc<Engine<Oci>>,
        cgroup: &Cgroup,
        published: u64,
    ) {
        match OomWatch::new(cgroup) {
            Ok(watch) => {
                watch.set_published(published);
                let watch = Rc::new(watch);
                let (engine, ours) = (Rc::clone(engine), Rc::clone(&watch));
                // The container has the task, and not the task the container.
                let container = Rc::downgrade(self);
                let task = tokio::task::spawn_local(async move {
                    while ours.next().await.is_some()
                        && let Some(container) = container.upgrade()
                    {
                        engine.publish_oom(&container.id);
                        container.name_killed(&engine, &ours);
                    }
                });
                self.own.oom.replace(Some((watch, task)));
            }
            Err(e) => log::error!("{}: watch for OOM: {e}", self.id),
        }
    }

    /// Sends `signal` to init, or with `all` to every process of the container.
    ///
    /// # Errors
    /// NotFound once it has ended; else code Unknown with the runtime's words.
    pub(super) async fn kill_init(&self, signal: u32, all: bool, context: &Context) -> Result<()> {
        if self.takes_signal_itself(signal, all) {
            return sys::kill(self.init.pid.get(), signal).map_err(|e| {
                Error::Refused(format!("unknown error after kill: signal {signal}: {e}"))
            });
        }
        let killed = self.own.cli.kill(&self.id, signal, all, context).await;
        // T72: what is frozen does not die; runc thaws it, crun does not.
        if killed.is_ok() && signal == SIGKILL && self.init.state.get() == State::Paused {
            self.own.thaw();
        }
        killed.map_err(Failure::kill)
    }

    /// True if kill(2) does all that the runtime would do, which takes it some milliseconds: it
    /// also kills what shares init's pid namespace with the host, and thaws what is paused. An init
    /// whose exit is only held back has no pid any more: it may be another child's by now (X10).
    fn takes_signal_itself(&self, signal: u32, all: bool) -> bool {
        !all && (1..=SIGRTMAX).contains(&signal)
            && self.own.own_pid_namespace
            && self.init.state.get() == State::Running
            && !self.last_exit.init_exited()
            && self.own.cli.writes_inits_pid()
            && Reaper::runs(self.init.pid.get())
    }
}
