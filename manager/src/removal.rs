// SPDX-License-Identifier: Apache-2.0
//! Containers that go when they have ended, as `run --detach --rm` asks by a label: the task, what
//! it has logged, and the record.

use crate::failure::{Failure, precondition};
use crate::ledger::Origin;
use crate::logfile;
use crate::manager::Manager;
use crate::names::Key;
use crate::network;
use crate::store::Labels;
use protos::events::ContainerDelete;
use protos::{Code, any};
use std::rc::Rc;
use std::sync::Arc;
use task::aside;

pub const LABEL: &str = "io.dunnage.rm";

/// Whether a container with these labels goes when it has ended.
pub fn is_wanted(labels: &Labels) -> bool {
    labels.get(LABEL).is_some_and(|value| value == "true")
}

/// Removes a container that has ended; somebody else may be about it, too.
pub async fn remove(manager: Rc<Manager>, key: Key) {
    match manager.delete_task(&key).await {
        Err(e) if e.code != Code::NotFound => {
            // As it is, for `rm`: nothing may be lost of a task that is still there.
            return log::error!("{key}: remove: {e}");
        }
        _ => {}
    }
    // While the name is still taken.
    let (config, of) = (Arc::clone(&manager.config), key.clone());
    if let Err(e) = aside::run(move || logfile::remove(&config, &of.namespace, &of.id)).await {
        log::warn!("{key}: remove: {e}");
    }
    match forget(&manager, &key.namespace, &key.id).await {
        Err(e) if e.code != Code::NotFound => log::error!("{key}: remove: {e}"),
        _ => log::info!("{key}: removed"),
    }
}

/// Takes a container's network away, deletes its record, and tells it.
///
/// # Errors
/// `NotFound`, or from the store or the network's plugins. `FailedPrecondition` if it has a task: nobody
/// could reach that then.
pub async fn forget(manager: &Manager, namespace: &str, id: &str) -> Result<(), Failure> {
    let key = Key::new(namespace, id);
    let has_task = || {
        let text = format!("container {id:?}: its task is to be deleted first");
        precondition(text)
    };
    if manager.tasks.get(&key).is_ok() {
        return Err(has_task());
    }
    // Nobody makes a task meanwhile, and a network for it.
    let reserved = manager.tasks.reserve_deleted(key.clone()).await;
    let _reserved = reserved.map_err(|_| has_task())?;
    network::detach(manager, &key).await?;
    manager.store.delete_container(namespace, id).await?;
    let event = any::pack(&ContainerDelete { id: id.to_owned() });
    manager
        .intake
        .publish(namespace, "/containers/delete", event, Origin::State)
        .await;
    Ok(())
}
