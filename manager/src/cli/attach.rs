//! `attach`: to what a container says now.

use super::client::Client;
use super::control;
use super::run::{NotRun, said};
use super::stdio::Stdio;
use super::watch::{Unheard, Watch, signals};

/// `attach`: to FIFOs that nobody else reads.
pub async fn attach(client: &Client, id: &str) -> Result<u8, NotRun> {
    let state = control::state(client, id).await.map_err(said)?;
    if state.stdout.contains("://") {
        return Err(format!("{id} writes to a log: see `dunnage logs -f {id}`").into());
    }
    let stdio = Stdio::of(state.stdin, state.stdout, state.stderr);
    let watch = Watch {
        client,
        id,
        exec: "",
        terminal: state.terminal,
        unheard: Unheard::Stays,
    };
    Ok(watch.attach(signals()?, stdio.copy()).await?)
}
