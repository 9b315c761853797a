// SPDX-License-Identifier: Apache-2.0
//! Starting anew in place: the program that is installed now takes over, under the same pid.
//!
//! ```text
//!  SIGHUP ─> `dunnage check`, as it is now ── fails ─────────┬─> told in the log, all goes on
//!                  │                                          │
//!                  └─> no new requests, the running ones end ─┴─> exec, with both sockets
//! ```
//! A thread that waits for a disk would keep the new image from coming (execve(2) waits for it), so
//! it does not come then. Children stay ours, so their exit statuses still come to us.

use crate::launch::{program, run};
use crate::manager::Manager;
use crate::notify;
use crate::sockets::Kept;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::Duration;
use task::Command;
use task::aside;
use task::reaper::Reaper;
use tokio::sync::watch;

/// How long the new program may take to look at its configuration.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests that are being worked on may take to end.
const FINISH_TIMEOUT: Duration = Duration::from_secs(10);
/// For their answers to be written.
const LAST_WORDS: Duration = Duration::from_millis(20);

/// Has the program that would take over look at the configuration that it would have.
///
/// # Errors
/// A text, if it cannot be run or does not take the configuration.
async fn check(reaper: &Reaper, config: Option<&Path>) -> Result<(), String> {
    let program = program();
    let failed = |what: &dyn std::fmt::Display| format!("{} check: {what}", program.display());
    let mut command = Command::new(&program);
    if let Some(config) = config {
        command.arg("--config").arg(config);
    }
    command
        .arg("check")
        .null([libc::STDIN_FILENO, libc::STDOUT_FILENO]);
    match run(reaper, command, CHECK_TIMEOUT).await {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(failed(&status)),
        Err(e) => Err(failed(&e)),
    }
}

/// Has everything ready for another image of the program. If there can be none, all goes on.
///
/// # Errors
/// A text, if the program does not take its configuration, or a file system does not answer.
pub async fn prepare(manager: &Manager, file: Option<&Path>) -> Result<(), String> {
    check(&manager.launcher.reaper, file).await?;
    notify::reloading();
    manager.held.send_replace(true);
    finish(&manager.requests).await;
    if tokio::time::timeout(FINISH_TIMEOUT, nothing_waits(manager))
        .await
        .is_ok()
    {
        return Ok(());
    }
    manager.held.send_replace(false);
    notify::ready();
    Err(format!(
        "a file system did not answer within {FINISH_TIMEOUT:?}"
    ))
}

/// Waits until nothing is under way beside the loop, nor waits to be written down.
async fn nothing_waits(manager: &Manager) {
    loop {
        manager.intake.settled().await;
        aside::done().await;
        if manager.intake.is_settled() && aside::is_done() {
            return;
        }
    }
}

/// Waits until the requests that are being worked on are answered.
async fn finish(requests: &watch::Sender<usize>) {
    let mut requests = requests.subscribe();
    let none = requests.wait_for(|count| *count == 0);
    if tokio::time::timeout(FINISH_TIMEOUT, none).await.is_err() {
        log::warn!("requests that are being worked on are given up");
    }
    tokio::time::sleep(LAST_WORDS).await;
}

/// Executes the program, with the same arguments.
pub fn execute(sockets: &Kept) -> io::Error {
    let mut command = std::process::Command::new(program());
    command.args(std::env::args_os().skip(1));
    if let Err(e) = sockets.pass_on(&mut command) {
        return e;
    }
    task::sys::limits::give_open_files(&mut command);
    // exec(2) keeps the mask, and a blocked SIGCHLD is what the new one wants anyway.
    command.exec()
}
