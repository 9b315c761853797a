// SPDX-License-Identifier: Apache-2.0
//! Joins reaped pids to processes: whose exit it is, also if it comes before anybody knows the
//! process (contract X3, X10).
//!
//! ```text
//!  reaper ─> tracked? ── yes ─> the engine: Engine::exited
//!                └ no ─> is anything being started? ── yes ─> keep it until that is tracked
//!                                                   └─ no ──> an orphan: nobody asked
//! ```

use super::Oci;
use crate::container::Container;
use crate::event::now;
use crate::process::{Exit, Process};
use crate::reaper::{ExitStatus, Heir, Reaper};
use crate::service::Engine;
use protos::Timestamp;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use tokio::sync::Notify;

/// So many exits are kept of pids that nobody tracks yet, some 700 KiB: a container without a pid
/// namespace of its own leaves us as many orphans as it likes, and a start may wait for a disk. Of
/// what comes then only those are reaped that are known to be somebody's.
const MOST_EARLY: usize = 4096;

/// Whose exit it is.
type Owner = (Rc<Container<Oci>>, Rc<Process>);

#[derive(Default)]
pub struct Join {
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

impl Join {
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

impl Heir for Rc<Engine<Oci>> {
    fn reaped(&self, pid: u32, status: ExitStatus) {
        Engine::<Oci>::reaped(self, pid, status);
    }

    fn takes_only(&self) -> Option<Vec<u32>> {
        let is_full = self.runtime.join.early.kept.get() >= MOST_EARLY;
        is_full.then(|| self.runtime.join.tracked.borrow().keys().copied().collect())
    }

    async fn has_room(&self) {
        self.runtime.join.early.changed.notified().await;
    }
}

impl Engine<Oci> {
    /// From now on the exit of its pid is `process`'s; if it came already, it is told now.
    pub(super) fn track(self: &Rc<Self>, owner: &Rc<Container<Oci>>, process: &Rc<Process>) {
        let pid = process.pid.get();
        if pid == 0 {
            // To be restored, or it could not be: nothing runs.
            return;
        }
        let early = self.runtime.join.take_early(pid, process);
        self.runtime.join.early.changed.notify_one();
        match early {
            Some(exit) => self.exited(owner, process, exit),
            None => {
                let owner = (Rc::clone(owner), Rc::clone(process));
                self.runtime.join.tracked.borrow_mut().insert(pid, owner);
            }
        }
    }

    /// A child that the reaper knows nothing about has ended.
    pub fn reaped(self: &Rc<Self>, pid: u32, status: ExitStatus) {
        let exit = Exit {
            status: status.number(),
            at: now(),
        };
        let tracked = self.runtime.join.tracked.borrow_mut().remove(&pid);
        match tracked {
            Some((container, process)) => self.exited(&container, &process, exit),
            None if self.runtime.join.early.starting.get() > 0 => {
                self.runtime.join.keep_early(pid, exit)
            }
            None => log::debug!("orphan {pid} ended: {status}"),
        }
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
