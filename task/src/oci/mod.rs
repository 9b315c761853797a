// SPDX-License-Identifier: Apache-2.0
//! Containers by an OCI runtime such as runc or crun: its command line, the children that it leaves
//! to us, and the kernel's cgroups.

mod checkpoint;
mod cli;
pub mod command;
pub mod direct;
mod exec;
mod failure;
mod handover;
mod init;
mod join;
mod options;

pub use checkpoint::Checkpoint;
pub use cli::{Cli, Console};
pub use command::Streams;
pub(crate) use command::run;
pub use failure::Failure;
pub use options::{DEFAULT_ROOT, Options};

use crate::aside;
use crate::bundle::Bundle;
use crate::cgroup::{self, Cgroup, OomWatch, Room};
use crate::container::Container;
use crate::error::{Error, Result};
use crate::handover::Kept;
use crate::process::exec::Exec;
use crate::process::{Process, ProcessId};
use crate::reaper::Reaper;
use crate::rootfs;
use crate::runtime::Runtime;
use crate::service::Engine;
use crate::stdio::{self, Io};
use direct::{Direct, Terms};
use join::{Join, Starting};
use protos::runc::{self, CheckpointOptions};
use protos::task::CreateTaskRequest;
use protos::task_types::ProcessInfo;
use protos::ttrpc::Context;
use protos::{Any, any};
use serde_json::Value;
use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tokio::task::JoinHandle;

const SIGKILL: u32 = 9;
/// How long the OCI runtime may take to kill what a dead init has left; then init's exit is told
/// all the same.
const KILL_ALL: Duration = Duration::from_secs(10);

/// The OCI runtimes of a shim's containers, and whose child is whose.
pub struct Oci {
    pub(crate) reaper: Rc<Reaper>,
    pub(crate) join: Join,
    direct: Option<Direct>,
}

impl Oci {
    /// Containers whose processes are `reaper`'s.
    pub fn new(reaper: Rc<Reaper>) -> Self {
        let join = Join::default();
        Self {
            reaper,
            join,
            direct: Direct::wanted(),
        }
    }
}

impl Engine<Oci> {
    /// An OCI runtime is about to move a process into a cgroup: has the kernel get ready meanwhile, unless
    /// one has just done so.
    fn expects_move(&self) {
        if !aside::is_in_memory() && self.runtime.reaper.turns.is_first() {
            self.in_background(cgroup::wait_ahead());
        }
    }
}

/// What is kept of a container.
pub struct Own {
    options: Options,
    cli: Cli,
    own_pid_namespace: bool,
    /// What Start restores, instead of letting a created init run.
    checkpoint: Option<Checkpoint>,
    /// Found at Create; a process that was dead by then has none.
    cgroup: RefCell<Option<Rc<Cgroup>>>,
    oom: RefCell<Option<(Rc<OomWatch>, JoinHandle<()>)>>,
    /// What its config.json says of execs without an OCI runtime; `Err`: the field for which there are
    /// none.
    direct: RefCell<Option<std::result::Result<Terms, String>>>,
}

impl Own {
    fn new(
        cli: Cli,
        options: Options,
        own_pid_namespace: bool,
        checkpoint: Option<Checkpoint>,
    ) -> Self {
        Self {
            options,
            cli,
            own_pid_namespace,
            checkpoint,
            cgroup: RefCell::default(),
            oom: RefCell::default(),
            direct: RefCell::default(),
        }
    }

    /// Lets frozen processes go on.
    fn thaw(&self) {
        if let Some(cgroup) = &*self.cgroup.borrow() {
            cgroup.thaw();
        }
    }
}

impl Runtime for Oci {
    type Container = Own;
    type Starting = Starting;

    async fn run(engine: &Rc<Engine<Self>>) -> io::Error {
        engine.runtime.reaper.run(engine).await
    }

    type Moved = ();
    type MovedContainer = handover::Moved;

    fn hand_over(_: &Engine<Self>, _: &mut Kept) -> io::Result<()> {
        Ok(())
    }

    fn hand_over_container(container: &Container<Self>) -> handover::Moved {
        container.own.hand_over()
    }

    fn take_over(_: &Rc<Engine<Self>>, (): ()) -> Result<()> {
        Ok(())
    }

    fn take_over_container(
        engine: &Rc<Engine<Self>>,
        _: &str,
        bundle: &Bundle,
        moved: &handover::Moved,
    ) -> Result<Own> {
        Ok(Own::take_over(engine, bundle, moved))
    }

    fn goes_on(
        engine: &Rc<Engine<Self>>,
        container: &Rc<Container<Self>>,
        moved: &handover::Moved,
    ) {
        container.goes_on(engine, moved);
    }

    fn reaper(&self) -> &Reaper {
        &self.reaper
    }

    async fn create(
        engine: &Rc<Engine<Self>>,
        request: &CreateTaskRequest,
        context: &Context,
    ) -> Result<Rc<Container<Self>>> {
        Container::create(engine, request, context).await
    }

    async fn start(
        engine: &Rc<Engine<Self>>,
        container: &Rc<Container<Self>>,
        context: &Context,
    ) -> Result<()> {
        let own = &container.own;
        if own.checkpoint.is_some() {
            return Box::pin(container.make_init(engine, context)).await;
        }
        let started = own.cli.start(&container.id, context).await;
        started.map_err(|failure| failure.oci("OCI runtime start failed"))
    }

    async fn exec(
        engine: &Rc<Engine<Self>>,
        container: &Rc<Container<Self>>,
        exec: &Exec,
        context: &Context,
    ) -> Result<(u32, Io)> {
        container.make_exec(engine, exec, context).await
    }

    fn kill_strays(engine: &Rc<Engine<Self>>, container: &Container<Self>) {
        container.kill_strays(engine);
    }

    async fn kill(
        _: &Rc<Engine<Self>>,
        container: &Rc<Container<Self>>,
        process: &Process,
        signal: u32,
        all: bool,
        context: &Context,
    ) -> Result<()> {
        if process.id != ProcessId::Init {
            return exec::kill(process.pid.get(), signal);
        }
        container.kill_init(signal, all, context).await
    }

    async fn pause(container: &Rc<Container<Self>>, context: &Context) -> Result<()> {
        let paused = container.own.cli.pause(&container.id, context).await;
        paused.map_err(|failure| failure.oci("OCI runtime pause failed"))
    }

    async fn resume(container: &Rc<Container<Self>>, context: &Context) -> Result<()> {
        let resumed = container.own.cli.resume(&container.id, context).await;
        resumed.map_err(|failure| failure.oci("OCI runtime resume failed"))
    }

    async fn update(
        container: &Rc<Container<Self>>,
        resources: Value,
        context: &Context,
    ) -> Result<()> {
        let (cli, resources) = (&container.own.cli, resources.to_string().into_bytes());
        let updated = cli.update(&container.id, resources, context).await;
        updated.map_err(|failure| failure.oci("OCI runtime update failed"))
    }

    async fn checkpoint(
        _: &Rc<Engine<Self>>,
        container: &Rc<Container<Self>>,
        image: &Path,
        options: &CheckpointOptions,
        context: &Context,
    ) -> Result<()> {
        checkpoint::write(container, image, options, context).await
    }

    async fn remove(
        _: &Rc<Engine<Self>>,
        container: &Rc<Container<Self>>,
        context: &Context,
    ) -> Result<()> {
        let cli = &container.own.cli;
        match cli.delete(&container.id, false, context).await {
            Err(failure) if !failure.is_unknown_container() => {
                Err(failure.oci("failed to delete task"))
            }
            _ => Ok(()),
        }
    }

    async fn unmount(_: &Rc<Engine<Self>>, container: &Rc<Container<Self>>) -> Result<()> {
        let rootfs = container.bundle.rootfs();
        let unmounted = rootfs::unmount_recursive(container.own.cli.reaper(), rootfs).await;
        unmounted.map_err(|e| Error::Refused(format!("failed rootfs umount: {e}")))
    }

    async fn resize(
        _: &Rc<Container<Self>>,
        process: &Process,
        (width, height): (u32, u32),
        _: &Context,
    ) -> Result<()> {
        process.io().map_or(Ok(()), |io| io.resize(width, height))
    }

    fn pids(container: &Container<Self>) -> Vec<ProcessInfo> {
        let cgroup = container.own.cgroup.borrow();
        let pids = cgroup.as_ref().map(|cgroup| cgroup.procs());
        let mut pids = pids.unwrap_or_default();
        // containerd 1.7 to 2.3 takes a task without pids for a leak when it restarts, and
        // destroys it together with its exit status; so a task has its init until it is deleted.
        if pids.is_empty() && keeps_init_pid() {
            pids.push(container.init.pid.get());
        }
        let execs = container.execs.borrow();
        let info = |pid| {
            let exec = execs.values().find(|exec| exec.process.pid.get() == pid)?;
            let exec_id = exec.process.id.exec_id().to_owned();
            Some(any::pack(&runc::ProcessDetails { exec_id }))
        };
        pids.into_iter()
            .map(|pid| ProcessInfo {
                pid,
                info: info(pid),
            })
            .collect()
    }

    async fn stats(container: &Rc<Container<Self>>, _: &Context) -> Result<Any> {
        let cgroup = container.own.cgroup.borrow();
        let cgroup = cgroup
            .as_ref()
            .ok_or_else(|| Error::NotFound("cgroup does not exist".into()));
        cgroup?.stats().map_err(|e| Error::Refused(e.to_string()))
    }

    fn starting(&self) -> Starting {
        self.join.starting()
    }

    fn track(engine: &Rc<Engine<Self>>, container: &Rc<Container<Self>>, process: &Rc<Process>) {
        engine.track(container, process);
    }

    /// Without a pid namespace of its own, a container's processes outlive its init.
    fn kill_left(container: &Rc<Container<Self>>) -> Option<impl Future<Output = ()> + 'static> {
        let container = Rc::clone(container);
        let all_end_with_it = container.own.own_pid_namespace;
        let kill = async move {
            let (id, context) = (&container.id, Context::within(KILL_ALL));
            let killed = container.own.cli.kill(id, SIGKILL, true, &context);
            if let Err(failure) = killed.await {
                log::debug!("{id}: kill all after init: {failure}");
            }
        };
        (!all_end_with_it).then_some(kill)
    }

    fn thaw(container: &Container<Self>) {
        container.own.thaw();
    }

    fn stop_oom_watch(engine: &Engine<Self>, container: &Container<Self>) -> bool {
        let Some((watch, task)) = container.own.oom.take() else {
            return false;
        };
        task.abort();
        let is_news = watch.flush();
        if is_news {
            container.name_killed(engine, &watch);
        }
        is_news
    }

    fn room(container: &Container<Self>) -> Option<(PathBuf, Room)> {
        container.own.cgroup.borrow().as_ref()?.room()
    }
}

/// What loggers and messages want to know of a process's streams.
fn streams_of<'a>(
    engine: &'a Engine<Oci>,
    container: &'a Container<Oci>,
    process: &'a str,
) -> stdio::Of<'a> {
    stdio::Of {
        namespace: &engine.namespace,
        process,
        bundle: &container.bundle,
        io_uid: container.own.options.io_uid,
        io_gid: container.own.options.io_gid,
    }
}

/// Whether Pids of a stopped task names its init; `DUNNAGE_PIDS_AFTER_EXIT=0` turns it off.
fn keeps_init_pid() -> bool {
    std::env::var_os("DUNNAGE_PIDS_AFTER_EXIT").is_none_or(|value| value != "0")
}

#[cfg(test)]
impl Container<Oci> {
    /// A container that no OCI runtime knows: its processes are what a test says.
    pub(crate) fn imagined(engine: &Engine<Oci>, id: &str, own_pid_namespace: bool) -> Rc<Self> {
        let bundle = crate::bundle::Bundle::new("/nonexistent");
        let options = Options {
            binary_name: "/nonexistent/runc".into(),
            ..Options::default()
        };
        let reaper = Rc::clone(&engine.runtime.reaper);
        let cli = Cli::new(reaper, &options, &engine.namespace, bundle.clone());
        let init = Process::new(ProcessId::Init, stdio::Paths::default(), None);
        let own = Own::new(cli, options, own_pid_namespace, None);
        Rc::new(Self::new(id.to_owned(), bundle, init, own))
    }
}
