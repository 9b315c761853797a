//! `exec`: one more process in a container.

use super::client::Client;
use super::run::{not_run, said, start_process};
use super::spec::{self, Wishes};
use super::stdio::Stdio;
use super::watch::{signals, watch};
use clap::Args;
use protos::Any;
use protos::services::tasks::v1::*;

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
    wishes: Wishes,
    /// The container
    id: String,
    /// The command, and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<String>,
}

/// `exec`: its exit code, and 125 to 127 if it did not run.
pub async fn exec(client: &Client, args: &Exec) -> u8 {
    match try_exec(client, args).await {
        Ok(code) => code,
        Err(e) => {
            super::complain(&e);
            not_run(&e)
        }
    }
}

async fn try_exec(client: &Client, args: &Exec) -> Result<u8, String> {
    let process = spec::process(&args.wishes, args.tty, &args.command)?;
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
    client.tasks().exec(request).await.map_err(said)?;
    if args.detach {
        start_process(client, &args.id, &exec).await?;
        return Ok(0);
    }
    let code = watch(client, &args.id, &exec, args.tty, signals, copying, true).await;
    let request = client.request(DeleteProcessRequest {
        container_id: args.id.clone(),
        exec_id: exec,
    });
    let _ = client.tasks().delete_process(request).await;
    code
}
