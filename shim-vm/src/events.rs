//! The guest's events, rebuilt for the host: nothing of the guest's goes out but what happened to
//! which container, and when.

use crate::container::{Container, Exit, Process};
use crate::service::Service;
use crate::word;
use protos::events as api;
use protos::guest;
use std::rc::Rc;
use task::ProcessId;
use task::event::Event;

/// What a guest may tell without being asked, such as an OOM: so often at once, and a second after
/// that.
pub const UNASKED: (u32, u32) = (1000, 100);

impl Service {
    /// An event of the guest's, in its order. Each can happen once, where it can happen at all, but for
    /// some that may come again, within bounds.
    ///
    /// # Errors
    /// How the guest broke its word: the event can't be.
    pub fn told(self: &Rc<Self>, event: &guest::Event) -> Result<(), String> {
        let event = event.event.as_ref().and_then(Event::from_any);
        let event = event.ok_or("an event that is none of the Task API's")?;
        let id = container_of(&event);
        let container = self.known(id);
        let container =
            container.ok_or_else(|| format!("an event of {id:?}, which is not there"))?;
        let init = &container.init;
        let container_id = container.id.clone();
        let pid = container.vm.pid();
        let exec = |exec_id: &str| {
            let exec = container.execs.borrow().get(exec_id).cloned();
            exec.ok_or_else(|| format!("{id}: an event of {exec_id:?}, which is not there"))
        };
        if !container.created.get() && !matches!(event, Event::Create(_)) {
            return Err(format!("{id}: an event before its creation"));
        }
        self.publish(match &event {
            Event::Create(_) => {
                init.comes("a creation", &container.created)?;
                init.added.set(true);
                created(&container)
            }
            Event::Start(_) => {
                init.comes("a start", &init.runs)?;
                Event::Start(api::TaskStart { container_id, pid })
            }
            Event::Exit(exit) => {
                let process = ProcessId::in_event(&container.id, &exit.id);
                let process = match process.exec_id() {
                    "" => Rc::clone(init),
                    exec_id => exec(exec_id)?,
                };
                if process.exit().is_some() {
                    return Err(format!("{id}: a second exit of {:?}", process.exec_id));
                }
                let exit = word::exit(exit.exit_status, exit.exited_at)?;
                self.exited(&container, &process, exit);
                return Ok(());
            }
            Event::ExecAdded(added) => {
                let process = exec(&added.exec_id)?;
                process.comes("a new exec", &process.added)?;
                Event::ExecAdded(api::TaskExecAdded {
                    container_id,
                    exec_id: process.exec_id.clone(),
                })
            }
            Event::ExecStarted(started) => {
                let process = exec(&started.exec_id)?;
                process.comes("a start", &process.runs)?;
                Event::ExecStarted(api::TaskExecStarted {
                    container_id,
                    exec_id: process.exec_id.clone(),
                    pid,
                })
            }
            Event::Delete(_) if init.deleting.get() && !container.forgotten.replace(true) => {
                // Told when the host's part is gone too.
                init.heard();
                return Ok(());
            }
            Event::Delete(_) => return Err(format!("{id}: a deletion that nobody asked for")),
            Event::Oom(_) | Event::Paused(_) | Event::Resumed(_)
                if !self.unasked.borrow_mut().take() =>
            {
                return Err(format!("{id}: too many events"));
            }
            Event::Oom(_) => Event::Oom(api::TaskOom { container_id }),
            Event::Paused(_) => Event::Paused(api::TaskPaused { container_id }),
            Event::Resumed(_) => Event::Resumed(api::TaskResumed { container_id }),
        });
        Ok(())
    }

    /// A process has ended: tells so once that is recorded and its output has been read, of init
    /// last.
    fn exited(self: &Rc<Self>, container: &Rc<Container>, process: &Rc<Process>, exit: Exit) {
        process.set_exit(exit);
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
        for process in execs.iter().chain([&container.init]) {
            if !process.exec_id.is_empty() && !process.runs.get() {
                // Nobody can start it any more.
                process.deleted();
            } else if process.exit().is_none() {
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
