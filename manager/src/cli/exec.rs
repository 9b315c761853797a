//! `exec`: one more process in a container.

use super::client::Client;
use super::process::{ProcessWishes, list};
use super::run::{NotRun, said, start_process};
use super::spec::PATH;
use super::stdio::Stdio;
use super::users::{Asked, Users};
use super::watch::{Unheard, Watch, signals};
use clap::Args;
use protos::Any;
use protos::services::tasks::v1::*;
use serde_json::Value;
use std::path::Path;

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
async fn process(client: &Client, args: &Exec) -> Result<Value, String> {
    let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", args.id);
    let container = super::control::container(client, &args.id).await?;
    let spec = container.spec.unwrap_or_default();
    let spec = task::json::read_first::<Value>(&spec.value);
    let mut process = spec.map_err(|e| failed(&e))?["process"].take();
    if let Some(process) = process.as_object_mut() {
        process.insert("terminal".into(), false.into());
        process.remove("consoleSize");
    }
    let users = match args.wishes.user {
        Some(Asked::Names(_)) => users_of(client, &args.id).await?,
        _ => Users::default(),
    };
    let wishes = &args.wishes;
    let changed = wishes.change(&mut process, args.tty, &args.command, &users);
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
    let state = super::control::state(client, id).await.map_err(said)?;
    Ok(Users::below(Path::new(&format!(
        "/proc/{}/root",
        state.pid
    ))))
}

/// `exec`: its exit code.
pub async fn exec(client: &Client, args: &Exec) -> Result<u8, NotRun> {
    let process = process(client, args).await?;
    let exec = format!(
        "e{}-{}",
        std::process::id(),
        task::proc::started(std::process::id()).unwrap_or(0)
    );
    let stdio = match args.detach {
        true => Stdio::of(String::new(), String::new(), String::new()),
        false => Stdio::new(args.interactive, args.tty)?,
    };
    let signals = signals()?;
    let copying = stdio.copy();
    let request = client.request(ExecProcessRequest {
        container_id: args.id.clone(),
        stdin: stdio.stdin.clone(),
        stdout: stdio.stdout.clone(),
        stderr: stdio.stderr.clone(),
        terminal: args.tty,
        spec: Some(Any {
            type_url: PROCESS_TYPE.into(),
            value: process.to_string().into_bytes(),
        }),
        exec_id: exec.clone(),
    });
    let made = client.tasks().exec(request).await;
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
    let code = watch.start(signals, copying).await;
    let request = client.request(DeleteProcessRequest {
        container_id: args.id.clone(),
        exec_id: exec,
    });
    let _ = client.tasks().delete_process(request).await;
    code
}
