//! Starting anew in place: the program that is installed now takes over, under the same pid.
//!
//! ```text
//!  SIGHUP ─> `dunnage check`, as it is now ── fails ─> told in the log, all goes on
//!                  │
//!                  └─> no new requests, the running ones end ─> exec, with both sockets
//! ```
//! Children stay ours, so their exit statuses still come to us.

use crate::sockets::Kept;
use nix::sys::signal::Signal;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use task::reaper::Reaper;
use tokio::sync::watch;

/// How long the new program may take to look at its configuration.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests that are being worked on may take to end.
const FINISH_TIMEOUT: Duration = Duration::from_secs(10);
/// For their answers to be written.
const LAST_WORDS: Duration = Duration::from_millis(20);

/// Where the program is, or what has taken its place.
pub fn program() -> PathBuf {
    let path = std::env::current_exe().unwrap_or_else(|_| "dunnage".into());
    let text = path.to_string_lossy();
    text.strip_suffix(" (deleted)")
        .map_or(path.clone(), PathBuf::from)
}

/// Has the program that would take over look at the configuration that it would have.
///
/// # Errors
/// A text, if it cannot be run or does not take the configuration.
pub async fn check(reaper: &Reaper, config: Option<&Path>) -> Result<(), String> {
    let program = program();
    let failed = |what: &dyn std::fmt::Display| format!("{} check: {what}", program.display());
    let mut command = Command::new(&program);
    if let Some(config) = config {
        command.arg("--config").arg(config);
    }
    command
        .arg("check")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let mut child = reaper.spawn(&mut command).map_err(|e| failed(&e))?;
    match tokio::time::timeout(CHECK_TIMEOUT, child.exit()).await {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(failed(&status)),
        Err(_) => {
            child.kill(Signal::SIGKILL);
            Err(failed(&"no answer"))
        }
    }
}

/// Waits until the requests that are being worked on are answered.
pub async fn finish(requests: &watch::Sender<usize>) {
    let mut requests = requests.subscribe();
    let none = requests.wait_for(|count| *count == 0);
    if tokio::time::timeout(FINISH_TIMEOUT, none).await.is_err() {
        log::warn!("requests that are being worked on are given up");
    }
    tokio::time::sleep(LAST_WORDS).await;
}

/// Executes the program, with the same arguments.
pub fn execute(sockets: &Kept) -> io::Error {
    let mut command = Command::new(program());
    command.args(std::env::args_os().skip(1));
    if let Err(e) = sockets.pass_on(&mut command) {
        return e;
    }
    task::sys::limits::give_open_files(&mut command);
    // exec(2) keeps the mask, and a blocked SIGCHLD is what the new one wants anyway.
    command.exec()
}
