// SPDX-License-Identifier: Apache-2.0
//! Health checks: a command that is run in a container now and then, and what follows from how it ends.
//!
//! ```text
//!  start, or the daemon's ──> wait an interval ──> exec.rs: the command, for as long as it may take
//!                                  ^                    │
//!                                  └── check.rs: healthy, or failing how often? ──> label, event
//!                                                       └─ unhealthy, and the policy is on-unhealthy:
//!                                                          it is stopped, and restart.rs starts it again
//! ```
//! Each container with a check has a task of the loop, which ends with its init.

mod check;
mod exec;

pub use check::{Check, Shape};
pub use exec::{ID, is_of_check};

use crate::halt;
use crate::ledger::Origin;
use crate::manager::Manager;
use crate::names::Key;
use crate::restart;
use crate::store::Labels;
use check::State;
use protos::events::ContainerUpdate;
use protos::services::containers::v1::Container;
use protos::task::KillRequest;
use protos::{Any, any};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};
use task::ProcessId;

/// The label with a container's check, in the form of Docker's images.
pub const LABEL: &str = "io.dunnage.health";
/// The label with how it is: starting, healthy or unhealthy.
pub const STATUS: &str = "io.dunnage.health.status";
/// What the latest check said, in an event.
const OUTPUT: &str = "io.dunnage.health.output";
/// Under what a container's record, as it is told, has the latest checks. It is not stored.
pub const EXTENSION: &str = "io.dunnage.health";
const TOPIC: &str = "/containers/health";
/// What a label has room for, beside its key.
const TOLD: usize = 2048;

/// How the containers are that run and have a check.
#[derive(Default)]
pub struct Health(RefCell<HashMap<Key, State>>);

impl Health {
    /// Adds what is known to a record that is told to somebody.
    pub fn tell(&self, namespace: &str, container: &mut Container) {
        let states = self.0.borrow();
        if let Some(state) = states.get(&Key::new(namespace, &container.id)) {
            let known = Any {
                type_url: EXTENSION.into(),
                value: state.to_json().to_string().into_bytes(),
            };
            container.extensions.insert(EXTENSION.into(), known);
        }
    }
}

/// The check of a container, if it has one.
pub fn of(container: &Container) -> Option<Rc<Check>> {
    let label = container.labels.get(LABEL)?;
    match Check::read(label) {
        Ok(check) => check.map(Rc::new),
        Err(e) => {
            log::warn!("{}: label {LABEL}: {e}", container.id);
            None
        }
    }
}

impl Manager {
    /// Goes on with the checks of all that runs, after a restart of the daemon.
    pub async fn resume_checks(self: Rc<Self>) {
        for task in self.tasks.all() {
            let key = task.key().clone();
            let runs = {
                let ledger = self.intake.ledger();
                let init = ledger.facts(&key).and_then(|facts| facts.init());
                init.is_some_and(|init| init.started && init.exit.is_none())
            };
            if !runs {
                continue;
            }
            let container = self.store.container(&key.namespace, &key.id).await;
            let Ok(container) = container else {
                continue;
            };
            if let Some(check) = of(&container) {
                let known = container.labels.get(STATUS).map_or("", String::as_str);
                self.begin_checks(&key, check, known);
            }
        }
    }

    /// Watches over a container's health until it ends, from the status that is known.
    pub fn begin_checks(self: &Rc<Self>, key: &Key, check: Rc<Check>, known: &str) {
        let (manager, key, state) = (Rc::clone(self), key.clone(), State::known(known));
        tokio::task::spawn_local(async move {
            manager.health.0.borrow_mut().insert(key.clone(), state);
            tokio::select! {
                _ = manager.intake.exited(&key, &ProcessId::Init) => {}
                () = manager.check_again_and_again(&key, &check) => {}
            }
            manager.health.0.borrow_mut().remove(&key);
        });
    }

    async fn check_again_and_again(self: &Rc<Self>, key: &Key, check: &Check) {
        self.note_health(key, "").await;
        let begun = Instant::now();
        let process = match self.process_of_check(key, check).await {
            Ok(process) => process,
            Err(e) => return log::error!("{key}: health check: {e}"),
        };
        self.end_check(key).await;
        // A daemon before us may not have got so far.
        if self
            .health
            .0
            .borrow()
            .get(key)
            .is_some_and(State::is_unhealthy)
        {
            self.restart_unhealthy(key).await;
        }
        loop {
            tokio::time::sleep(check.interval()).await;
            let Some(ran) = self.run_check(key, check, &process).await else {
                continue;
            };
            let is_early = begun.elapsed() < check.start_period();
            let said = ran.output.clone();
            let changed = {
                let mut states = self.health.0.borrow_mut();
                let Some(state) = states.get_mut(key) else {
                    return;
                };
                state.judge(ran, is_early, check.retries())
            };
            if changed {
                self.note_health(key, &said).await;
                self.restart_unhealthy(key).await;
            }
        }
    }

    /// Stores how it is, and tells it.
    async fn note_health(&self, key: &Key, output: &str) {
        let status = match self.health.0.borrow().get(key) {
            Some(state) => state.status.name(),
            None => return,
        };
        let changed = move |mut container: Container| {
            container.labels.insert(STATUS.into(), status.into());
            Ok(container)
        };
        let stored = self
            .store
            .update_container(&key.namespace, &key.id, changed);
        let image = match stored.await {
            Ok(container) => container.image,
            Err(e) => {
                log::error!("{key}: {status}: {e}");
                String::new()
            }
        };
        log::info!("{key}: {status}");
        let mut labels = Labels::from([(STATUS.to_owned(), status.to_owned())]);
        if !output.is_empty() {
            let output = protos::text::cut(output, TOLD);
            labels.insert(OUTPUT.into(), output.into());
        }
        let event = any::pack(&ContainerUpdate {
            id: key.id.clone(),
            image,
            labels,
            snapshot_key: String::new(),
        });
        self.intake
            .publish(&key.namespace, TOPIC, event, Origin::State)
            .await;
    }

    /// Stops one that is unhealthy, if its policy then starts it again.
    async fn restart_unhealthy(self: &Rc<Self>, key: &Key) {
        let container = self.store.container(&key.namespace, &key.id).await;
        let Ok(container) = container else {
            return;
        };
        let labels = &container.labels;
        if !restart::is_for_unhealthy(labels) || !restart::wants_restart(labels, Some(0)) {
            return;
        }
        log::warn!("{key}: is unhealthy, and restarts");
        let term = halt::signal(labels).unwrap_or(libc::SIGTERM.cast_unsigned());
        let patience = halt::timeout(labels).unwrap_or(Duration::ZERO);
        self.signal(key, term, false).await;
        tokio::time::sleep(patience).await;
        // This ends with its init: so that is still there.
        self.signal(key, libc::SIGKILL.cast_unsigned(), true).await;
    }

    async fn signal(&self, key: &Key, signal: u32, all: bool) {
        let Ok(task) = self.tasks.get(key) else {
            return;
        };
        let request = KillRequest {
            id: key.id.clone(),
            exec_id: String::new(),
            signal,
            all,
        };
        if let Err(e) = self.ask(&task, &request).await {
            log::warn!("{key}: signal {signal}: {e}");
        }
    }
}
