//! The Task API for containers in one VM: each call is asked of the guest field by field, and
//! answered with what is the host's. Nothing is held while the guest is asked.

use crate::container::{Container, Exit, Process};
use crate::events::UNASKED;
use crate::promises::owes_exit;
use crate::spec::Anchor;
use crate::vm::Vm;
use crate::word::{self, Allowance};
use protos::api::task::{self as api, Task};
use protos::task::*;
use protos::ttrpc::{Answer, Call, Context, Request};
use protos::{Code, Status};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use task::event::Event;
use task::outbox::Outbox;
use task::reaper::Reaper;
use task::stdio::{Ends, Paths};
use tokio::sync::{Mutex, Notify};

pub(crate) type Result<T> = std::result::Result<T, Status>;

/// The most that an id has, in bytes: with them all the guest's notices have at most what they may.
const LONGEST_ID: usize = 255;

/// Answers the Task API for the containers of one VM, and boots it for the first.
pub struct Service {
    pub(crate) namespace: String,
    pub(crate) reaper: Rc<Reaper>,
    outbox: Rc<Outbox>,
    /// `None` while the container is being created and nothing is known of it.
    pub(crate) containers: RefCell<HashMap<String, Option<Rc<Container>>>>,
    pub(crate) vm: RefCell<Option<Rc<Vm>>>,
    /// What its guest may tell unasked.
    pub(crate) unasked: RefCell<Allowance>,
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
            unasked: RefCell::new(Allowance::new(UNASKED.0, UNASKED.1)),
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

    /// Asks the guest about a process that it has told of.
    pub(crate) async fn ask<C: Call>(
        &self,
        container: &Rc<Container>,
        process: &Rc<Process>,
        request: &C,
        context: &Context,
    ) -> Result<C::Answer> {
        let (vm, method) = (&container.vm, C::METHOD);
        let answer = vm.ask(request, context).await;
        let goes = container.init.deleting.get() || process.deleting.get();
        let is_there = process.added.get() && !goes;
        if is_there && matches!(&answer, Err(status) if status.code == Code::NotFound) {
            match method {
                // It has ended, is what that says.
                "Kill" => owes_exit(container, process),
                // Nor need a container have a cgroup.
                "Stats" => {}
                _ => vm.doom.broke_word(&format!(
                    "{method} of {}, which is there: not found",
                    container.name_of(process)
                )),
            }
        }
        answer
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

    /// Waits until the guest knows that a process, which has not been started, never will be.
    async fn never_runs(
        &self,
        container: &Rc<Container>,
        process: &Rc<Process>,
        request: &WaitRequest,
        context: &Context,
    ) -> Exit {
        if !process.runs.get() {
            // Boxed: to most Waits it is room for nothing.
            let waited = Box::pin(self.ask(container, process, request, context));
            if waited
                .await
                .is_ok_and(|exit| exit.exited_at == Some(Exit::NONE.at) && !process.runs.get())
            {
                process.deleted();
                return Exit::NONE;
            }
        }
        std::future::pending().await
    }
}

/// Methods that are defined in `start.rs`, `promises.rs` and `calls.rs`.
macro_rules! elsewhere {
    ($($method:ident($Request:ty) -> $Answer:ty;)*) => {
        $(async fn $method(self: &Rc<Self>, request: $Request, context: &Context) -> Result<$Answer> {
            Self::$method(self, request, context).await
        })*
    };
}

impl Task for Service {
    type Error = Status;

    async fn create(
        self: &Rc<Self>,
        request: CreateTaskRequest,
        context: &Context,
    ) -> Result<CreateTaskResponse> {
        let id = request.id.clone();
        if id.len() > LONGEST_ID {
            return Err(too_long(&id));
        }
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
                self.unmake(&id, true).await;
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

    async fn state(
        self: &Rc<Self>,
        request: StateRequest,
        context: &Context,
    ) -> Result<StateResponse> {
        let (container, process) = self.find_process(&request.id, &request.exec_id)?;
        let vm = &container.vm;
        if !vm.is_gone() {
            let answer = self.ask(&container, &process, &request, context);
            match answer.await {
                Ok(guest) => match word::exit_so_far(guest.exit_status, guest.exited_at) {
                    Ok(exit) => return Ok(container.state(&process, Some((guest.status(), exit)))),
                    Err(how) => {
                        vm.doom
                            .broke_word(&format!("State of {}: {how}", request.id));
                        tokio::select! {
                            _ = vm.gone() => {}
                            why = context.cancelled() => return Err(why),
                        }
                    }
                },
                Err(_) if vm.is_gone() => {}
                Err(status) => return Err(status),
            }
        }
        self.lost(&container);
        Ok(container.state(&process, None))
    }

    async fn wait(
        self: &Rc<Self>,
        request: WaitRequest,
        context: &Context,
    ) -> Result<WaitResponse> {
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

    async fn exec(self: &Rc<Self>, request: ExecProcessRequest, context: &Context) -> Result<()> {
        let container = self.find(&request.id)?;
        self.alive(&container)?;
        let exec_id = request.exec_id.clone();
        if exec_id.len() > LONGEST_ID {
            return Err(too_long(&exec_id));
        }
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
            .insert(exec_id.clone(), Rc::clone(&process));
        let asked = ExecProcessRequest {
            stdin: names.stdin,
            stdout: names.stdout,
            stderr: names.stderr,
            ..request
        };
        let vm = &container.vm;
        let added = self.ask(&container, &container.init, &asked, context).await;
        if let Err(status) = added {
            // Of a caller that gave up nobody knows what the guest does: it is there until it is
            // deleted.
            if !gave_up(context).await {
                container.execs.borrow_mut().remove(&exec_id);
            }
            return Err(status);
        }
        // It is told before the answer.
        let told = process.until(|process| process.added.get());
        let what = format!("the new exec {exec_id} of {}", container.id);
        vm.in_time(&what, vm.patience, told).await;
        self.alive(&container)
    }

    async fn connect(
        self: &Rc<Self>,
        request: ConnectRequest,
        _: &Context,
    ) -> Result<ConnectResponse> {
        let task_pid = self
            .find(&request.id)
            .map_or(0, |container| container.vm.pid());
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: String::new(),
        })
    }

    async fn shutdown(self: &Rc<Self>, _: ShutdownRequest, _: &Context) -> Result<()> {
        // One that is being created may yet fail, and one that is made undoes this.
        let made = |of: &Option<Rc<Container>>| of.as_ref().is_some_and(|of| of.created.get());
        if !self.containers.borrow().values().any(made) {
            self.shutdown.set(true);
            self.changed.notify_waiters();
        }
        Ok(())
    }

    elsewhere! {
        start(StartRequest) -> StartResponse;
        delete(DeleteRequest) -> DeleteResponse;
        kill(KillRequest) -> ();
        pids(PidsRequest) -> PidsResponse;
        pause(PauseRequest) -> ();
        resume(ResumeRequest) -> ();
        checkpoint(CheckpointTaskRequest) -> ();
        resize_pty(ResizePtyRequest) -> ();
        close_io(CloseIoRequest) -> ();
        update(UpdateTaskRequest) -> ();
        stats(StatsRequest) -> StatsResponse;
    }

    fn answered(&self, method: &str, answer: Answer) -> Answer {
        if matches!(method, "Create" | "Delete") {
            task::peak::over();
        }
        answer
    }
}

impl protos::ttrpc::Service for Service {
    fn call(self: Rc<Self>, request: Request) -> Pin<Box<dyn Future<Output = Answer>>> {
        api::serve(self, request)
    }

    fn only_waits(&self, method: &str) -> bool {
        api::only_waits(method)
    }
}

/// Whether the caller waits no more.
async fn gave_up(context: &Context) -> bool {
    tokio::select! {
        biased;
        _ = context.cancelled() => true,
        () = std::future::ready(()) => false,
    }
}

fn too_long(id: &str) -> Status {
    let length = id.len();
    let text = format!("id of {length} bytes, more than {LONGEST_ID}: invalid argument");
    Status::new(Code::InvalidArgument, text)
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
