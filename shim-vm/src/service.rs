//! The Task API for containers in one VM: each call is asked of the guest field by field, and
//! answered with what is the host's. Nothing is held while the guest is asked.

use crate::container::{Container, Exit, Process};
use crate::spec::Anchor;
use crate::streams::Ends;
use crate::vm::Vm;
use protos::events::TaskDelete;
use protos::task::*;
use protos::ttrpc::{Answer, Context, Request};
use protos::{Code, Message, Status, service};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use task::event::Event;
use task::outbox::Outbox;
use task::reaper::Reaper;
use task::stdio::Paths;
use tokio::sync::{Mutex, Notify};

pub(crate) type Result<T> = std::result::Result<T, Status>;
pub(crate) type Empty = ();

/// Answers the Task API for the containers of one VM, and boots it for the first.
pub struct Service {
    pub(crate) namespace: String,
    pub(crate) reaper: Rc<Reaper>,
    outbox: Rc<Outbox>,
    /// `None` while the container is being created and nothing is known of it.
    pub(crate) containers: RefCell<HashMap<String, Option<Rc<Container>>>>,
    pub(crate) vm: RefCell<Option<Rc<Vm>>>,
    pub(crate) anchor: Cell<Option<Anchor>>,
    /// Held while the VM is booted or ended.
    pub(crate) turn: Mutex<()>,
    changed: Notify,
    shutdown: Cell<bool>,
}

impl Service {
    pub fn new(namespace: String, reaper: Rc<Reaper>, outbox: Rc<Outbox>) -> Rc<Self> {
        Rc::new(Self {
            namespace,
            reaper,
            outbox,
            containers: RefCell::default(),
            vm: RefCell::default(),
            anchor: Cell::new(None),
            turn: Mutex::new(()),
            changed: Notify::new(),
            shutdown: Cell::new(false),
        })
    }

    pub(crate) fn publish(&self, event: Event) {
        self.outbox.push(event);
    }

    /// The container, also one that the guest is making.
    pub(crate) fn known(&self, id: &str) -> Option<Rc<Container>> {
        self.containers.borrow().get(id).cloned().flatten()
    }

    pub(crate) fn find(&self, id: &str) -> Result<Rc<Container>> {
        let found = self.known(id).filter(|container| container.created.get());
        found.ok_or_else(|| not_found("container not created"))
    }

    pub(crate) fn find_process(
        &self,
        id: &str,
        exec_id: &str,
    ) -> Result<(Rc<Container>, Rc<Process>)> {
        let container = self.find(id)?;
        let process = container.process(exec_id);
        let process =
            process.ok_or_else(|| not_found(&format!("process does not exist {exec_id}")))?;
        Ok((container, process))
    }

    pub(crate) async fn ask<A: Message + Default>(
        &self,
        container: &Container,
        method: &str,
        request: &impl Message,
        context: &Context,
    ) -> Result<A> {
        container
            .vm
            .ask(service::TASK_V3, method, request, context)
            .await
    }

    pub(crate) fn forget(&self, id: &str) {
        self.containers.borrow_mut().remove(id);
        self.changed.notify_waiters();
    }

    /// Waits for a Shutdown that finds no container left (T80).
    pub async fn shut_down(&self) {
        while !(self.shutdown.get() && self.containers.borrow().is_empty()) {
            self.changed.notified().await;
        }
    }

    async fn create(
        self: &Rc<Self>,
        request: CreateTaskRequest,
        context: &Context,
    ) -> Result<CreateTaskResponse> {
        let id = request.id.clone();
        if self.containers.borrow().contains_key(&id) {
            let text = "OCI runtime create failed: container with given ID already exists";
            return Err(unknown(text));
        }
        self.containers.borrow_mut().insert(id.clone(), None);
        let made = self.make(request, context).await;
        match made {
            Ok(container) => {
                self.shutdown.set(false);
                let pid = container.vm.pid();
                Ok(CreateTaskResponse { pid })
            }
            Err(status) => {
                let begun = self.known(&id);
                self.unmake(&id).await;
                if let Some(begun) = begun {
                    begun.run_poststop(&self.reaper).await;
                }
                tokio::select! {
                    biased;
                    why = context.cancelled() => Err(why),
                    () = std::future::ready(()) => Err(status),
                }
            }
        }
    }

    async fn delete(
        self: &Rc<Self>,
        request: DeleteRequest,
        context: &Context,
    ) -> Result<DeleteResponse> {
        let (container, process) = self.find_process(&request.id, &request.exec_id)?;
        let is_init = request.exec_id.is_empty();
        if !container.vm.is_gone() {
            let answer = self
                .ask::<DeleteResponse>(&container, "Delete", &request, context)
                .await;
            match answer {
                // Its exit was told before, and is on its way.
                Ok(answer) if answer.exited_at.is_some_and(|at| at != Exit::NONE.at) => {
                    tokio::select! {
                        _ = process.ended() => {}
                        _ = container.vm.gone() => {}
                    }
                }
                Ok(_) => process.deleted(),
                Err(_) if container.vm.is_gone() => {}
                Err(status) => return Err(status),
            }
        }
        let exit = match process.exit() {
            Some(_) => process.ended().await,
            None => Exit::NONE,
        };
        process.close().await;
        process.deleted();
        if !is_init {
            container.execs.borrow_mut().remove(&request.exec_id);
            let answer = container.deleted(exit);
            let pid = if process.runs.get() { answer.pid } else { 0 };
            return Ok(DeleteResponse { pid, ..answer });
        }
        let execs = container.execs.take();
        for exec in execs.values() {
            exec.deleted();
            exec.close().await;
        }
        self.unmake(&request.id).await;
        container.run_poststop(&self.reaper).await;
        self.publish(Event::Delete(TaskDelete {
            container_id: request.id,
            pid: container.vm.pid(),
            exit_status: exit.status,
            exited_at: Some(exit.at),
            id: String::new(),
        }));
        Ok(container.deleted(exit))
    }

    async fn state(&self, request: StateRequest, context: &Context) -> Result<StateResponse> {
        let (container, process) = self.find_process(&request.id, &request.exec_id)?;
        if !container.vm.is_gone() {
            match self
                .ask::<StateResponse>(&container, "State", &request, context)
                .await
            {
                Ok(guest) => return Ok(container.state(&process, Some(&guest))),
                Err(status) if status.code != Code::Unavailable => return Err(status),
                Err(_) => drop(container.vm.gone().await),
            }
        }
        Ok(container.state(&process, None))
    }

    async fn wait(&self, request: WaitRequest, context: &Context) -> Result<WaitResponse> {
        let (container, process) = self.find_process(&request.id, &request.exec_id)?;
        let exit = tokio::select! {
            biased;
            exit = process.wait() => exit,
            why = context.cancelled() => return Err(why),
            exit = self.never_runs(&container, &process, &request, context) => exit,
        };
        Ok(WaitResponse {
            exit_status: exit.status,
            exited_at: Some(exit.at),
        })
    }

    /// Waits until the guest knows that a process, which has not been started, never will be.
    async fn never_runs(
        &self,
        container: &Container,
        process: &Process,
        request: &WaitRequest,
        context: &Context,
    ) -> Exit {
        if !process.runs.get() {
            // Boxed: to most Waits it is room for nothing.
            let waited = Box::pin(self.ask::<WaitResponse>(container, "Wait", request, context));
            if waited
                .await
                .is_ok_and(|exit| exit.exited_at == Some(Exit::NONE.at))
            {
                return Exit::NONE;
            }
        }
        std::future::pending().await
    }

    async fn exec(&self, request: ExecProcessRequest, context: &Context) -> Result<Empty> {
        let container = self.find(&request.id)?;
        self.alive(&container)?;
        let exec_id = request.exec_id.clone();
        if container.execs.borrow().contains_key(&exec_id) {
            return Err(Status::new(
                Code::AlreadyExists,
                format!("id {exec_id}: already exists"),
            ));
        }
        let paths = Paths {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        task::stdio::check_lengths(&exec_id, &paths)?;
        let (ends, names) = Ends::open(container.vm.link(), &paths);
        let process = Process::new(exec_id.clone(), paths, ends);
        // Before the guest tells of it.
        container
            .execs
            .borrow_mut()
            .insert(exec_id.clone(), process);
        let asked = ExecProcessRequest {
            stdin: names.stdin,
            stdout: names.stdout,
            stderr: names.stderr,
            ..request
        };
        let added = self
            .ask::<protos::guest::Empty>(&container, "Exec", &asked, context)
            .await;
        if added.is_err() {
            container.execs.borrow_mut().remove(&exec_id);
        }
        added.map(drop)
    }

    async fn connect_task(&self, request: ConnectRequest, _: &Context) -> Result<ConnectResponse> {
        let task_pid = self
            .find(&request.id)
            .map_or(0, |container| container.vm.pid());
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: String::new(),
        })
    }

    async fn shutdown(&self, _: ShutdownRequest, _: &Context) -> Result<Empty> {
        if self.containers.borrow().is_empty() {
            self.shutdown.set(true);
            self.changed.notify_waiters();
        }
        Ok(())
    }

    async fn dispatch(self: &Rc<Self>, request: Request) -> Answer {
        let Request {
            method,
            payload,
            context,
            ..
        } = request;
        macro_rules! call {
            ($method:ident) => {{
                let request = Message::decode(payload.as_slice());
                let refuse = |e| Status::new(Code::InvalidArgument, format!("request: {e}"));
                // Boxed, or a Wait would be as large as a Create.
                let answer = Box::pin(self.$method(request.map_err(refuse)?, &context));
                Ok(answer.await?.encode_to_vec())
            }};
        }
        match method.as_str() {
            "State" => call!(state),
            "Create" => call!(create),
            "Start" => call!(start),
            "Delete" => call!(delete),
            "Pids" => call!(pids),
            "Pause" => call!(pause),
            "Resume" => call!(resume),
            "Checkpoint" => call!(checkpoint),
            "Kill" => call!(kill),
            "Exec" => call!(exec),
            "ResizePty" => call!(resize_pty),
            "CloseIO" => call!(close_io),
            "Update" => call!(update),
            "Wait" => call!(wait),
            "Stats" => call!(stats),
            "Connect" => call!(connect_task),
            "Shutdown" => call!(shutdown),
            other => Err(Context::no_such_method(other)),
        }
    }
}

pub fn unknown(text: &str) -> Status {
    Status::new(Code::Unknown, text)
}

pub fn unimplemented(what: &str) -> Status {
    Status::new(Code::Unimplemented, format!("{what}: not implemented"))
}

pub fn not_found(what: &str) -> Status {
    Status::new(Code::NotFound, format!("{what}: not found"))
}

impl protos::ttrpc::Service for Service {
    fn call(self: Rc<Self>, request: Request) -> Pin<Box<dyn Future<Output = Answer>>> {
        Box::pin(async move {
            log::debug!("{}", request.method);
            let peaks = matches!(request.method.as_str(), "Create" | "Delete");
            let answer = self.dispatch(request).await;
            if peaks {
                task::peak::over();
            }
            answer
        })
    }

    fn only_waits(&self, method: &str) -> bool {
        method == "Wait"
    }
}
