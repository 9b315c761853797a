// SPDX-License-Identifier: Apache-2.0
//! The Task API, v2 and v3 alike: one short method per call (the T rows of the contract).

use crate::container::Container;
use crate::containers::Containers;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::oci::Oci;
use crate::oom::Told;
use crate::outbox::Outbox;
use crate::peak;
use crate::process::Exit;
use crate::reaper::Reaper;
use crate::runtime::Runtime;
use crate::state::State;
use crate::stdio::{self, Ends, Parked, Paths};
use protos::any;
use protos::api::task::{self, Task};
use protos::events::{TaskCreate, TaskDelete, TaskIo};
use protos::runc::CheckpointOptions;
use protos::task::*;
use protos::ttrpc::{Answer, Context, Request};
use std::cell::Cell;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use tokio::sync::{Notify, watch};

/// What every part of the engine shares.
pub struct Engine<R: Runtime> {
    pub namespace: String,
    pub outbox: Rc<Outbox>,
    /// Who was killed for want of memory, for a host.
    pub told: Rc<Told>,
    pub runtime: R,
    /// How many pieces of work go on that no request waits for.
    pub(crate) background: Rc<watch::Sender<usize>>,
    /// Streams of a link that requests name instead of paths, if that is how clients are reached.
    parked: Option<Rc<Parked>>,
}

impl<R: Runtime> Engine<R> {
    /// The streams that `paths` name on the link; none without a link.
    ///
    /// # Errors
    /// If one is not there.
    pub(crate) fn ends(&self, paths: &Paths) -> Result<Option<Ends>> {
        self.parked
            .as_ref()
            .map(|parked| parked.take(paths))
            .transpose()
    }
}

/// Answers the Task API for the containers of one process.
pub struct Service<R: Runtime = Oci> {
    pub(crate) engine: Rc<Engine<R>>,
    pub(crate) containers: Containers<R>,
    shutdown: Cell<bool>,
    /// It ends, whatever containers there are.
    is_over: Cell<bool>,
    shutdown_asked: Notify,
}

impl Service {
    /// A service of an OCI runtime, without containers. The events of its tasks go to `outbox`.
    pub fn new(namespace: String, reaper: Rc<Reaper>, outbox: Rc<Outbox>) -> Rc<Self> {
        Self::with(Oci::new(reaper), None, namespace, outbox)
    }

    /// The same for clients at the other end of a link.
    pub fn over(
        parked: Rc<Parked>,
        namespace: String,
        reaper: Rc<Reaper>,
        outbox: Rc<Outbox>,
    ) -> Rc<Self> {
        Self::with(Oci::new(reaper), Some(parked), namespace, outbox)
    }
}

impl<R: Runtime> Service<R> {
    /// A service of `runtime`, without containers; of clients at the other end of a link, if streams
    /// of one are parked.
    pub fn with(
        runtime: R,
        parked: Option<Rc<Parked>>,
        namespace: String,
        outbox: Rc<Outbox>,
    ) -> Rc<Self> {
        stdio::make_null();
        let engine = Engine {
            namespace,
            outbox,
            told: Rc::default(),
            runtime,
            background: Rc::new(watch::channel(0).0),
            parked,
        };
        Rc::new(Self {
            engine: Rc::new(engine),
            containers: Containers::default(),
            shutdown: Cell::new(false),
            is_over: Cell::new(false),
            shutdown_asked: Notify::new(),
        })
    }

    pub fn engine(&self) -> &Rc<Engine<R>> {
        &self.engine
    }

    /// Leaves nothing that would outlive this process and is not meant to.
    pub async fn end(&self) {
        R::end(&self.engine).await;
    }

    /// Does what no call asks for, such as reaping children, for ever.
    pub async fn run(&self) -> io::Error {
        R::run(&self.engine).await
    }

    /// Waits for a Shutdown that finds no container left (T80); one that is still being created
    /// may yet fail.
    pub async fn shut_down(&self) {
        while !(self.is_over.get() || self.shutdown.get() && self.containers.is_empty()) {
            tokio::select! {
                () = self.shutdown_asked.notified() => {}
                () = self.containers.changed() => {}
            }
        }
    }

    /// What its containers were in is gone: it is to end, and they with it.
    pub fn is_over(&self) {
        self.is_over.set(true);
        self.shutdown_asked.notify_waiters();
    }

    /// [`Service::create`], with `make` as what makes the container.
    async fn create_by(
        &self,
        request: CreateTaskRequest,
        make: impl Future<Output = Result<Rc<Container<R>>>>,
        context: &Context,
    ) -> Result<CreateTaskResponse> {
        let reserved = self.containers.reserve(&request.id, context).await?;
        let starting = self.engine.runtime.starting();
        let container = make.await?;
        let pid = container.init.pid.get();
        self.engine.outbox.push(Event::Create(TaskCreate {
            container_id: request.id,
            bundle: request.bundle,
            rootfs: request.rootfs,
            io: Some(TaskIo {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            }),
            checkpoint: request.checkpoint,
            pid,
        }));
        self.shutdown.set(false);
        reserved.fill(Rc::clone(&container));
        R::track(&self.engine, &container, &container.init);
        drop(starting);
        Ok(CreateTaskResponse { pid })
    }

    /// Forgets a container that was deleted, and tells.
    fn deleted(&self, id: String, container: &Container<R>, exit: Exit) -> DeleteResponse {
        let pid = container.init.pid.get();
        self.containers.remove(&id);
        self.engine.outbox.push(Event::Delete(TaskDelete {
            container_id: id,
            pid,
            exit_status: exit.status,
            exited_at: Some(exit.at),
            id: String::new(),
        }));
        exit.of_deleted(pid)
    }
}

impl<R: Runtime> Task for Service<R> {
    type Error = Error;

    async fn create(
        self: &Rc<Self>,
        request: CreateTaskRequest,
        context: &Context,
    ) -> Result<CreateTaskResponse> {
        let (engine, asked) = (Rc::clone(&self.engine), request.clone());
        let make = async move { R::create(&engine, &asked, context).await };
        self.create_by(request, make, context).await
    }

    async fn start(
        self: &Rc<Self>,
        request: StartRequest,
        context: &Context,
    ) -> Result<StartResponse> {
        let container = self.containers.find(&request.id)?;
        let pid = if request.exec_id.is_empty() {
            container.start(&self.engine, context).await?
        } else {
            let exec = container.exec(&request.exec_id)?;
            container.start_exec(&self.engine, &exec, context).await?
        };
        Ok(StartResponse { pid })
    }

    async fn delete(
        self: &Rc<Self>,
        request: DeleteRequest,
        context: &Context,
    ) -> Result<DeleteResponse> {
        let container = self.containers.find(&request.id)?;
        if !request.exec_id.is_empty() {
            let exec = container.exec(&request.exec_id)?;
            let exit = container.delete_exec(&self.engine, &exec, context).await?;
            return Ok(exit.of_deleted(exec.process.pid.get()));
        }
        let exit = container.delete(&self.engine, context).await?;
        Ok(self.deleted(request.id, &container, exit))
    }

    async fn state(self: &Rc<Self>, request: StateRequest, _: &Context) -> Result<StateResponse> {
        let container = self.containers.find(&request.id)?;
        let process = container.process(&request.exec_id)?;
        Ok(container.state(&process))
    }

    async fn wait(
        self: &Rc<Self>,
        request: WaitRequest,
        context: &Context,
    ) -> Result<WaitResponse> {
        let process = self
            .containers
            .find(&request.id)?
            .process(&request.exec_id)?;
        let exit = process.wait(context).await?;
        Ok(WaitResponse {
            exit_status: exit.status,
            exited_at: Some(exit.at),
        })
    }

    async fn exec(self: &Rc<Self>, request: ExecProcessRequest, _: &Context) -> Result<()> {
        let container = self.containers.find(&request.id)?;
        let paths = Paths::from(&request);
        let spec = request.spec.unwrap_or_default().value;
        container.add_exec(&self.engine, &request.exec_id, &spec, paths)
    }

    async fn kill(self: &Rc<Self>, request: KillRequest, context: &Context) -> Result<()> {
        let container = self.containers.find(&request.id)?;
        if request.exec_id.is_empty() {
            container
                .kill(&self.engine, request.signal, request.all, context)
                .await
        } else {
            let exec = container.exec(&request.exec_id)?;
            container
                .kill_exec(&self.engine, &exec, request.signal, context)
                .await
        }
    }

    async fn pids(self: &Rc<Self>, request: PidsRequest, _: &Context) -> Result<PidsResponse> {
        let container = self.containers.find(&request.id)?;
        Ok(PidsResponse {
            processes: R::pids(&container),
        })
    }

    async fn pause(self: &Rc<Self>, request: PauseRequest, context: &Context) -> Result<()> {
        self.containers
            .find(&request.id)?
            .pause(&self.engine, context)
            .await
    }

    async fn resume(self: &Rc<Self>, request: ResumeRequest, context: &Context) -> Result<()> {
        self.containers
            .find(&request.id)?
            .resume(&self.engine, context)
            .await
    }

    async fn update(self: &Rc<Self>, request: UpdateTaskRequest, context: &Context) -> Result<()> {
        let resources = request.resources.unwrap_or_default().value;
        self.containers
            .find(&request.id)?
            .update(resources, context)
            .await
    }

    async fn resize_pty(
        self: &Rc<Self>,
        request: ResizePtyRequest,
        context: &Context,
    ) -> Result<()> {
        let container = self.containers.find(&request.id)?;
        let process = container.process(&request.exec_id)?;
        if !request.exec_id.is_empty() && process.state.get() == State::Stopped {
            return Err(Error::Refused("cannot resize a stopped container".into()));
        }
        let size = (request.width, request.height);
        R::resize(&container, &process, size, context).await
    }

    async fn close_io(self: &Rc<Self>, request: CloseIoRequest, _: &Context) -> Result<()> {
        let process = self.containers.find(&request.id)?.process(&request.exec_id);
        // T2: here, and only here, an unknown exec is code Unknown.
        let process = process.map_err(|e| Error::Refused(e.to_string()))?;
        process.close_stdin();
        Ok(())
    }

    async fn stats(
        self: &Rc<Self>,
        request: StatsRequest,
        context: &Context,
    ) -> Result<StatsResponse> {
        let container = self.containers.find(&request.id)?;
        let stats = R::stats(&container, context).await?;
        Ok(StatsResponse { stats: Some(stats) })
    }

    async fn checkpoint(
        self: &Rc<Self>,
        request: CheckpointTaskRequest,
        context: &Context,
    ) -> Result<()> {
        let container = self.containers.find(&request.id)?;
        let options = request.options.unwrap_or_default();
        let options = match any::unpack::<CheckpointOptions>(&options) {
            Some(Ok(options)) => options,
            Some(Err(e)) => return Err(Error::Refused(format!("checkpoint options: {e}"))),
            None if options.type_url.is_empty() => CheckpointOptions::default(),
            None => {
                let text = format!("type with url {}: not found", options.type_url);
                return Err(Error::Refused(text));
            }
        };
        container
            .checkpoint(&self.engine, Path::new(&request.path), &options, context)
            .await
    }

    async fn connect(
        self: &Rc<Self>,
        request: ConnectRequest,
        _: &Context,
    ) -> Result<ConnectResponse> {
        let task_pid = self
            .containers
            .find(&request.id)
            .map_or(0, |c| c.init.pid.get());
        let shim_pid = std::process::id();
        Ok(ConnectResponse {
            shim_pid,
            task_pid,
            version: String::new(),
        })
    }

    async fn shutdown(self: &Rc<Self>, _: ShutdownRequest, _: &Context) -> Result<()> {
        if self.containers.all().is_empty() && !self.engine.runtime.is_held() {
            self.shutdown.set(true);
            self.shutdown_asked.notify_waiters();
        }
        Ok(())
    }

    fn answered(&self, method: &str, answer: Answer) -> Answer {
        if matches!(method, "Create" | "Start" | "Delete") {
            peak::over();
        }
        answer
    }
}

impl<R: Runtime> protos::ttrpc::Service for Service<R> {
    fn call(self: Rc<Self>, request: Request) -> Pin<Box<dyn Future<Output = Answer>>> {
        task::serve(self, request)
    }

    fn only_waits(&self, method: &str) -> bool {
        task::only_waits(method)
    }
}

#[cfg(test)]
mod tests;
