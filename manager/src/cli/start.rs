// SPDX-License-Identifier: Apache-2.0
//! `start`: of a task that was created, or of a container that has none that runs.

use super::client::Client;
use super::control;
use super::run::{NotRun, delete, start_process};
use crate::{logfile, restart};
use protos::services::tasks::v1::CreateTaskRequest;

pub async fn start(client: &Client, id: &str) -> Result<(), NotRun> {
    let container = control::container(client, id).await?;
    let state = control::state(client, id).await.ok();
    let status = state.map(|state| state.status);
    control::note_stopped(client, &container, false).await?;
    if status == Some(protos::task_types::Status::Stopped as i32) {
        delete(client, id).await;
    }
    if status != Some(protos::task_types::Status::Created as i32) {
        let log = container
            .labels
            .get(restart::LOG_URI)
            .cloned()
            .unwrap_or_default();
        let terminal = restart::has_terminal(&container);
        let request = client.request(CreateTaskRequest {
            container_id: id.to_owned(),
            stderr: if terminal { String::new() } else { log.clone() },
            stdin: logfile::input_of(&log),
            stdout: log,
            terminal,
            ..Default::default()
        });
        let created = client.tasks().create(request).await;
        created.map_err(NotRun::of_command)?;
    }
    start_process(client, id, "").await
}
