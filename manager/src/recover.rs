// SPDX-License-Identifier: Apache-2.0
//! What a manager finds when it starts: bundles, and shims that may or may not be alive.
//!
//! | found | then |
//! |---|---|
//! | no shim was started | the bundle goes, no event |
//! | a shim without a task | it is shut down, the bundle goes, no event |
//! | a live task | it is taken over; exits that were missed are published |
//! | the shim had deleted the task | the rest is done, TaskDelete once |
//! | the shim is dead | the exit is found out and published; the task is there, stopped, until deleted |

use crate::bundles::{Bundle, Files};
use crate::failure::Failure;
use crate::ledger::Origin;
use crate::manager::Manager;
use crate::names::Key;
use crate::shim::Shim;
use crate::shim_log::{self, Log};
use crate::supervise::{UNKNOWN, time_of};
use crate::sys;
use crate::tasks::Task;
use protos::Code;
use protos::task::{DeleteResponse, StateRequest, StateResponse};
use protos::task_types::Status;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;
use task::{ProcessId, aside};
use tokio::sync::OnceCell;

/// How long a shim may take to tell of itself (contract T5).
const TIMEOUT: Duration = Duration::from_secs(5);

/// Shims by their address: a group's is met once.
type Shims = RefCell<HashMap<String, Rc<OnceCell<Rc<Shim>>>>>;

impl Manager {
    /// Takes over every bundle there is. All at once: one shim that hangs must not hold up the
    /// others.
    ///
    /// # Errors
    /// A text, if they can't be looked for.
    pub async fn recover(self: &Rc<Self>) -> Result<(), String> {
        let bundles = self.bundles.list().await;
        let bundles = bundles.map_err(|e| format!("look for bundles: {e}"))?;
        let count = bundles.len();
        let shims = Rc::<Shims>::default();
        let mut running = Vec::new();
        for bundle in bundles {
            let (manager, shims) = (Rc::clone(self), Rc::clone(&shims));
            running.push(tokio::task::spawn_local(async move {
                let key = bundle.key.clone();
                if let Err(e) = manager.recover_bundle(bundle, &shims).await {
                    log::error!("{key}: {e}");
                }
            }));
        }
        for one in running {
            let _ = one.await;
        }
        if let Err(e) = self.bundles.sweep_work().await {
            log::warn!("work directories: {e}");
        }
        if let Err(e) = self.store.sweep_roots().await {
            log::warn!("containers' own directories: {e}");
        }
        self.sweep_sockets().await;
        self.close_books();
        self.intake.settled().await;
        if count > 0 {
            log::info!("found {count} bundles, {} tasks", self.tasks.all().len());
        }
        Ok(())
    }

    /// Removes sockets that nobody listens at: a shim that is killed before it could tell where
    /// it listens leaves one. Only from a directory of our own, where nobody else starts any.
    async fn sweep_sockets(&self) {
        let dir = self.config.shim.socket_dir.clone();
        if !dir.starts_with(&self.config.state) {
            return;
        }
        let list = move || {
            let entries = std::fs::read_dir(dir).into_iter().flatten();
            let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
            paths.collect::<Vec<_>>()
        };
        for path in aside::run(list).await {
            let connected = tokio::time::timeout(TIMEOUT, task::connect::to(&path)).await;
            if let Ok(Err(e)) = connected
                && e.kind() == std::io::ErrorKind::ConnectionRefused
            {
                log::info!("{}: nobody listens there", path.display());
                aside::forget(move || drop(std::fs::remove_file(path)));
            }
        }
    }

    async fn recover_bundle(self: &Rc<Self>, bundle: Bundle, shims: &Shims) -> Result<(), Failure> {
        if bundle.with(Files::shim_path).await.is_none() {
            log::info!("{}: no shim was started here", bundle.key);
            return bundle.delete(&self.launcher.reaper).await;
        }
        let log = shim_log::open(&bundle).await?;
        // Somebody may still be starting it: `start` goes on when its manager dies.
        started(&bundle).await;
        let connected = match bundle.with(Files::address).await {
            None => Err(crate::failure::unavailable("no address")),
            Some(address) => {
                let met = shims
                    .borrow_mut()
                    .entry(address.address.clone())
                    .or_default()
                    .clone();
                let shim = met.get_or_try_init(|| self.connect(address, bundle.id()));
                shim.await.cloned()
            }
        };
        match connected {
            Ok(shim) => self.take_over(bundle, shim, log).await,
            Err(why) => self.take_remains(bundle, why, log).await,
        }
    }

    async fn take_over(
        self: &Rc<Self>,
        bundle: Bundle,
        shim: Rc<Shim>,
        log: Log,
    ) -> Result<(), Failure> {
        let key = bundle.key.clone();
        let state = match state(&shim, bundle.id(), &ProcessId::Init).await {
            Ok(state) => state,
            Err(e) if e.code == Code::NotFound => {
                let task = Task::new(bundle, 0, None, log);
                return self.end_without_task(&task, Some(&shim)).await;
            }
            Err(e) => {
                // Slow is not dead.
                log::warn!("{key}: state: {e}");
                StateResponse::default()
            }
        };
        let pid = if state.pid == 0 {
            self.known_pid(&key).await
        } else {
            state.pid
        };
        let task = Task::new(bundle, pid, Some(Rc::clone(&shim)), log);
        self.tasks.insert(Rc::new(task));
        let mut execs = self.running(&key);
        execs.retain(|id| *id != ProcessId::Init);
        for exec in execs {
            match self::state(&shim, &key.id, &exec).await {
                Ok(state) => self.note_stopped(&key, &exec, &state).await,
                // Deleted, and whoever did it was not told; its exit is on its way to us.
                Err(e) if e.code == Code::NotFound => self.intake.forget_exec(&key, &exec),
                Err(e) => log::warn!("{key}: state of {exec}: {e}"),
            }
        }
        self.note_stopped(&key, &ProcessId::Init, &state).await;
        Ok(())
    }

    /// Publishes an exit that happened while nobody was there to be told.
    async fn note_stopped(&self, key: &Key, process: &ProcessId, state: &StateResponse) {
        if state.status != Status::Stopped as i32 || self.intake.exit(key, process).is_some() {
            return;
        }
        let (bundle, of) = (self.bundles.get(key.clone()), process.clone());
        let record = bundle.with(move |files| files.exit_record(&of)).await;
        let (exit, origin) = match record {
            Some(record) => ((record.exit_status, time_of(&record)), Origin::Record),
            None => ((state.exit_status, state.exited_at), Origin::State),
        };
        self.intake
            .publish_exit(key, process, state.pid, exit, origin);
    }

    /// The shim is there and has no such task: it was never created, or is deleted already.
    async fn end_without_task(&self, task: &Task, shim: Option<&Shim>) -> Result<(), Failure> {
        let deleted = task.bundle.with(Files::deleting).await;
        let deleted = deleted.or_else(|| self.was_created(task.key()));
        match deleted {
            Some(response) => {
                let response = self.true_status(task.key(), response);
                self.finish_delete(task, shim, &response).await;
            }
            None => {
                log::info!("{}: its task was never created", task.key());
                if let Some(shim) = shim {
                    shim.end(task.id()).await;
                }
                self.clean_up(&task.bundle).await;
            }
        }
        Ok(())
    }

    async fn take_remains(
        self: &Rc<Self>,
        bundle: Bundle,
        why: Failure,
        log: Log,
    ) -> Result<(), Failure> {
        let key = bundle.key.clone();
        let pid = self.known_pid(&key).await;
        let task = Rc::new(Task::new(bundle, pid, None, log));
        let (has_exit, is_deleting) = task
            .bundle
            .with(|files| {
                let exit = files.exit_record(&ProcessId::Init);
                (exit.is_some(), files.deleting().is_some())
            })
            .await;
        let created = self.was_created(&key).is_some() || has_exit;
        if !created || is_deleting {
            return self.end_without_task(&task, None).await;
        }
        log::warn!("{key}: its shim is gone: {why}");
        self.deaths.set(self.deaths.get() + 1);
        self.tasks.insert(Rc::clone(&task));
        if !self.keep(&task) {
            // Stopped, until somebody deletes it: whoever was away is told of its exit.
            self.find_out(&task).await;
        }
        Ok(())
    }

    async fn known_pid(&self, key: &Key) -> u32 {
        let of_ledger = self
            .intake
            .ledger()
            .facts(key)
            .and_then(|facts| Some(facts.init()?.pid));
        match of_ledger {
            Some(pid) => pid,
            None => {
                let bundle = self.bundles.get(key.clone());
                bundle.with(Files::init_pid).await.unwrap_or(0)
            }
        }
    }

    /// What the journal says of a task that was created and not deleted.
    fn was_created(&self, key: &Key) -> Option<DeleteResponse> {
        let ledger = self.intake.ledger();
        let facts = ledger.facts(key).filter(|facts| !facts.deleted)?;
        let init = facts.init().filter(|init| facts.created || init.started)?;
        Some(DeleteResponse {
            pid: init.pid,
            exit_status: init.exit.as_ref().map_or(UNKNOWN, |exit| exit.status),
            exited_at: init.exit.as_ref().and_then(|exit| exit.at),
        })
    }

    /// Tasks that the journal knows and that have no bundle any more, as after a reboot: what
    /// was not told of them is told now.
    fn close_books(&self) {
        let open: Vec<Key> = {
            let ledger = self.intake.ledger();
            let all = ledger.all().filter(|(_, facts)| !facts.deleted);
            all.map(|(key, _)| key.clone()).collect()
        };
        for key in open {
            if self.tasks.get(&key).is_ok() {
                continue;
            }
            self.give_up(&key);
            if let Some(response) = self.was_created(&key) {
                let exit = (response.exit_status, response.exited_at);
                self.intake.publish_delete(&key, response.pid, exit);
            }
        }
    }
}

async fn state(shim: &Shim, id: &str, process: &ProcessId) -> Result<StateResponse, Failure> {
    let request = StateRequest {
        id: id.to_owned(),
        exec_id: process.exec_id().to_owned(),
    };
    shim.call(&request, Some(TIMEOUT)).await
}

/// Waits for a `start` that may still run: it has start.out open, and locked.
async fn started(bundle: &Bundle) {
    let Some(file) = bundle.with(Files::start_lock).await else {
        return;
    };
    let deadline = tokio::time::Instant::now() + TIMEOUT;
    while tokio::time::Instant::now() < deadline {
        if sys::lock(&file).is_ok() {
            return;
        }
        // flock(2) has nothing to wait on without a thread.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    log::warn!("{}: `start` still runs", bundle.key);
}
