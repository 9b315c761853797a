// SPDX-License-Identifier: Apache-2.0
//! `kill`, `pause`, `resume`, `delete`, `update` and `ns`: one request or two each.

use super::client::{Client, lasting};
use super::run::said;
use super::spec::Limits;
use crate::config::Config;
use crate::{logfile, restart};
use clap::{Args, Subcommand};
use protos::services::containers::v1::{
    Container, DeleteContainerRequest, GetContainerRequest, UpdateContainerRequest,
};
use protos::services::namespaces::v1::*;
use protos::services::tasks::v1::*;
use protos::task_types::{Process, Status};
use protos::{Any, FieldMask};
use serde_json::{Map, Value, json};

/// What the shims take resources as.
const RESOURCES: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

async fn send(client: &Client, id: &str, signal: u32, all: bool) -> Result<(), tonic::Status> {
    let request = client.request(KillRequest {
        container_id: id.to_owned(),
        exec_id: String::new(),
        signal,
        all,
    });
    client.tasks().kill(request).await.map(drop)
}

pub async fn kill(client: &Client, id: &str, number: u32, all: bool) -> Result<(), String> {
    send(client, id, number, all).await.map_err(said)
}

/// A signal to what may have ended in the meantime: a wait tells how.
pub async fn end(client: &Client, id: &str, number: libc::c_int, all: bool) -> Result<(), String> {
    match send(client, id, number.cast_unsigned(), all).await {
        Err(e) if e.code() != tonic::Code::NotFound => Err(said(e)),
        _ => Ok(()),
    }
}

pub async fn container(client: &Client, id: &str) -> Result<Container, String> {
    let request = client.request(GetContainerRequest { id: id.to_owned() });
    let answer = client.containers().get(request).await.map_err(said)?;
    Ok(answer.into_inner().container.unwrap_or_default())
}

/// Waits for the end of init.
pub async fn wait(client: &Client, id: &str) -> Result<WaitResponse, tonic::Status> {
    wait_for(client, id, "").await
}

/// Waits for the end of an exec, or of init, through all restarts of the daemon.
pub async fn wait_for(
    client: &Client,
    id: &str,
    exec: &str,
) -> Result<WaitResponse, tonic::Status> {
    lasting(async || {
        let request = client.request(WaitRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
        });
        Ok(client.tasks().wait(request).await?.into_inner())
    })
    .await
}

/// How init is.
pub async fn state(client: &Client, id: &str) -> Result<Process, tonic::Status> {
    let request = client.request(GetRequest {
        container_id: id.to_owned(),
        exec_id: String::new(),
    });
    let answer = client.tasks().get(request).await?;
    Ok(answer.into_inner().process.unwrap_or_default())
}

/// Tells the restart policy, if there is one, what the user wants.
///
/// # Errors
/// A text, if that can't be stored: the policy would do what it did before.
pub async fn note_stopped(
    client: &Client,
    container: &Container,
    stopped: bool,
) -> Result<(), String> {
    if !container.labels.contains_key(restart::STATUS) {
        return Ok(());
    }
    note(client, container, restart::STOPPED, &stopped.to_string()).await
}

/// Changes one label of a container; an empty value takes it away.
///
/// # Errors
/// A text, if that can't be stored.
pub async fn note(
    client: &Client,
    container: &Container,
    key: &str,
    value: &str,
) -> Result<(), String> {
    let (id, mut container) = (&container.id, container.clone());
    container.labels.insert(key.into(), value.into());
    let request = client.request(UpdateContainerRequest {
        container: Some(container),
        update_mask: Some(FieldMask {
            paths: vec![format!("labels.{key}")],
        }),
    });
    let stored = client.containers().update(request).await;
    stored
        .map(drop)
        .map_err(|e| format!("{id}: {key}={value} can't be stored: {}", said(e)))
}

pub async fn pause(client: &Client, id: &str) -> Result<(), String> {
    let request = client.request(PauseTaskRequest {
        container_id: id.to_owned(),
    });
    client.tasks().pause(request).await.map(drop).map_err(said)
}

pub async fn resume(client: &Client, id: &str) -> Result<(), String> {
    let request = client.request(ResumeTaskRequest {
        container_id: id.to_owned(),
    });
    client.tasks().resume(request).await.map(drop).map_err(said)
}

#[derive(Debug, Default, Args)]
pub struct Delete {
    /// Kill it first
    #[arg(short, long)]
    force: bool,
    /// Leave its logs, until a new container of this name has its own
    #[arg(long)]
    keep_logs: bool,
    #[arg(required = true)]
    pub ids: Vec<String>,
}

/// Deletes the task, if there is one, its logs, and the container's record.
pub async fn delete(
    client: &Client,
    config: &Config,
    namespace: &str,
    args: &Delete,
    id: &str,
) -> Result<(), String> {
    let known = container(client, id).await?;
    if args.force {
        // Else a restart policy may start it again meanwhile: then it is told below that it is not
        // deleted.
        let _ = note_stopped(client, &known, true).await;
    }
    end_task(client, args.force, id).await?;
    delete_task(client, id).await?;
    if args.keep_logs {
        logfile::keep_lines(config, namespace, id);
    } else {
        // While the name is still taken.
        logfile::remove(config, namespace, id)?;
    }
    delete_record(client, id).await
}

/// Ends a task that runs, if it is to be forced.
async fn end_task(client: &Client, force: bool, id: &str) -> Result<(), String> {
    let Ok(Process { status, .. }) = state(client, id).await else {
        return Ok(());
    };
    if status == Status::Stopped as i32 || status == Status::Created as i32 {
        return Ok(());
    }
    if !force {
        return Err(format!(
            "{id} is {}: stop it, or use --force",
            super::output::status(status)
        ));
    }
    end(client, id, libc::SIGKILL, true).await?;
    wait(client, id).await.map(drop).map_err(said)
}

/// Deletes a task that does not run; none is no error.
pub async fn delete_task(client: &Client, id: &str) -> Result<(), String> {
    let request = client.request(DeleteTaskRequest {
        container_id: id.to_owned(),
    });
    match client.tasks().delete(request).await {
        Err(e) if e.code() != tonic::Code::NotFound => Err(said(e)),
        _ => Ok(()),
    }
}

/// Deletes the record of a container without a task.
pub async fn delete_record(client: &Client, id: &str) -> Result<(), String> {
    let request = client.request(DeleteContainerRequest { id: id.to_owned() });
    let deleted = client.containers().delete(request).await;
    deleted.map(drop).map_err(said)
}

/// Changes the limits of a container's task, if it has one that runs, and in its record, for the
/// next that is started.
pub async fn update(client: &Client, id: &str, limits: &Limits) -> Result<(), String> {
    let mut known = container(client, id).await?;
    let stored = known.spec.get_or_insert_default();
    let mut spec: Map<String, Value> =
        task::json::read_first(&stored.value).map_err(|e| format!("{id}: its spec: {e}"))?;
    limits.change(&mut spec).map_err(|e| format!("{id}: {e}"))?;
    stored.value = Value::Object(spec).to_string().into_bytes();
    let task = state(client, id).await;
    if task.is_ok_and(|task| task.status != Status::Stopped as i32) {
        let request = client.request(UpdateTaskRequest {
            container_id: id.to_owned(),
            resources: Some(Any {
                type_url: RESOURCES.into(),
                value: Value::Object(limits.resources()).to_string().into_bytes(),
            }),
            annotations: Default::default(),
        });
        client.tasks().update(request).await.map_err(said)?;
    }
    let request = client.request(UpdateContainerRequest {
        container: Some(known),
        update_mask: Some(FieldMask {
            paths: vec!["spec".into()],
        }),
    });
    let stored = client.containers().update(request).await;
    stored
        .map(drop)
        .map_err(|e| format!("{id}: until its next start only: {}", said(e)))
}

#[derive(Debug, Subcommand)]
pub enum Ns {
    /// List them
    Ls,
    /// Make one
    Create { name: String },
    /// Remove an empty one
    Rm { name: String },
}

pub async fn namespaces(client: &Client) -> Result<Vec<Namespace>, String> {
    let request = client.request(ListNamespacesRequest::default());
    let listed = client.namespaces().list(request).await.map_err(said)?;
    Ok(listed.into_inner().namespaces)
}

pub async fn ns(client: &Client, command: &Ns, as_json: bool) -> Result<(), String> {
    match command {
        Ns::Ls => {
            let rows = namespaces(client).await?.into_iter().map(|namespace| {
                let mut labels: Vec<String> = namespace
                    .labels
                    .iter()
                    .map(|(key, value)| format!("{key}={value}"))
                    .collect();
                labels.sort_unstable();
                json!({"name": namespace.name, "labels": labels.join(",")})
            });
            super::output::rows(&["name", "labels"], &rows.collect::<Vec<_>>(), as_json)
        }
        Ns::Create { name } => {
            let request = client.request(CreateNamespaceRequest {
                namespace: Some(Namespace {
                    name: name.clone(),
                    ..Default::default()
                }),
            });
            client
                .namespaces()
                .create(request)
                .await
                .map(drop)
                .map_err(said)
        }
        Ns::Rm { name } => {
            let request = client.request(DeleteNamespaceRequest { name: name.clone() });
            client
                .namespaces()
                .delete(request)
                .await
                .map(drop)
                .map_err(said)
        }
    }
}

/// Where the output of a container goes, as far as its labels say.
pub async fn log_uri(client: &Client, id: &str) -> String {
    let labels = container(client, id).await.unwrap_or_default().labels;
    labels.get(restart::LOG_URI).cloned().unwrap_or_default()
}
