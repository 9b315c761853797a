// SPDX-License-Identifier: Apache-2.0
//! `exec`: one more process in a container.

use super::client::Client;
use super::control;
use super::process::{ProcessWishes, list};
use super::run::{NotRun, said, start_process};
use super::spec::PATH;
use super::stdio::{Raw, Stdio};
use super::users::{Asked, Users};
use super::watch::{Unheard, Watch, signals};
use clap::Args;
use protos::Any;
use protos::services::tasks::v1::*;
use serde_json::Value;
use std::path::Path;
use tokio::sync::oneshot;

/// What ctr and containerd call the type of a process.
const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

#[derive(Debug, Args)]
pub struct Exec {
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Pass our stdin on
    #[arg(short, long)]
    interactive: bool,
    /// Do not wait for its end
    #[arg(short, long)]
    detach: bool,
    #[command(flatten)]
    wishes: ProcessWishes,
    /// The container
    id: String,
    /// The command, and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<String>,
}

/// The process of the container's own spec, changed as the command line says.
async fn process(
    client: &Client,
    id: &str,
    wishes: &ProcessWishes,
    tty: bool,
    command: &[String],
) -> Result<Value, String> {
    let failed = |e: &dyn std::fmt::Display| format!("{id}: {e}");
    let container = control::container(client, id).await?;
    let spec = container.spec.unwrap_or_default();
    let spec = task::json::read_first::<Value>(&spec.value);
    let mut process = spec.map_err(|e| failed(&e))?["process"].take();
    if let Some(process) = process.as_object_mut() {
        process.insert("terminal".into(), false.into());
        process.remove("consoleSize");
    }
    let users = match wishes.user {
        Some(Asked::Names(_)) => users_of(client, id).await?,
        _ => Users::default(),
    };
    let changed = wishes.change(&mut process, tty, command, &users);
    changed.map_err(|e| failed(&e))?;
    if let Some(process) = process.as_object_mut() {
        let env = list(process, "env").map_err(|e| failed(&e))?;
        // One that names its programs by their paths need not have it, but who types a name does.
        let mut texts = env.iter().filter_map(Value::as_str);
        if !texts.any(|variable| variable.starts_with("PATH=")) {
            env.insert(0, PATH.into());
        }
    }
    Ok(process)
}

/// The users that a running container has.
async fn users_of(client: &Client, id: &str) -> Result<Users, String> {
    let state = control::state(client, id).await.map_err(said)?;
    let root = format!("/proc/{}/root", state.pid);
    Ok(Users::below(Path::new(&root)))
}

/// An id that no other client has.
fn own_id() -> String {
    let own = std::process::id();
    format!("e{own}-{}", task::proc::started(own).unwrap_or(0))
}

/// Runs a command as the container's root, with streams of ours: its exit code. Its last end is told
/// when all that it said was copied.
pub async fn run_as_root(
    client: &Client,
    id: &str,
    command: &[String],
    stdio: &Stdio,
    input_ended: Option<oneshot::Receiver<()>>,
) -> Result<u32, String> {
    let root = ProcessWishes {
        user: Some(Asked::Ids(0, 0)),
        workdir: Some("/".into()),
        ..Default::default()
    };
    let process = process(client, id, &root, false, command).await?;
    let exec = own_id();
    add(client, id, &exec, stdio, false, &process)
        .await
        .map_err(said)?;
    let ran = async {
        let mut waiting = Box::pin(control::wait_for(client, id, &exec));
        start_process(client, id, &exec)
            .await
            .map_err(NotRun::why)?;
        if let Some(ended) = input_ended {
            tokio::select! {
                exit = &mut waiting => return exit.map_err(said),
                _ = ended => {
                    let close = client.request(CloseIoRequest {
                        container_id: id.to_owned(),
                        exec_id: exec.clone(),
                        stdin: true,
                    });
                    client.tasks().close_io(close).await.map_err(said)?;
                }
            }
        }
        waiting.await.map_err(said)
    };
    let exit = ran.await;
    remove(client, id, exec).await;
    Ok(exit?.exit_status)
}

async fn add(
    client: &Client,
    id: &str,
    exec: &str,
    stdio: &Stdio,
    terminal: bool,
    process: &Value,
) -> Result<(), tonic::Status> {
    let request = client.request(ExecProcessRequest {
        container_id: id.to_owned(),
        stdin: stdio.stdin.clone(),
        stdout: stdio.stdout.clone(),
        stderr: stdio.stderr.clone(),
        terminal,
        spec: Some(Any {
            type_url: PROCESS_TYPE.into(),
            value: process.to_string().into_bytes(),
        }),
        exec_id: exec.to_owned(),
    });
    client.tasks().exec(request).await.map(drop)
}

async fn remove(client: &Client, id: &str, exec_id: String) {
    let request = client.request(DeleteProcessRequest {
        container_id: id.to_owned(),
        exec_id,
    });
    let _ = client.tasks().delete_process(request).await;
}

/// `exec`: its exit code.
pub async fn exec(client: &Client, args: &Exec) -> Result<u8, NotRun> {
    let process = process(client, &args.id, &args.wishes, args.tty, &args.command).await?;
    let exec = own_id();
    let stdio = match args.detach {
        true => Stdio::of(String::new(), String::new(), String::new()),
        false => Stdio::new(args.interactive, args.tty)?,
    };
    let signals = signals()?;
    let raw = Raw::of(args.tty && !args.detach);
    let copying = stdio.copy();
    let made = add(client, &args.id, &exec, &stdio, args.tty, &process).await;
    made.map_err(NotRun::of_command)?;
    if args.detach {
        start_process(client, &args.id, &exec).await?;
        return Ok(0);
    }
    let watch = Watch {
        client,
        id: &args.id,
        exec: &exec,
        terminal: args.tty,
        unheard: Unheard::Ends,
    };
    let end = watch.start(signals, copying, raw).await;
    remove(client, &args.id, exec).await;
    Ok(end?.code())
}
