//! The guest's events, rebuilt for the host: nothing of the guest's goes out but what happened to
//! which container, and when.

use crate::container::{Container, Exit, Process};
use crate::service::Service;
use protos::events as api;
use protos::guest;
use std::rc::Rc;
use task::ProcessId;
use task::event::Event;

impl Service {
    /// An event of the guest's, in its order.
    pub fn told(self: &Rc<Self>, event: &guest::Event) {
        let Some(event) = event.event.as_ref().and_then(Event::from_any) else {
            return log::warn!("an event of the guest's that is none of the Task API's");
        };
        let Some(container) = self.known(container_of(&event)) else {
            return log::warn!("an event of a container that is not in the VM: {event:?}");
        };
        let container_id = container.id.clone();
        let pid = container.vm.pid();
        let ours = match event {
            Event::Create(_) => created(&container),
            Event::Start(_) => {
                container.init.runs.set(true);
                Event::Start(api::TaskStart { container_id, pid })
            }
            Event::Oom(_) => Event::Oom(api::TaskOom { container_id }),
            Event::Exit(exit) => {
                let at = exit.exited_at.unwrap_or_else(task::event::now);
                let status = exit.exit_status;
                let id = ProcessId::in_event(&container.id, &exit.id);
                let exec_id = id.exec_id();
                return match container.process(exec_id) {
                    Some(process) => self.exited(&container, &process, Exit { status, at }),
                    None => log::warn!("{container_id}: exit of {exec_id:?}, unknown"),
                };
            }
            Event::ExecAdded(e) => Event::ExecAdded(api::TaskExecAdded {
                container_id,
                exec_id: e.exec_id,
            }),
            Event::ExecStarted(e) => {
                let Some(process) = container.process(&e.exec_id) else {
                    return log::warn!("{container_id}: start of {:?}, unknown", e.exec_id);
                };
                process.runs.set(true);
                Event::ExecStarted(api::TaskExecStarted {
                    container_id,
                    exec_id: e.exec_id,
                    pid,
                })
            }
            Event::Paused(_) => Event::Paused(api::TaskPaused { container_id }),
            Event::Resumed(_) => Event::Resumed(api::TaskResumed { container_id }),
            // Told when the host's part is gone too.
            Event::Delete(_) => return,
        };
        self.publish(ours);
    }

    /// A process has ended: tells so once that is recorded and its output has been read, of init
    /// last.
    fn exited(self: &Rc<Self>, container: &Rc<Container>, process: &Rc<Process>, exit: Exit) {
        process.exited(exit);
        let is_init = process.exec_id.is_empty();
        let (service, container) = (Rc::clone(self), Rc::clone(container));
        let process = Rc::clone(process);
        tokio::task::spawn_local(async move {
            container.record(&process, exit).await;
            // What came before the exit is on its way to the client first.
            process.read_out().await;
            if is_init {
                container.execs_told().await;
            }
            service.publish(Event::Exit(api::TaskExit {
                container_id: container.id.clone(),
                id: if is_init {
                    &container.id
                } else {
                    &process.exec_id
                }
                .clone(),
                pid: container.vm.pid(),
                exit_status: exit.status,
                exited_at: Some(exit.at),
            }));
            process.told();
        });
    }

    /// The container's VM is gone: so is every process that has not ended before, init last.
    pub fn lost(self: &Rc<Self>, container: &Rc<Container>) {
        if !container.created.get() {
            return; // its Create fails, and says so
        }
        let execs: Vec<_> = container.execs.borrow().values().cloned().collect();
        let execs = execs.iter().filter(|exec| exec.runs.get());
        for process in execs.chain([&container.init]) {
            if process.exit().is_none() {
                self.exited(container, process, Exit::killed());
            }
        }
    }
}

fn container_of(event: &Event) -> &str {
    match event {
        Event::Create(e) => &e.container_id,
        Event::Start(e) => &e.container_id,
        Event::Oom(e) => &e.container_id,
        Event::Exit(e) => &e.container_id,
        Event::Delete(e) => &e.container_id,
        Event::ExecAdded(e) => &e.container_id,
        Event::ExecStarted(e) => &e.container_id,
        Event::Paused(e) => &e.container_id,
        Event::Resumed(e) => &e.container_id,
    }
}

fn created(container: &Container) -> Event {
    container.created.set(true);
    let paths = container.init.paths.clone();
    Event::Create(api::TaskCreate {
        container_id: container.id.clone(),
        bundle: container.bundle.path().to_string_lossy().into_owned(),
        rootfs: container.rootfs.clone(),
        io: Some(api::TaskIo {
            stdin: paths.stdin,
            stdout: paths.stdout,
            stderr: paths.stderr,
            terminal: paths.terminal,
        }),
        checkpoint: String::new(),
        pid: container.vm.pid(),
    })
}
