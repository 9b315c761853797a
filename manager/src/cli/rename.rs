// SPDX-License-Identifier: Apache-2.0
//! `rename`: a record under another id, with what the container has logged.

use super::client::Client;
use super::control::{container, delete_record, delete_task, state};
use super::run::said;
use crate::config::Config;
use crate::{logfile, restart};
use protos::services::containers::v1::{Container, CreateContainerRequest};
use protos::task_types::Status;
use serde_json::Value;

/// Only of what does not run: an id is what a shim, its files and a cgroup are called by.
pub async fn rename(
    client: &Client,
    config: &Config,
    namespace: &str,
    id: &str,
    new: &str,
) -> Result<(), String> {
    let old = container(client, id).await?;
    let task = state(client, id).await.ok();
    if task
        .as_ref()
        .is_some_and(|task| task.status != Status::Stopped as i32)
    {
        return Err(format!(
            "{id} has a task that runs under this name: stop it first"
        ));
    }
    let request = client.request(CreateContainerRequest {
        container: Some(renamed(config, namespace, &old, new)?),
    });
    // Which refuses a name that is taken, or is none.
    client.containers().create(request).await.map_err(said)?;
    let undone = async |why: String| {
        let _ = logfile::rename(config, namespace, new, id);
        let _ = delete_record(client, new).await;
        Err(why)
    };
    // What another of the new name may have left.
    let moved = logfile::remove(config, namespace, new)
        .and_then(|()| logfile::rename(config, namespace, id, new));
    if let Err(e) = moved {
        return undone(e).await;
    }
    if task.is_some()
        && let Err(e) = delete_task(client, id).await
    {
        return undone(e).await;
    }
    match delete_record(client, id).await {
        Err(e) => undone(e).await,
        Ok(()) => Ok(()),
    }
}

/// The same record, where the id is not chosen by the user also in its spec.
fn renamed(
    config: &Config,
    namespace: &str,
    old: &Container,
    new: &str,
) -> Result<Container, String> {
    let mut container = old.clone();
    container.id = new.to_owned();
    let spec = container.spec.get_or_insert_default();
    let mut json: Value =
        task::json::read_first(&spec.value).map_err(|e| format!("{}: its spec: {e}", old.id))?;
    for (field, begin) in [
        ("/hostname", String::new()),
        ("/linux/cgroupsPath", format!("/{namespace}/")),
    ] {
        let of_old = format!("{begin}{}", old.id);
        let field = json.pointer_mut(field);
        if let Some(field) = field.filter(|field| **field == of_old) {
            *field = format!("{begin}{new}").into();
        }
    }
    spec.value = json.to_string().into_bytes();
    if let Some(uri) = container.labels.get_mut(restart::LOG_URI) {
        let path = |id: &str| logfile::path(config, namespace, id).display().to_string();
        *uri = uri.replace(
            &format!("log={}&", path(&old.id)),
            &format!("log={}&", path(new)),
        );
    }
    Ok(container)
}
