// SPDX-License-Identifier: Apache-2.0
//! `checkpoint` and `restore`: a container's processes as files, by CRIU, and back.

use super::client::Client;
use super::control::{container, note_stopped, state};
use super::run::{NotRun, delete, said, start_process};
use crate::{logfile, restart};
use clap::Args;
use protos::services::tasks::v1::{CheckpointTaskRequest, CreateTaskRequest};
use protos::task_types::Status;
use protos::{any, runc};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct Checkpoint {
    /// Let it run on
    #[arg(long)]
    leave_running: bool,
    /// Also with TCP connections that are open
    #[arg(long)]
    tcp_established: bool,
    /// Also with locks of files
    #[arg(long)]
    file_locks: bool,
    id: String,
    /// Where it is stored: a directory that is not there yet
    dir: PathBuf,
}

fn absolute(dir: &Path) -> Result<PathBuf, String> {
    let here = std::env::current_dir().map_err(|e| e.to_string())?;
    Ok(here.join(dir))
}

/// Stores what a container is doing; then it ends, unless it is left running.
pub async fn checkpoint(client: &Client, args: &Checkpoint) -> Result<(), String> {
    let id = args.id.as_str();
    let known = container(client, id).await?;
    state(client, id).await.map_err(said)?;
    let dir = absolute(&args.dir)?;
    let failed = |e: std::io::Error| format!("{}: {e}", dir.display());
    std::fs::create_dir(&dir).map_err(failed)?;
    if !args.leave_running
        && let Err(e) = note_stopped(client, &known, true).await
    {
        std::fs::remove_dir(&dir).map_err(failed)?;
        return Err(e);
    }
    let options = runc::CheckpointOptions {
        exit: !args.leave_running,
        open_tcp: args.tcp_established,
        file_locks: args.file_locks,
        image_path: dir.display().to_string(),
        ..Default::default()
    };
    let request = client.request(CheckpointTaskRequest {
        container_id: id.to_owned(),
        options: Some(any::pack(&options)),
        ..Default::default()
    });
    if let Err(e) = client.tasks().checkpoint(request).await {
        // What there is of it can't be restored.
        let _ = std::fs::remove_dir_all(&dir);
        if !args.leave_running {
            note_stopped(client, &known, false).await?;
        }
        return Err(said(e));
    }
    Ok(())
}

/// Has a container that does not run go on where it was stored.
pub async fn restore(client: &Client, id: &str, dir: &Path) -> Result<(), NotRun> {
    let known = container(client, id).await?;
    let dir = absolute(dir)?;
    if !dir.join("inventory.img").is_file() {
        return Err(NotRun::refused(
            id,
            format!("{}: no checkpoint", dir.display()),
        ));
    }
    match state(client, id).await.map(|task| task.status) {
        Ok(status) if status == Status::Stopped as i32 => drop(delete(client, id).await),
        Ok(_) => return Err(NotRun::refused(id, "it has a task: stop it first".into())),
        Err(e) if e.code() == tonic::Code::NotFound => {}
        Err(e) => return Err(NotRun::refused(id, said(e))),
    }
    let log = known
        .labels
        .get(restart::LOG_URI)
        .cloned()
        .unwrap_or_default();
    let terminal = restart::has_terminal(&known);
    let options = runc::Options {
        criu_image_path: dir.display().to_string(),
        ..Default::default()
    };
    let request = client.request(CreateTaskRequest {
        container_id: id.to_owned(),
        stdin: logfile::input_of(&log),
        stderr: if terminal { String::new() } else { log.clone() },
        stdout: log,
        terminal,
        options: Some(any::pack(&options)),
        ..Default::default()
    });
    client
        .tasks()
        .create(request)
        .await
        .map_err(NotRun::of_command)?;
    if let Err(e) = start_process(client, id, "").await {
        delete(client, id).await;
        return Err(e);
    }
    Ok(note_stopped(client, &known, false).await?)
}
