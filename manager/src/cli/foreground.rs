// SPDX-License-Identifier: Apache-2.0
//! A `run` in the foreground: how its client hears the container, and how it parts from it.

use super::client::Client;
use super::control;
use super::keys::Keys;
use super::run::{Create, NotRun, Planned, delete, make, make_task, said, unmake};
use super::stdio::{Copying, Stdio, hear};
use crate::config::Config;
use crate::logfile::audience;
use crate::removal;
use protos::services::containers::v1::CreateContainerRequest;
use protos::task_types::Status;
use std::path::Path;

/// Makes a container whose output we hear: by its logger, or, under a shim that knows no loggers, by
/// FIFOs, which go with what comes back.
pub async fn foreground(
    client: &Client,
    namespace: &str,
    config: &Config,
    create: &Create,
    planned: &Planned,
    (log, file): (&str, &Path),
) -> Result<(Copying, Option<Stdio>), NotRun> {
    let (id, terminal) = (&planned.container.id, planned.terminal);
    let interactive = create.interactive;
    let refused = match make(client, namespace, config, planned, log, interactive).await {
        Ok(stdin) => {
            let keys = match terminal {
                true => create.detach_keys.clone(),
                false => Keys::default(),
            };
            return match audience::join(file, true) {
                Ok(heard) => Ok((hear(heard, &stdin, keys, false), None)),
                Err(e) => {
                    if delete(client, id).await {
                        unmake(client, config, namespace, id).await;
                    }
                    Err(format!("{id}: its logger: {e}").into())
                }
            };
        }
        Err(refused) if refused.is_of_task() => refused,
        Err(refused) => return Err(refused),
    };
    let stdio = Stdio::new(interactive, terminal)?;
    // Before the shim opens its ends: it waits for ours.
    let copying = stdio.copy();
    let request = client.request(CreateContainerRequest {
        container: Some(planned.container.clone()),
    });
    client.containers().create(request).await.map_err(said)?;
    let streams = [&stdio.stdin, &stdio.stdout, &stdio.stderr];
    match make_task(client, id, terminal, streams.map(String::as_str)).await {
        Ok(()) => Ok((copying, Some(stdio))),
        Err(_) => {
            unmake(client, config, namespace, id).await;
            Err(refused)
        }
    }
}

/// Leaves it to the daemon to remove it; one that has ended by now is ours to remove.
pub async fn go_when_ended(client: &Client, id: &str) -> Result<(), String> {
    let known = control::container(client, id).await?;
    control::note(client, &known, removal::LABEL, "true").await?;
    let state = control::state(client, id).await.map_err(said)?;
    if state.status == Status::Stopped as i32 && delete(client, id).await {
        let _ = control::delete_record(client, id).await;
    }
    Ok(())
}
