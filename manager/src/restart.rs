// SPDX-License-Identifier: Apache-2.0
//! Restart policies, by containerd's labels: a container that has ended is started again, or goes.
//!
//! containerd looks every ten seconds; here an exit is acted upon at once, and the pause doubles
//! with each restart until the container has run for a while.

use crate::config::Restart;
use crate::failure::Failure;
use crate::health;
use crate::ledger::Exit;
use crate::logfile;
use crate::manager::Manager;
use crate::names::Key;
use crate::removal;
use crate::store::Labels;
use protos::Code;
use protos::services::containers::v1::Container;
use protos::services::tasks::v1::CreateTaskRequest;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};
use task::{ProcessId, aside};
use tokio::sync::{mpsc, watch};

pub const STATUS: &str = "containerd.io/restart.status";
pub const POLICY: &str = "containerd.io/restart.policy";
pub const COUNT: &str = "containerd.io/restart.count";
pub const LOG_URI: &str = "containerd.io/restart.loguri";
pub const STOPPED: &str = "containerd.io/restart.explicitly-stopped";

/// How long to wait after a disk did not answer.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What a container's labels say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Policy {
    No,
    Always,
    UnlessStopped,
    /// At most so often, if there is a number.
    OnFailure(Option<u32>),
    /// As that, and also if its health check says so.
    OnUnhealthy(Option<u32>),
}

impl std::str::FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':').unwrap_or((text, "")) {
            ("no", "") => Ok(Self::No),
            ("" | "always", "") => Ok(Self::Always),
            ("unless-stopped", "") => Ok(Self::UnlessStopped),
            ("on-failure", "") => Ok(Self::OnFailure(None)),
            ("on-failure", count) if count.parse::<u32>().is_ok() => {
                Ok(Self::OnFailure(count.parse().ok()))
            }
            ("on-unhealthy", "") => Ok(Self::OnUnhealthy(None)),
            ("on-unhealthy", count) if count.parse::<u32>().is_ok() => {
                Ok(Self::OnUnhealthy(count.parse().ok()))
            }
            _ => Err(format!(
                "restart policy {text:?}: not no, always, on-failure[:N], on-unhealthy[:N] or \
                 unless-stopped"
            )),
        }
    }
}

/// Whether a container that ended like this is to be started again. `None`: nobody saw it end.
pub fn wants_restart(labels: &Labels, status: Option<u32>) -> bool {
    let label = |key: &str| labels.get(key).map_or("", String::as_str);
    if label(STATUS) != "running" || is_stopped(labels) {
        return false;
    }
    match label(POLICY).parse() {
        Ok(Policy::Always | Policy::UnlessStopped) => true,
        Ok(policy @ (Policy::OnFailure(limit) | Policy::OnUnhealthy(limit))) => {
            let count = label(COUNT).parse::<u32>().unwrap_or(0);
            let is_unhealthy = label(health::STATUS) == "unhealthy";
            let failed = status.is_none_or(|status| status != 0)
                || (matches!(policy, Policy::OnUnhealthy(_)) && is_unhealthy);
            failed && limit.is_none_or(|limit| count < limit)
        }
        Ok(Policy::No) => false,
        Err(e) => {
            log::warn!("{e}");
            false
        }
    }
}

/// Whether somebody has stopped it, so that no policy starts it again.
pub fn is_stopped(labels: &Labels) -> bool {
    labels.get(STOPPED).is_some_and(|value| value == "true")
}

/// Whether one that its health check finds unhealthy is to be started anew.
pub fn is_for_unhealthy(labels: &Labels) -> bool {
    let policy = labels.get(POLICY).map(|policy| policy.parse());
    matches!(policy, Some(Ok(Policy::OnUnhealthy(_))))
}

/// The pause before the next restart.
fn backoff(config: &Restart, last: Duration, ran: Duration) -> Duration {
    let (min, max) = (config.backoff_min.0, config.backoff_max.0);
    if ran >= config.reset_after.0 || last.is_zero() {
        return min;
    }
    (last * 2).clamp(min, max)
}

/// The restarts of all containers.
#[derive(Default)]
pub struct Restarts {
    /// How many there have been.
    pub count: Cell<u64>,
    /// How long each container's last pause was, and when it began.
    pauses: RefCell<HashMap<Key, (Duration, Instant)>>,
    /// Those that go on.
    under_way: watch::Sender<Vec<Key>>,
}

impl Restarts {
    /// Waits until no restart of this container goes on. One that begins afterwards looks at the
    /// container's labels as they are now.
    pub async fn over(&self, key: &Key) {
        let mut under_way = self.under_way.subscribe();
        // An error would say that the sender is gone, and that is here.
        let _ = under_way.wait_for(|keys| !keys.contains(key)).await;
    }

    fn begin(&self, key: &Key) -> UnderWay<'_> {
        self.under_way.send_modify(|keys| keys.push(key.clone()));
        UnderWay(self, key.clone())
    }
}

/// A restart that goes on.
struct UnderWay<'a>(&'a Restarts, Key);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.send_modify(|keys| {
            if let Some(at) = keys.iter().position(|key| *key == self.1) {
                keys.swap_remove(at);
            }
        });
    }
}

/// Restarts what ends, for ever; first what was found stopped.
pub async fn run(manager: Rc<Manager>, mut ended: mpsc::UnboundedReceiver<(Key, Exit)>) {
    for (key, status) in found_stopped(&manager).await {
        consider(&manager, key, status);
    }
    while let Some((key, exit)) = ended.recv().await {
        consider(&manager, key, Some(exit.status));
    }
}

/// Containers without a running task, as after a reboot.
async fn found_stopped(manager: &Manager) -> Vec<(Key, Option<u32>)> {
    let mut found = Vec::new();
    let namespaces = answered(async || manager.store.namespaces().await).await;
    for (namespace, _) in namespaces.unwrap_or_default() {
        let containers = answered(async || manager.store.containers(&namespace).await).await;
        for container in containers.unwrap_or_default() {
            let key = Key::new(&namespace, &container.id);
            let exit = manager.intake.exit(&key, &ProcessId::Init);
            if manager.tasks.get(&key).is_err() || exit.is_some() {
                found.push((key, exit.map(|exit| exit.status)));
            }
        }
    }
    found
}

fn consider(manager: &Rc<Manager>, key: Key, status: Option<u32>) {
    let manager = Rc::clone(manager);
    tokio::task::spawn_local(async move { decide(&manager, key, status).await });
}

async fn decide(manager: &Rc<Manager>, key: Key, status: Option<u32>) {
    let pauses = &manager.restarts.pauses;
    let container = record(manager, &key).await;
    if container
        .as_ref()
        .is_ok_and(|it| removal::is_wanted(&it.labels))
    {
        tokio::task::spawn_local(removal::remove(Rc::clone(manager), key));
        return;
    }
    if !container.is_ok_and(|it| wants_restart(&it.labels, status)) {
        pauses.borrow_mut().remove(&key);
        return;
    }
    let (last, since) = match pauses.borrow().get(&key) {
        Some(&(pause, at)) => (pause, at),
        None => (Duration::ZERO, Instant::now()),
    };
    let pause = backoff(
        &manager.config.restart,
        last,
        since.elapsed().saturating_sub(last),
    );
    pauses
        .borrow_mut()
        .insert(key.clone(), (pause, Instant::now()));
    let manager = Rc::clone(manager);
    tokio::task::spawn_local(async move {
        tokio::time::sleep(pause).await;
        let _under_way = manager.restarts.begin(&key);
        // What is wanted may have changed meanwhile.
        let Ok(container) = record(&manager, &key).await else {
            return;
        };
        if !wants_restart(&container.labels, status) || has_started(&manager, &key) {
            return;
        }
        log::info!("{key}: restarts after {pause:?}");
        if let Err(e) = restart(&manager, &key, container).await {
            log::error!("{key}: restart: {e}");
            consider(&manager, key, None);
        }
    });
}

async fn record(manager: &Manager, key: &Key) -> Result<Container, Failure> {
    answered(async || manager.store.container(&key.namespace, &key.id).await).await
}

/// Asks the store until its disk answers: no restart is lost because it stood still.
async fn answered<T>(ask: impl AsyncFn() -> Result<T, Failure>) -> Result<T, Failure> {
    loop {
        match ask().await {
            Err(e) if e.code == Code::Unavailable => tokio::time::sleep(ASK_AGAIN).await,
            answer => return answer,
        }
    }
}

/// Somebody was quicker: there is a task that has not ended.
fn has_started(manager: &Manager, key: &Key) -> bool {
    manager.tasks.get(key).is_ok() && manager.intake.exit(key, &ProcessId::Init).is_none()
}

async fn restart(manager: &Rc<Manager>, key: &Key, container: Container) -> Result<(), Failure> {
    match manager.delete_task(key).await {
        Err(e) if e.code != Code::NotFound => return Err(e),
        _ => {}
    }
    let uri = container.labels.get(LOG_URI).cloned().unwrap_or_default();
    let of = uri.clone();
    let stdin = aside::run(move || logfile::input_of(&of)).await;
    let terminal = has_terminal(&container);
    let create = CreateTaskRequest {
        stderr: if terminal { String::new() } else { uri.clone() },
        stdout: uri,
        stdin,
        terminal,
        ..manager.store.last_create(&key.namespace, &key.id).await?
    };
    manager
        .create_task(&key.namespace, &container, create)
        .await?;
    // It may have been stopped or removed while its shim was started.
    let now = record(manager, key).await;
    if !now.is_ok_and(|it| wants_restart(&it.labels, None)) {
        return manager.delete_task(key).await.map(drop);
    }
    manager.start_task(key, &ProcessId::Init).await?;
    let restarts = &manager.restarts;
    restarts.count.set(restarts.count.get() + 1);
    // The one that is there now: whoever stops it meanwhile says so in another label.
    let count = |mut container: Container| {
        let count = container
            .labels
            .get(COUNT)
            .and_then(|count| count.parse::<u32>().ok());
        let count = count.unwrap_or(0).saturating_add(1);
        container.labels.insert(COUNT.into(), count.to_string());
        Ok(container)
    };
    let store = &manager.store;
    let counted = store.update_container(&key.namespace, &key.id, count);
    counted.await.map(drop)
}

/// What its spec says.
pub fn has_terminal(container: &Container) -> bool {
    let spec = container.spec.as_ref().map_or(&[][..], |spec| &spec.value);
    let spec: serde_json::Value = task::json::read_first(spec).unwrap_or_default();
    spec["process"]["terminal"] == true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_labels_decide() {
        for (policy, count, stopped, status, again) in [
            ("always", "", "", Some(0), true),
            ("", "", "", Some(0), true),
            ("no", "", "", Some(1), false),
            ("on-failure", "", "", Some(0), false),
            ("on-failure", "", "", Some(1), true),
            ("on-failure", "", "", None, true),
            ("on-failure:2", "1", "", Some(1), true),
            ("on-failure:2", "2", "", Some(1), false),
            ("unless-stopped", "", "", Some(0), true),
            ("unless-stopped", "", "true", Some(0), false),
            ("always", "", "true", Some(0), false),
            ("on-unhealthy", "", "", Some(0), false),
            ("on-unhealthy", "", "", Some(1), true),
            ("on-unhealthy:2", "2", "", Some(1), false),
            ("often", "", "", Some(0), false),
        ] {
            let mut labels = Labels::from([
                (STATUS.to_owned(), "running".to_owned()),
                (POLICY.to_owned(), policy.to_owned()),
                (COUNT.to_owned(), count.to_owned()),
                (STOPPED.to_owned(), stopped.to_owned()),
            ]);
            assert_eq!(
                wants_restart(&labels, status),
                again,
                "{labels:?} {status:?}"
            );
            labels.insert(STATUS.to_owned(), "stopped".to_owned());
            assert!(!wants_restart(&labels, status));
        }
    }

    #[test]
    fn what_is_unhealthy_is_restarted_however_it_ended() {
        let mut labels = Labels::from([
            (STATUS.to_owned(), "running".to_owned()),
            (POLICY.to_owned(), "on-unhealthy:2".to_owned()),
            (health::STATUS.to_owned(), "unhealthy".to_owned()),
        ]);
        assert!(is_for_unhealthy(&labels) && wants_restart(&labels, Some(0)));
        labels.insert(COUNT.to_owned(), "2".to_owned());
        assert!(!wants_restart(&labels, Some(0)));
        labels.insert(POLICY.to_owned(), "on-failure".to_owned());
        assert!(!is_for_unhealthy(&labels) && !wants_restart(&labels, Some(0)));
    }

    #[test]
    fn pauses_double_until_it_runs() {
        let config = Restart::default();
        let ms = Duration::from_millis;
        assert_eq!(backoff(&config, ms(0), ms(5)), ms(100));
        assert_eq!(backoff(&config, ms(100), ms(5)), ms(200));
        assert_eq!(backoff(&config, ms(50_000), ms(5)), ms(60_000));
        assert_eq!(backoff(&config, ms(60_000), ms(10_000)), ms(100));
    }
}
