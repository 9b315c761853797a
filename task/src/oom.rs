// SPDX-License-Identifier: Apache-2.0
//! Who was killed when a container had no memory left, for the log and for who looks.

use crate::cgroup::{Found, OomWatch};
use crate::container::Container;
use crate::event::now;
use crate::process::Process;
use crate::runtime::Runtime;
use crate::service::Engine;
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;
use tokio::sync::Notify;

/// So many kills are remembered of a container, and so many processes that ended by SIGKILL.
const KEPT: usize = 4;
/// So many wait for somebody who is told of all containers'.
const WAITING: usize = 64;
/// The inode of the machine's pid namespace (kernel: PROC_PID_INIT_INO).
const MACHINE: &str = "pid:[4026531836]";

/// A process that the kernel has killed for want of memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Killed {
    /// When it was told, in seconds since 1970.
    pub at: i64,
    /// Empty for init; `None`: a process that one of the container's has started, or not known.
    pub exec: Option<String>,
    /// 0 and empty if the kernel's log does not tell.
    pub pid: u32,
    pub program: String,
    /// Where it was, and what had no memory left: empty for the whole machine.
    pub cgroup: String,
    pub exhausted: String,
    /// Of the latter, in bytes.
    pub peak_bytes: Option<u64>,
    pub limit_bytes: Option<u64>,
    /// All of its cgroup was killed with it.
    pub with_group: bool,
    /// Its pid and its cgroups are those of the VM that it was in, and all of this is the guest's word.
    pub in_vm: bool,
}

impl fmt::Display for Killed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.exec.as_deref() {
            Some("") => f.write_str("init")?,
            Some(exec) => write!(f, "exec {exec}")?,
            None => f.write_str("a process")?,
        }
        match (self.pid, self.program.as_str()) {
            (0, _) => {}
            (pid, "") => write!(f, " (pid {pid})")?,
            (pid, program) => write!(f, " (pid {pid}, {program})")?,
        }
        f.write_str(" was killed")?;
        if self.with_group {
            f.write_str(" with its cgroup")?;
        }
        match (self.in_vm, self.cgroup.as_str()) {
            (true, "") => f.write_str(" in the VM")?,
            (true, cgroup) => write!(f, " in the VM's cgroup {cgroup}")?,
            (false, "") => {}
            (false, cgroup) => write!(f, " in cgroup {cgroup}")?,
        }
        match self.exhausted.as_str() {
            "" if self.cgroup.is_empty() => Ok(()),
            "" => f.write_str(": the machine had no memory left"),
            exhausted if exhausted == self.cgroup => {
                f.write_str(":")?;
                self.used(f)
            }
            exhausted => {
                write!(f, ": {exhausted}")?;
                self.used(f)
            }
        }
    }
}

impl Killed {
    fn used(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = |bytes: Option<u64>| bytes.map_or("?".into(), |bytes| bytes.to_string());
        let (peak, limit) = (bytes(self.peak_bytes), bytes(self.limit_bytes));
        write!(f, " has used {peak} bytes of {limit} at most")
    }
}

/// What is known of the kills of one container.
#[derive(Default)]
pub struct Ooms {
    killed: RefCell<VecDeque<Killed>>,
    /// Processes that ended by SIGKILL, pid and exec: an exec may be deleted before its kill is told.
    ended: RefCell<VecDeque<(u32, String)>>,
    is_looking: Cell<bool>,
    again: Cell<bool>,
}

impl Ooms {
    /// The last ones.
    pub fn killed(&self) -> Vec<Killed> {
        self.killed.borrow().iter().cloned().collect()
    }

    /// A process was killed, by whomever. If it was for want of memory, that may have been told before
    /// anybody knew whose pid it is: then this is what is known now.
    pub(crate) fn ended(&self, container: &str, process: &Process) -> Option<Killed> {
        let (pid, exec) = (process.pid.get(), process.id.exec_id());
        let mut killed = self.killed.borrow_mut();
        // If the kernel has named nobody, it is who ends at the same time.
        let is_now = |it: &Killed| it.pid == 0 && now().seconds - it.at <= 1;
        let of_it = |it: &Killed| it.exec.is_none() && (it.pid == pid || is_now(it));
        let of_it = |it: &&mut Killed| !it.in_vm && of_it(it);
        keep(&self.ended, (pid, exec.to_owned()));
        let killed = killed.iter_mut().rev().find(of_it)?;
        if !pids_are_the_machines() {
            return None;
        }
        (killed.exec, killed.pid) = (Some(exec.to_owned()), pid);
        log::warn!("{container}: out of memory: {killed}");
        Some(killed.clone())
    }

    /// Remembers a kill, and has it in the log. One that was told before is told again when it is known
    /// who it was.
    pub fn tell(&self, container: &str, killed: Killed) {
        log::warn!("{container}: out of memory: {killed}");
        let mut known = self.killed.borrow_mut();
        let is_it = |it: &&mut Killed| it.in_vm && it.exec.is_none() && it.pid == killed.pid;
        match known.iter_mut().rev().find(is_it) {
            Some(known) if killed.exec.is_some() => *known = killed,
            _ => {
                drop(known);
                keep(&self.killed, killed);
            }
        }
    }
}

/// Kills of all containers, for somebody elsewhere who has asked to be told: the last ones that wait.
#[derive(Default)]
pub struct Told {
    waiting: RefCell<Option<VecDeque<(String, Killed)>>>,
    pushed: Notify,
}

impl Told {
    /// From now on they are kept for [`Told::next`].
    pub fn begin(&self) {
        self.waiting.borrow_mut().get_or_insert_default();
    }

    pub(crate) fn push(&self, container: &str, killed: &Killed) {
        if let Some(waiting) = &mut *self.waiting.borrow_mut() {
            if waiting.len() == WAITING {
                waiting.pop_front();
            }
            waiting.push_back((container.to_owned(), killed.clone()));
            self.pushed.notify_one();
        }
    }

    /// The next, and whose it is. May be cancelled.
    pub async fn next(&self) -> (String, Killed) {
        loop {
            let next = self
                .waiting
                .borrow_mut()
                .as_mut()
                .and_then(VecDeque::pop_front);
            if let Some(next) = next {
                return next;
            }
            self.pushed.notified().await;
        }
    }
}

/// Those that the kernel's log has.
fn pids_are_the_machines() -> bool {
    let namespace = std::fs::read_link("/proc/self/ns/pid");
    namespace.is_ok_and(|namespace| namespace.as_os_str() == MACHINE)
}

fn keep<T>(kept: &RefCell<VecDeque<T>>, new: T) {
    let mut kept = kept.borrow_mut();
    if kept.len() == KEPT {
        kept.pop_front();
    }
    kept.push_back(new);
}

impl<R: Runtime> Container<R> {
    /// A kill was told: finds out who it was, which nobody waits for.
    pub(crate) fn name_killed(&self, engine: &Engine<R>, watch: &Rc<OomWatch>) {
        let ooms = Rc::clone(&self.ooms);
        ooms.again.set(true);
        if ooms.is_looking.replace(true) {
            return;
        }
        let (id, watch, known) = (self.id.clone(), Rc::clone(watch), self.pids_of_execs());
        let told = Rc::clone(&engine.told);
        engine.in_background(async move {
            while ooms.again.replace(false) {
                let ended: Vec<u32> = {
                    let ended = ooms.ended.borrow();
                    ended.iter().map(|(pid, _)| *pid).collect()
                };
                let pids = [ended, known.keys().copied().collect()].concat();
                for found in watch.killed(&pids).await {
                    let killed = ooms.killed_of(found, &known);
                    told.push(&id, &killed);
                    ooms.tell(&id, killed);
                }
            }
            ooms.is_looking.set(false);
        });
    }

    /// Of init and the execs, those that may be asked for by a pid of the machine's.
    fn pids_of_execs(&self) -> BTreeMap<u32, String> {
        let execs = self.execs.borrow();
        let execs = execs.values().map(|exec| &exec.process);
        let all = execs.chain([&self.init]);
        all.map(|process| (process.pid.get(), process.id.exec_id().to_owned()))
            .collect()
    }
}

impl Ooms {
    fn killed_of(&self, found: Found, known: &BTreeMap<u32, String>) -> Killed {
        let Found { kill, room } = found;
        let of = |pid: &u32| {
            let ended = self.ended.borrow();
            let ended = ended.iter().rfind(|(ended, _)| ended == pid);
            ended
                .map(|(_, exec)| exec)
                .or_else(|| known.get(pid))
                .cloned()
        };
        let pid = Some(kill.pid).filter(|&pid| pid != 0 && pids_are_the_machines());
        Killed {
            at: now().seconds,
            exec: pid.as_ref().and_then(of),
            pid: kill.pid,
            program: kill.program,
            cgroup: kill.cgroup,
            exhausted: kill.exhausted,
            peak_bytes: room.peak,
            limit_bytes: room.limit,
            with_group: kill.with_group,
            in_vm: false,
        }
    }
}
