// SPDX-License-Identifier: Apache-2.0
//! Tells each exit once, after the start of its process, and init's last (contract X2 to X7).
//!
//! ```text
//!  exited ─> exec: record it, wait until its output is read, tell it ──┐
//!            init: the same, kill what it leaves behind,              ├─> outbox
//!                  wait for the last exec, tell it ───────────────────┘
//! ```

use crate::container::Container;
use crate::event::Event;
use crate::process::{Exit, Process};
use crate::runtime::Runtime;
use crate::service::Engine;
use crate::state::State;
use crate::tally;
use protos::events::{TaskExit, TaskOom};
use std::cell::Cell;
use std::rc::Rc;

/// How a process ends that SIGKILL has ended.
const KILLED: u32 = 128 + 9;

/// What stands between a dead init and the telling of its exit.
#[derive(Default)]
pub struct LastExit {
    /// Init was reaped.
    init_exited: Cell<bool>,
    /// Its exit, until it is told.
    unpublished: Cell<Option<Exit>>,
    /// Execs that are being started or run, and starts and kills of init that are not answered yet.
    holds: Cell<usize>,
    /// The OCI runtime is killing what init has left.
    killing: Cell<bool>,
}

impl LastExit {
    /// That of another process image: whether init was reaped, its exit if that is unpublished, and
    /// how many execs run.
    pub fn take_over(init_exited: bool, unpublished: Option<Exit>, execs: usize) -> Self {
        Self {
            init_exited: Cell::new(init_exited),
            unpublished: Cell::new(unpublished),
            holds: Cell::new(execs),
            killing: Cell::new(false),
        }
    }

    /// Init's exit, while it waits for the last exec.
    pub fn unpublished(&self) -> Option<Exit> {
        self.unpublished.get()
    }

    pub fn init_exited(&self) -> bool {
        self.init_exited.get()
    }

    /// An exec is being started, or init is being started or killed: init's exit waits for
    /// [`Engine::release`].
    pub fn hold(&self) {
        self.holds.set(self.holds.get() + 1);
    }
}

impl<R: Runtime> Engine<R> {
    /// A process has ended, which is known by now: tells so once that is recorded and its output has
    /// been read, of init last. Once for each process.
    pub fn exited(
        self: &Rc<Self>,
        container: &Rc<Container<R>>,
        process: &Rc<Process>,
        exit: Exit,
    ) {
        tally::exit();
        if exit.status == KILLED
            && let Some(killed) = container.ooms.ended(&container.id, process)
        {
            self.told.push(&container.id, &killed);
        }
        if Rc::ptr_eq(process, &container.init) {
            container.last_exit.init_exited.set(true);
            container.last_exit.hold();
        } else {
            process.reaped.set(true);
        }
        let (engine, container) = (Rc::clone(self), Rc::clone(container));
        let process = Rc::clone(process);
        self.in_background(async move {
            container.record_exit(&process, exit).await;
            engine.recorded(&container, &process, exit);
            if let Some(io) = process.unread_output() {
                io.read_out().await;
            }
            engine.output_read(&container, &process);
        });
    }

    /// The exit is where it outlives this process: it may be known now.
    fn recorded(self: &Rc<Self>, container: &Rc<Container<R>>, process: &Process, exit: Exit) {
        if std::ptr::eq(process, &*container.init) {
            let last = &container.last_exit;
            last.unpublished.set(Some(exit));
            if let Some(killed) = R::kill_left(container) {
                last.killing.set(true);
                let (engine, container) = (Rc::clone(self), Rc::clone(container));
                self.in_background(async move {
                    killed.await;
                    container.last_exit.killing.set(false);
                    engine.publish_init_if_last(&container);
                });
            }
        } else {
            process.exited(exit);
        }
    }

    /// Nobody need wait for the output of a process that has ended.
    fn output_read(&self, container: &Container<R>, process: &Process) {
        // Init's is unpublished until nothing holds it.
        if let Some(exit) = process.exit() {
            self.publish_exit(container, process, exit);
        }
        self.release(container);
    }

    /// An exec has ended, or never began; or a kill is answered.
    pub(crate) fn release(&self, container: &Container<R>) {
        let last = &container.last_exit;
        last.holds.set(last.holds.get() - 1);
        self.publish_init_if_last(container);
    }

    fn publish_init_if_last(&self, container: &Container<R>) {
        let last = &container.last_exit;
        if last.holds.get() > 0 || last.killing.get() {
            return;
        }
        let Some(exit) = last.unpublished.take() else {
            return;
        };
        let init = &container.init;
        if init.state.get() == State::Paused {
            // T72: a frozen cgroup can't be removed.
            R::thaw(container);
        }
        init.exited(exit);
        if R::stop_oom_watch(self, container) {
            self.publish_oom(&container.id);
        }
        self.publish_exit(container, init, exit);
    }

    /// Runs `work`, for which nobody waits but who waits until nothing goes on but calls.
    pub fn in_background(&self, work: impl Future<Output = ()> + 'static) {
        let running = Rc::clone(&self.background);
        running.send_modify(|count| *count += 1);
        tokio::task::spawn_local(async move {
            work.await;
            running.send_modify(|count| *count -= 1);
        });
    }

    pub(crate) fn is_settled(&self) -> bool {
        *self.background.borrow() == 0
    }

    /// Waits until nothing goes on in the background.
    pub(crate) async fn settled(&self) {
        let mut count = self.background.subscribe();
        // The sender lives as long as the engine.
        let _ = count.wait_for(|&count| count == 0).await;
    }

    fn publish_exit(&self, container: &Container<R>, process: &Process, exit: Exit) {
        process.announce();
        self.outbox.push(Event::Exit(TaskExit {
            container_id: container.id.clone(),
            id: process.id.name(&container.id).to_owned(),
            pid: process.pid.get(),
            exit_status: exit.status,
            exited_at: Some(exit.at),
        }));
    }

    /// The kernel has killed a process of the container for want of memory (O1, O2).
    pub fn publish_oom(&self, container: &str) {
        tally::oom();
        self.outbox.push(Event::Oom(TaskOom {
            container_id: container.to_owned(),
        }));
    }
}
