// SPDX-License-Identifier: Apache-2.0
//! What happens when a shim dies: the container's true end is found out and told.
//!
//! ```text
//!  shim over ── init's exit known? ── yes ───────────────────────────────┐
//!                 │ no                                                   v
//!                 ├─ on_death = "keep", another shim in its place: all goes on under that
//!                 ├─ the shim's record ─────────────────────────> exit ─> TaskExit, TaskDelete
//!                 ├─ on_death = "keep", init alive: it stays; we reap it ^     bundle away
//!                 └─ `delete` kills it; reaped by us, or its answer ─────┘
//! ```
//! We are a child subreaper: processes of a shim that is gone become our children, so their true
//! status comes to us.

use crate::bundles::Files;
use crate::config::OnDeath;
use crate::failure::Failure;
use crate::intake::End;
use crate::launch::Address;
use crate::ledger::Origin;
use crate::manager::Manager;
use crate::names::Key;
use crate::shim::Shim;
use crate::tasks::Task;
use protos::task::DeleteResponse;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;
use task::ProcessId;
use tokio::io::unix::AsyncFd;

/// How long the kernel may take to hand us a process that has just been killed.
const REAP_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a shim that is brought back may take until it answers.
const ADOPTION: Duration = Duration::from_secs(60);
/// The status of a process whose end nobody saw.
pub const UNKNOWN: u32 = 255;

impl Manager {
    /// Connects to the shim that has, or will have, container `id`, and watches over it.
    ///
    /// # Errors
    /// `Unavailable` if nobody answers there.
    pub async fn connect(self: &Rc<Self>, address: Address, id: &str) -> Result<Rc<Shim>, Failure> {
        let shim = Rc::new(Shim::connect(address, id).await?);
        tokio::task::spawn_local(Rc::clone(self).supervise(Rc::clone(&shim)));
        Ok(shim)
    }

    /// Watches over `shim` until its end.
    async fn supervise(self: Rc<Self>, mut shim: Rc<Shim>) {
        loop {
            shim.watch().await;
            let mut tasks = self.tasks.all();
            tasks.retain(|task| task.shim().is_some_and(|of| Rc::ptr_eq(&of, &shim)));
            // Who deletes one knows that its shim ends.
            let (deleting, tasks): (Vec<_>, Vec<_>) =
                tasks.into_iter().partition(|task| task.deleting.get());
            deleting.iter().for_each(|task| task.lose_shim());
            let next = self.successor(&shim, &tasks).await;
            for task in tasks {
                self.deaths.set(self.deaths.get() + 1);
                match &next {
                    Some(next) => {
                        let (key, old, new) = (task.key(), shim.pid, next.pid);
                        log::warn!("{key}: its shim {old} is gone, {new} goes on with it");
                        task.change_shim(next);
                    }
                    None => {
                        log::warn!("{}: its shim {} is gone", task.key(), shim.pid);
                        tokio::task::spawn_local(Rc::clone(&self).bury(task));
                    }
                }
            }
            match next {
                Some(next) => shim = next,
                None => return,
            }
        }
    }

    /// The shim that has been brought back in the place of one that died with `tasks`: what that had
    /// started lives, and its keeper listens where it did. Exits come as events, as ever.
    async fn successor(&self, shim: &Shim, tasks: &[Rc<Task>]) -> Option<Rc<Shim>> {
        if self.config.shim.on_death != OnDeath::Keep {
            return None;
        }
        let id = tasks.first()?.id();
        match Shim::connect_within(shim.address.clone(), id, ADOPTION).await {
            Ok(next) => Some(Rc::new(next)),
            Err(e) => {
                log::debug!("{id}: {e}");
                None
            }
        }
    }

    /// Ends a task whose shim is gone, or lets its container live on without.
    pub async fn bury(self: Rc<Self>, task: Rc<Task>) {
        task.lose_shim();
        if self.keep(&task) {
            return;
        }
        task.deleting.set(true);
        let response = self.find_out(&task).await;
        self.finish_delete(&task, None, &response).await;
    }

    /// Lets a container whose shim is gone live on, if it is alive and that is wanted.
    pub fn keep(self: &Rc<Self>, task: &Rc<Task>) -> bool {
        if self.config.shim.on_death != OnDeath::Keep || !self.init_is_alive(task) {
            return false;
        }
        log::warn!("{}: goes on without a shim", task.key());
        // Which may not be our child: then its status is lost, but not that it has ended.
        match task::sys::watch_process(task.pid.get()) {
            Ok(end) => drop(tokio::task::spawn_local(
                Rc::clone(self).outlive(Rc::clone(task), end),
            )),
            Err(e) => log::warn!("{}: pidfd: {e}", task.key()),
        }
        true
    }

    async fn outlive(self: Rc<Self>, task: Rc<Task>, end: AsyncFd<OwnedFd>) {
        if end.readable().await.is_err() {
            return;
        }
        let key = task.key();
        if tokio::time::timeout(REAP_TIMEOUT, self.all_exited(key))
            .await
            .is_err()
        {
            self.give_up(key);
        }
    }

    /// Publishes the exits of processes that have ended unseen; init's last.
    pub fn give_up(&self, key: &Key) {
        self.intake.over(End {
            key: key.clone(),
            init: None,
            status: UNKNOWN,
            at: None,
            origin: Origin::Unknown,
        });
    }

    pub fn init_is_alive(&self, task: &Task) -> bool {
        let ledger = self.intake.ledger();
        let start_time = ledger
            .facts(task.key())
            .and_then(|facts| facts.init())
            .filter(|init| init.pid == task.pid.get())
            .map_or(0, |init| init.start_time);
        task.pid.get() != 0 && task::proc::is_alive(task.pid.get(), start_time)
    }

    /// Cleans up after a dead shim and makes sure that all exits of the task are published.
    pub async fn find_out(&self, task: &Task) -> DeleteResponse {
        let key = task.key();
        let pid = task.pid.get();
        self.publish_record(task).await;
        let was_alive = self.init_is_alive(task);
        let is_ours = task::proc::parent(pid) == Some(std::process::id());
        let answer = self.launcher.delete(&task.bundle).await;
        if let Err(e) = &answer {
            log::error!("{key}: {e}");
        }
        if was_alive && is_ours {
            let _ = tokio::time::timeout(REAP_TIMEOUT, self.all_exited(key)).await;
        }
        let known = answer.ok().filter(|_| was_alive);
        let (status, origin) = match &known {
            Some(answer) => (answer.exit_status, Origin::State),
            None => (UNKNOWN, Origin::Unknown),
        };
        let at = known.and_then(|answer| answer.exited_at);
        self.intake.over(End {
            key: key.clone(),
            init: Some(pid).filter(|pid| *pid != 0),
            status,
            at,
            origin,
        });
        self.intake.settled().await;
        let response = DeleteResponse {
            pid,
            exit_status: status,
            exited_at: at,
        };
        self.true_status(key, response)
    }

    /// Publishes init's exit from the record that the shim left, if it did.
    async fn publish_record(&self, task: &Task) {
        let init = &ProcessId::Init;
        if self.intake.exit(task.key(), init).is_some() {
            return;
        }
        let record = |files: &Files| files.exit_record(&ProcessId::Init);
        if let Some(record) = task.bundle.with(record).await {
            let pid = if task.pid.get() == 0 {
                record.pid
            } else {
                task.pid.get()
            };
            let exit = (record.exit_status, time_of(&record));
            self.intake
                .publish_exit(task.key(), init, pid, exit, Origin::Record);
            self.intake.settled().await;
        }
    }

    /// Processes without an exit; init comes first.
    pub fn running(&self, key: &Key) -> Vec<ProcessId> {
        let ledger = self.intake.ledger();
        let facts = ledger.facts(key);
        let running = facts.into_iter().flat_map(|facts| facts.running());
        running.map(|(id, _)| id.clone()).collect()
    }

    async fn all_exited(&self, key: &Key) {
        for process in self.running(key) {
            self.intake.exited(key, &process).await;
        }
    }

    /// Deletes a task that has no shim: one whose container outlived it, or that was found dead
    /// when we started.
    pub async fn delete_orphan(&self, task: &Rc<Task>) -> Result<DeleteResponse, Failure> {
        if self.init_is_alive(task) {
            return Err(crate::failure::unknown("cannot delete a running process"));
        }
        task.deleting.set(true);
        let response = self.find_out(task).await;
        self.finish_delete(task, None, &response).await;
        Ok(response)
    }

    /// Signals a process that has no shim.
    pub fn kill_orphan(&self, task: &Task, id: &ProcessId, signal: u32) -> Result<(), Failure> {
        let ended = || crate::failure::not_found("process already finished");
        let ledger = self.intake.ledger();
        let process = ledger
            .facts(task.key())
            .and_then(|facts| facts.processes.get(id));
        let process =
            process.filter(|p| p.exit.is_none() && task::proc::is_alive(p.pid, p.start_time));
        task::sys::kill(process.ok_or_else(ended)?.pid, signal).map_err(|_| ended())
    }
}

/// When the shim saw the exit, as events tell times.
pub fn time_of(record: &task::bundle::ExitRecord) -> Option<protos::Timestamp> {
    let (seconds, nanos) = record.exited_at;
    Some(protos::Timestamp { seconds, nanos })
}
