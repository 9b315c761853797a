//! Joins reaped pids to processes: each exit is told once, after the start of its process, and
//! init's exit last (contract X2 to X7).
//!
//! ```text
//!  reaper ─> tracked? ── yes ─> exec: record it, wait until its output is read, tell it ──┐
//!                │                init: the same, kill what it leaves behind,             ├─> outbox
//!                │                      wait for the last exec, tell it ──────────────────┘
//!                └ no ─> is anything being started? ── yes ─> keep it until that is tracked
//!                                                   └─ no ──> an orphan: nobody asked
//! ```

use crate::container::Container;
use crate::event::{Event, now};
use crate::process::{Exit, Process};
use crate::reaper::{ExitStatus, Heir, Reaper};
use crate::service::Engine;
use crate::state::State;
use protos::Timestamp;
use protos::events::{TaskExit, TaskOom};
use protos::ttrpc::Context;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;

const SIGKILL: u32 = 9;
/// How long the OCI runtime may take to kill what a dead init has left; then init's exit is told
/// all the same.
const KILL_ALL: Duration = Duration::from_secs(10);

/// So many exits are kept of pids that nobody tracks yet, some 700 KiB: a container without a pid
/// namespace of its own leaves us as many orphans as it likes, and a start may wait for a disk. Of
/// what comes then only those are reaped that are known to be somebody's.
const MOST_EARLY: usize = 4096;

/// Whose exit it is.
type Owner = (Rc<Container>, Rc<Process>);

#[derive(Default)]
pub struct Exits {
    tracked: RefCell<HashMap<u32, Owner>>,
    early: Rc<Early>,
}

/// Exits of pids that nobody tracks yet, while something is being started.
#[derive(Default)]
struct Early {
    starting: Cell<usize>,
    /// Those of each pid, in their order.
    exits: RefCell<HashMap<u32, Vec<Exit>>>,
    /// How many they are.
    kept: Cell<usize>,
    /// There is room again, or another pid is tracked.
    changed: Notify,
}

/// Something is being started: an unknown pid that exits may be its.
pub struct Starting(Rc<Early>);

impl Drop for Starting {
    fn drop(&mut self) {
        let early = &self.0;
        early.starting.set(early.starting.get() - 1);
        if early.starting.get() == 0 {
            early.exits.take();
            early.kept.set(0);
            early.changed.notify_one();
        }
    }
}

impl Exits {
    /// Keeps the exits of unknown pids until the answer is dropped.
    pub fn starting(&self) -> Starting {
        self.early.starting.set(self.early.starting.get() + 1);
        Starting(Rc::clone(&self.early))
    }

    /// True if no pid is anybody's, and nothing is being started.
    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        self.tracked.borrow().is_empty() && self.early.starting.get() == 0
    }

    #[cfg(test)]
    pub fn early_pids(&self) -> Vec<u32> {
        self.early.exits.borrow().keys().copied().collect()
    }

    /// Keeps the exit of a pid that may be tracked yet.
    fn keep_early(&self, pid: u32, exit: Exit) {
        self.early.kept.set(self.early.kept.get() + 1);
        let mut exits = self.early.exits.borrow_mut();
        exits.entry(pid).or_default().push(exit);
    }

    /// The exit of `process`, if it came before anybody knew of it. Others of the same pid may be
    /// those of processes that are being started still.
    fn take_early(&self, pid: u32, process: &Process) -> Option<Exit> {
        let mut early = self.early.exits.borrow_mut();
        let exits = early.get_mut(&pid)?;
        let own = own_exit(exits, process.made_at.get(), Reaper::is_child(pid))?;
        let exit = exits.remove(own);
        if exits.is_empty() {
            early.remove(&pid);
        }
        self.early.kept.set(self.early.kept.get() - 1);
        Some(exit)
    }

    /// True if the exit of `pid` is somebody's.
    pub fn is_tracked(&self, pid: u32) -> bool {
        self.tracked.borrow().contains_key(&pid)
    }
}

impl Heir for Rc<Engine> {
    fn reaped(&self, pid: u32, status: ExitStatus) {
        Engine::reaped(self, pid, status);
    }

    fn takes_only(&self) -> Option<Vec<u32>> {
        let is_full = self.exits.early.kept.get() >= MOST_EARLY;
        is_full.then(|| self.exits.tracked.borrow().keys().copied().collect())
    }

    async fn has_room(&self) {
        self.exits.early.changed.notified().await;
    }
}

/// What stands between a dead init and the telling of its exit.
#[derive(Default)]
pub struct LastExit {
    /// Init was reaped.
    init_exited: Cell<bool>,
    /// Its exit, until it is told.
    untold: Cell<Option<Exit>>,
    /// Execs that are being started or run, and starts and kills of init that are not answered yet.
    holds: Cell<usize>,
    /// The OCI runtime is killing what init has left.
    killing: Cell<bool>,
}

impl LastExit {
    /// That of another process image: whether init was reaped, its exit if that is untold, and
    /// how many execs run.
    pub fn take_over(init_exited: bool, untold: Option<Exit>, execs: usize) -> Self {
        Self {
            init_exited: Cell::new(init_exited),
            untold: Cell::new(untold),
            holds: Cell::new(execs),
            killing: Cell::new(false),
        }
    }

    /// Init's exit, while it waits for the last exec.
    pub fn untold(&self) -> Option<Exit> {
        self.untold.get()
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

impl Engine {
    /// From now on the exit of `pid` is `process`'s; if it came already, it is told now. 0 is no pid.
    pub(crate) fn track(self: &Rc<Self>, pid: u32, owner: &Rc<Container>, process: &Rc<Process>) {
        if pid == 0 {
            // To be restored, or it could not be: nothing runs.
            return;
        }
        let early = self.exits.take_early(pid, process);
        self.exits.early.changed.notify_one();
        match early {
            Some(exit) => self.exited(owner, process, exit),
            None => {
                let owner = (Rc::clone(owner), Rc::clone(process));
                self.exits.tracked.borrow_mut().insert(pid, owner);
            }
        }
    }

    /// A child that the reaper knows nothing about has ended.
    pub fn reaped(self: &Rc<Self>, pid: u32, status: ExitStatus) {
        let exit = Exit {
            status: status.number(),
            at: now(),
        };
        let tracked = self.exits.tracked.borrow_mut().remove(&pid);
        match tracked {
            Some((container, process)) => self.exited(&container, &process, exit),
            None if self.exits.early.starting.get() > 0 => self.exits.keep_early(pid, exit),
            None => log::debug!("orphan {pid} ended: {status}"),
        }
    }

    fn exited(self: &Rc<Self>, container: &Rc<Container>, process: &Rc<Process>, exit: Exit) {
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
    fn recorded(self: &Rc<Self>, container: &Rc<Container>, process: &Process, exit: Exit) {
        if std::ptr::eq(process, &*container.init) {
            let last = &container.last_exit;
            last.untold.set(Some(exit));
            if !container.own_pid_namespace {
                last.killing.set(true);
                let (engine, container) = (Rc::clone(self), Rc::clone(container));
                self.in_background(async move {
                    kill_all(&container).await;
                    container.last_exit.killing.set(false);
                    engine.tell_init_if_last(&container);
                });
            }
        } else {
            process.exited(exit);
        }
    }

    /// Nobody need wait for the output of a process that has ended.
    fn output_read(&self, container: &Container, process: &Process) {
        // Init's is untold until nothing holds it.
        if let Some(exit) = process.exit() {
            self.tell(container, process, exit);
        }
        self.release(container);
    }

    /// An exec has ended, or never began; or a kill is answered.
    pub(crate) fn release(&self, container: &Container) {
        let last = &container.last_exit;
        last.holds.set(last.holds.get() - 1);
        self.tell_init_if_last(container);
    }

    fn tell_init_if_last(&self, container: &Container) {
        let last = &container.last_exit;
        if last.holds.get() > 0 || last.killing.get() {
            return;
        }
        let Some(exit) = last.untold.take() else {
            return;
        };
        let init = &container.init;
        if init.state.get() == State::Paused {
            // T72: a frozen cgroup can't be removed.
            container.thaw();
        }
        init.exited(exit);
        if container.stop_oom_watch() {
            self.tell_oom(&container.id);
        }
        self.tell(container, init, exit);
    }

    /// Runs `work`, for which nobody waits but [`Engine::settled`].
    fn in_background(&self, work: impl Future<Output = ()> + 'static) {
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

    fn tell(&self, container: &Container, process: &Process, exit: Exit) {
        process.told();
        self.outbox.push(Event::Exit(TaskExit {
            container_id: container.id.clone(),
            id: process.id.name(&container.id).to_owned(),
            pid: process.pid.get(),
            exit_status: exit.status,
            exited_at: Some(exit.at),
        }));
    }

    /// The kernel has killed a process of the container for want of memory (O1, O2).
    pub(crate) fn tell_oom(&self, container: &str) {
        self.outbox.push(Event::Oom(TaskOom {
            container_id: container.to_owned(),
        }));
    }
}

/// Which of the exits of a process's pid is its own (X10). Whatever has the pid now, or had it
/// once, may be another: the kernel gives a pid away again as soon as it is reaped. But a process
/// cannot be reaped before the OCI runtime that made it has ended, and so not before the runtime
/// has written its pid file, at `made`: what ended earlier had the pid before it, and what ended
/// after its own exit had it later.
fn own_exit(early: &[Exit], made: Option<Timestamp>, is_child: bool) -> Option<usize> {
    let at = |time: &Timestamp| (time.seconds, time.nanos);
    let since = |exit: &Exit| made.is_some_and(|made| at(&exit.at) >= at(&made));
    let own = early.iter().position(since);
    // Without a child of that pid it has ended, even if somebody has set the clock.
    own.or(early.len().checked_sub(1).filter(|_| !is_child))
}

/// X4: without a pid namespace of its own, a container's processes outlive its init.
async fn kill_all(container: &Container) {
    let (id, context) = (&container.id, Context::within(KILL_ALL));
    if let Err(failure) = container.runtime.kill(id, SIGKILL, true, &context).await {
        log::debug!("{id}: kill all after init: {failure}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// X10: before, own and after; with another process of the same pid alive, and without.
    #[test]
    fn of_the_exits_of_a_pid_the_first_since_it_was_made_is_its_own() {
        let time = |seconds| Timestamp { seconds, nanos: 5 };
        let exit = |seconds| Exit {
            status: 0,
            at: time(seconds),
        };
        let own = |early: &[i64], made: Option<i64>, is_child| {
            let early: Vec<Exit> = early.iter().copied().map(exit).collect();
            own_exit(&early, made.map(time), is_child).map(|own| early[own].at.seconds)
        };
        for (early, made, is_child, expected) in [
            (&[][..], Some(5), true, None),
            (&[3], Some(5), true, None),
            (&[5], Some(5), true, Some(5)),
            (&[3, 6, 8], Some(5), true, Some(6)),
            (&[3, 6, 8], Some(5), false, Some(6)),
            (&[3], Some(5), false, Some(3)),
            (&[3], None, true, None),
            (&[3, 6], None, false, Some(6)),
        ] {
            let found = own(early, made, is_child);
            assert_eq!(found, expected, "{early:?} {made:?} {is_child}");
        }
    }
}
