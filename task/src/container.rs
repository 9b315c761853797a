//! One container: its bundle, its init process and its execs.

use crate::aside;
use crate::bundle::{Bundle, ExitRecord};
use crate::cgroup::{Cgroup, OomWatch};
use crate::error::{Error, Result};
use crate::exits::LastExit;
use crate::handover::{self, Kept};
use crate::process::exec::Exec;
use crate::process::{Exit, Process, ProcessId};
use crate::reaper::Reaper;
use crate::rootfs;
use crate::runtime::{Checkpoint, Options, Runtime};
use crate::service::Engine;
use crate::state::State;
use crate::stdio::{Paths, check_lengths};
use protos::task::{CreateTaskRequest, StateResponse};
use protos::task_types::ProcessInfo;
use protos::ttrpc::Context;
use protos::{any, runc};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

pub struct Container {
    pub id: String,
    pub(crate) bundle: Bundle,
    pub(crate) options: Options,
    pub(crate) runtime: Runtime,
    pub(crate) init: Rc<Process>,
    pub(crate) execs: RefCell<HashMap<String, Rc<Exec>>>,
    pub(crate) last_exit: LastExit,
    /// Exits are recorded one after the other: a burst of them is no burst of threads.
    recording: Mutex<()>,
    pub(crate) own_pid_namespace: bool,
    pub(crate) starting_execs: Cell<usize>,
    /// An exec has failed since nothing was being started; see [`Container::kill_strays`].
    pub(crate) may_have_strays: Cell<bool>,
    /// What Start restores, instead of letting a created init run.
    pub(crate) checkpoint: Option<Checkpoint>,
    /// Found at Create; a process that was dead by then has none.
    cgroup: RefCell<Option<Rc<Cgroup>>>,
    oom: RefCell<Option<(Rc<OomWatch>, JoinHandle<()>)>>,
}

impl Container {
    /// Makes a container out of its bundle (T10): mounts, streams, `create`, cgroup.
    ///
    /// # Errors
    /// The contract's (T11); nothing is left of the container.
    pub(crate) async fn create(
        engine: &Rc<Engine>,
        request: &CreateTaskRequest,
        context: &Context,
    ) -> Result<Rc<Self>> {
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
        let paths = Paths {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        check_lengths(&request.id, &paths)?;
        let ends = engine.ends(&paths)?;
        let checkpoint = (!request.checkpoint.is_empty()).then(|| Checkpoint {
            image: request.checkpoint.clone(),
            parent: request.parent_checkpoint.clone(),
        });
        let reaper = Rc::clone(&engine.reaper);
        let container = Rc::new(Self {
            id: request.id.clone(),
            runtime: Runtime::new(reaper, &options, &engine.namespace, bundle.clone()),
            init: Rc::new(Process::new(ProcessId::Init, paths, ends)),
            execs: RefCell::default(),
            last_exit: LastExit::default(),
            starting_execs: Cell::default(),
            may_have_strays: Cell::default(),
            own_pid_namespace,
            recording: Mutex::default(),
            cgroup: RefCell::default(),
            oom: RefCell::default(),
            checkpoint,
            bundle,
            options,
        });
        let bundle = &container.bundle;
        if mounted {
            let mounted = rootfs::mount_all(&engine.reaper, context, bundle.rootfs(), mounts).await;
            mounted
                .map_err(|e| Error::Refused(format!("failed to mount rootfs component: {e}")))?;
        }
        if container.checkpoint.is_some() {
            container.init.state.set(State::Restorable);
            return Ok(container);
        }
        if let Err(e) = Box::pin(container.make_init(engine, context)).await {
            let rootfs = bundle.rootfs();
            if mounted && let Err(e) = rootfs::unmount_recursive(&engine.reaper, rootfs).await {
                log::error!("{}: unmount after failed create: {e}", container.id);
            }
            return Err(e);
        }
        Ok(container)
    }

    /// Finds the cgroup and watches it for OOM kills (O3, T79); failures are only logged.
    pub(crate) fn find_cgroup(&self, engine: &Rc<Engine>) {
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
        self.cgroup.replace(Some(cgroup));
    }

    /// Tells of OOM kills from now on; `told` were told of before.
    fn watch_oom(&self, engine: &Rc<Engine>, cgroup: &Cgroup, told: u64) {
        match OomWatch::new(cgroup) {
            Ok(watch) => {
                watch.set_told(told);
                let watch = Rc::new(watch);
                let (engine, id, ours) = (Rc::clone(engine), self.id.clone(), Rc::clone(&watch));
                let task = tokio::task::spawn_local(async move {
                    while ours.next().await.is_some() {
                        engine.tell_oom(&id);
                    }
                });
                self.oom.replace(Some((watch, task)));
            }
            Err(e) => log::error!("{}: watch for OOM: {e}", self.id),
        }
    }

    /// Describes the container for another process image.
    ///
    /// # Errors
    /// If no fd is free.
    pub(crate) fn hand_over(&self, kept: &mut Kept) -> io::Result<handover::Container> {
        let execs = self.execs.borrow();
        let execs = execs.iter();
        let execs = execs.map(|(id, exec)| Ok((id.clone(), exec.hand_over(kept)?)));
        Ok(handover::Container {
            execs: execs.collect::<io::Result<_>>()?,
            init: self.init.hand_over(kept)?,
            id: self.id.clone(),
            bundle: self.bundle.path().to_owned(),
            options: self.options.clone(),
            checkpoint: self.checkpoint.clone(),
            own_pid_namespace: self.own_pid_namespace,
            cgroup: self
                .cgroup
                .borrow()
                .as_ref()
                .map(|cgroup| cgroup.hand_over()),
            oom_told: self.oom.borrow().as_ref().map(|(watch, _)| watch.told()),
            init_exited: self.last_exit.init_exited(),
            untold: self.last_exit.untold().map(Exit::hand_over),
        })
    }

    /// Goes on with a container of another process image.
    ///
    /// # Errors
    /// If an fd is not what it is said to be.
    pub(crate) fn take_over(
        engine: &Rc<Engine>,
        container: handover::Container,
    ) -> Result<Rc<Self>> {
        let (reaper, id) = (&engine.reaper, container.id);
        let bundle = Bundle::new(container.bundle);
        let options = container.options;
        let runtime = Runtime::new(
            Rc::clone(reaper),
            &options,
            &engine.namespace,
            bundle.clone(),
        );
        let init = Rc::new(Process::take_over(ProcessId::Init, container.init, reaper)?);
        let mut execs = HashMap::new();
        for (id, exec) in container.execs {
            execs.insert(id.clone(), Rc::new(Exec::take_over(id, exec, reaper)?));
        }
        let runs = |exec: &&Rc<Exec>| exec.process.state.get() == State::Running;
        let running: Vec<_> = execs.values().filter(runs).cloned().collect();
        let untold = container.untold.map(Exit::take_over);
        let last_exit = LastExit::take_over(container.init_exited, untold, running.len());
        let cgroup = container
            .cgroup
            .map(|cgroup| Rc::new(Cgroup::take_over(cgroup)));
        let new = Rc::new(Self {
            id,
            bundle,
            options,
            runtime,
            init,
            execs: RefCell::new(execs),
            last_exit,
            recording: Mutex::default(),
            own_pid_namespace: container.own_pid_namespace,
            starting_execs: Cell::default(),
            may_have_strays: Cell::default(),
            checkpoint: container.checkpoint,
            cgroup: RefCell::new(cgroup.clone()),
            oom: RefCell::default(),
        });
        if let (Some(told), Some(cgroup)) = (container.oom_told, cgroup) {
            new.watch_oom(engine, &cgroup, told);
        }
        if !container.init_exited {
            engine.track(new.init.pid.get(), &new, &new.init);
        }
        for exec in running {
            engine.track(exec.process.pid.get(), &new, &exec.process);
        }
        Ok(new)
    }

    /// Ends the watch; true if an OOM kill was not told yet (X6).
    pub(crate) fn stop_oom_watch(&self) -> bool {
        let Some((watch, task)) = self.oom.take() else {
            return false;
        };
        task.abort();
        watch.flush()
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

    /// Lets frozen processes go on.
    pub(crate) fn thaw(&self) {
        if let Some(cgroup) = &*self.cgroup.borrow() {
            cgroup.thaw();
        }
    }

    /// The pids in the container's cgroup itself, not in those that it has made below.
    pub(crate) fn cgroup_members(&self) -> Vec<u32> {
        let cgroup = self.cgroup.borrow();
        let members = cgroup.as_ref().map(|cgroup| cgroup.members());
        members.unwrap_or_default()
    }

    /// Every pid in the container's cgroup, with the id of those that are execs (T70).
    pub(crate) fn pids(&self) -> Vec<ProcessInfo> {
        let cgroup = self.cgroup.borrow();
        let pids = cgroup.as_ref().map(|cgroup| cgroup.procs());
        let mut pids = pids.unwrap_or_default();
        // containerd 1.7 to 2.3 takes a task without pids for a leak when it restarts, and
        // destroys it together with its exit status; so a task has its init until it is deleted.
        if pids.is_empty() && keeps_init_pid() {
            pids.push(self.init.pid.get());
        }
        let execs = self.execs.borrow();
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

    /// The cgroup's figures (T79).
    ///
    /// # Errors
    /// NotFound without a cgroup, else code Unknown.
    pub(crate) fn stats(&self) -> Result<protos::Any> {
        let cgroup = self.cgroup.borrow();
        let cgroup = cgroup
            .as_ref()
            .ok_or_else(|| Error::NotFound("cgroup does not exist".into()));
        cgroup?.stats().map_err(|e| Error::Refused(e.to_string()))
    }
}

/// Whether Pids of a stopped task names its init; `DUNNAGE_PIDS_AFTER_EXIT=0` turns it off.
fn keeps_init_pid() -> bool {
    std::env::var_os("DUNNAGE_PIDS_AFTER_EXIT").is_none_or(|value| value != "0")
}

#[cfg(test)]
impl Container {
    /// A container that no OCI runtime knows: its processes are what a test says.
    pub(crate) fn imagined(engine: &Engine, id: &str, own_pid_namespace: bool) -> Rc<Self> {
        let bundle = Bundle::new("/nonexistent");
        let options = Options {
            binary_name: "/nonexistent/runc".into(),
            ..Options::default()
        };
        let reaper = Rc::clone(&engine.reaper);
        Rc::new(Self {
            id: id.to_owned(),
            runtime: Runtime::new(reaper, &options, &engine.namespace, bundle.clone()),
            init: Rc::new(Process::new(ProcessId::Init, Paths::default(), None)),
            execs: RefCell::default(),
            last_exit: LastExit::default(),
            recording: Mutex::default(),
            own_pid_namespace,
            starting_execs: Cell::default(),
            may_have_strays: Cell::default(),
            checkpoint: None,
            cgroup: RefCell::default(),
            oom: RefCell::default(),
            bundle,
            options,
        })
    }
}
