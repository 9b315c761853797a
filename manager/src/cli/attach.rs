// SPDX-License-Identifier: Apache-2.0
//! `attach`: to what a container says from now on, and to its input if it has one that is open.

use super::client::Client;
use super::control;
use super::keys::{self, Keys};
use super::run::{NotRun, said};
use super::stdio::{Raw, Stdio, hear};
use super::watch::{Unheard, Watch, signals};
use crate::logfile::{self, audience};
use clap::Args;
use protos::task_types::{Process, Status};

#[derive(Debug, Args)]
pub struct Attach {
    /// Only watch
    #[arg(long)]
    no_stdin: bool,
    /// The keys of its terminal that part us from it; none if empty
    #[arg(long, value_name = "KEYS", default_value = keys::USUAL, value_parser = keys::read)]
    detach_keys: Keys,
    id: String,
}

/// To its logger if that is ours; else to FIFOs, which nobody else may read.
pub async fn attach(client: &Client, args: &Attach) -> Result<u8, NotRun> {
    let id = args.id.as_str();
    let state = control::state(client, id).await.map_err(said)?;
    if state.status == Status::Stopped as i32 {
        return Err(format!("{id} has ended: see `dunnage logs {id}`").into());
    }
    let signals = signals()?;
    let raw = Raw::of(state.terminal);
    let copying = match logfile::file_of(&state.stdout) {
        Some(log) => {
            let heard = audience::join(&log, false);
            let heard = heard.map_err(|e| format!("{id}: its logger: {e}"))?;
            let keys = match state.terminal {
                true => args.detach_keys.clone(),
                false => Keys::default(),
            };
            let mut copying = hear(heard, input(&state, args), keys, true);
            // Others may type on.
            copying.input_ended = None;
            copying
        }
        None if state.stdout.contains("://") => {
            let to = state.stdout;
            return Err(format!("{id} says what it says to {to} only").into());
        }
        None => {
            let stdin = input(&state, args).to_owned();
            Stdio::of(stdin, state.stdout, state.stderr).copy()
        }
    };
    let watch = Watch {
        client,
        id,
        exec: "",
        terminal: state.terminal,
        unheard: Unheard::Stays,
    };
    Ok(watch.attach(signals, copying, raw).await?.code())
}

fn input<'a>(state: &'a Process, args: &Attach) -> &'a str {
    if args.no_stdin { "" } else { &state.stdin }
}
