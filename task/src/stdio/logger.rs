// SPDX-License-Identifier: Apache-2.0
//! A program that takes a process's output: `binary://` and `binary-v2://` (contract I10, I11).

use super::Of;
use super::pipe::{End, Owner, pipe_for};
use crate::command::Command;
use crate::error::{Error, Result};
use crate::reaper::{Child, Reaper};
use nix::sys::signal::Signal;
use protos::ttrpc::Context;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::Mutex;

/// How long a logger may take to say that it is ready, and to end once it is told to.
const READY: Duration = Duration::from_secs(10);
const STOP: Duration = Duration::from_secs(12);

pub struct Logger {
    pid: u32,
    child: Mutex<Child>,
}

impl Logger {
    /// Starts the logger of `uri` (path and query), and waits until it is ready. The write ends
    /// of its stdout and stderr pipes come back.
    ///
    /// # Errors
    /// Code Unknown: it can't be started, or did not get ready.
    pub async fn start(
        uri: &str,
        must_call_ready: bool,
        of: &Of<'_>,
        reaper: &Reaper,
        context: &Context,
    ) -> Result<(Self, [OwnedFd; 2])> {
        let (path, args) = parse(uri);
        let (uid, gid) = (of.io_uid, of.io_gid);
        let owner = Owner { uid, gid };
        let (out_read, out_write) = pipe_for(owner, End::Write)?;
        let (err_read, err_write) = pipe_for(owner, End::Write)?;
        let (ready_read, ready_write) = pipe_for(owner, End::Write)?;
        let mut command = Command::new(&path);
        command
            .args(args)
            .env_clear()
            // The process's id, although the name says container (P/io.go `NewBinaryIO`).
            .env("CONTAINER_ID", of.process)
            .env("CONTAINER_NAMESPACE", of.namespace)
            .current_dir(of.bundle.path())
            .null(0..=2)
            .file(3, out_read)
            .file(4, err_read)
            .file(5, ready_write);
        let failed = |e: String| Error::Refused(format!("logging binary {path}: {e}"));
        let (child, not_executed) = reaper.spawn(&command).map_err(|e| failed(e.to_string()))?;
        drop(command);

        let logger = Self::new(child);
        let ready = wait_until_ready(ready_read, must_call_ready, context).await;
        // A program that is not there looks ready: its end of the pipe is closed.
        let ready = match not_executed.error() {
            Some(e) => Err(failed(e.to_string())),
            None => ready,
        };
        if let Err(e) = ready {
            logger.stop().await;
            return Err(e);
        }
        Ok((logger, [out_write, err_write]))
    }

    fn new(child: Child) -> Self {
        Self {
            pid: child.pid,
            child: Mutex::new(child),
        }
    }

    /// The pid of a logger that still runs.
    pub fn pid(&self) -> Option<u32> {
        let ended = self.child.try_lock().is_ok_and(|child| child.has_ended());
        (!ended).then_some(self.pid)
    }

    /// A logger that another process image started.
    pub fn take_over(pid: u32, reaper: &Reaper) -> Self {
        Self::new(reaper.adopt(pid))
    }

    /// Waits until it ends by itself, as it does at the end of its input.
    pub async fn finished(&self) {
        self.child.lock().await.exit().await;
    }

    /// Ends it: politely, then not.
    pub async fn stop(&self) {
        let mut child = self.child.lock().await;
        child.kill(Signal::SIGTERM);
        if tokio::time::timeout(STOP, child.exit()).await.is_err() {
            child.kill(Signal::SIGKILL);
            child.exit().await;
        }
    }
}

/// Ready is the end of fd 5. Only a v2 logger must write a byte first, which tells a crash from
/// readiness.
async fn wait_until_ready(ready: OwnedFd, must_call_ready: bool, context: &Context) -> Result<()> {
    let mut ready = pipe::Receiver::from_owned_fd(ready).map_err(Error::io("watch", "pipe"))?;
    let mut byte = [0];
    let n = tokio::select! {
        n = ready.read(&mut byte) => n.map_err(Error::io("read", "pipe"))?,
        why = context.cancelled() => return Err(Error::GivenUp(why)),
        () = tokio::time::sleep(READY) => {
            return Err(Error::Refused("logging binary did not get ready within 10 s".into()));
        }
    };
    if n == 0 && must_call_ready {
        let text = "logging binary did not call ready (it may have crashed or exited prematurely)";
        return Err(Error::Refused(text.into()));
    }
    Ok(())
}

/// Path and arguments: each key of the query and its first value, in the order written.
fn parse(uri: &str) -> (String, Vec<String>) {
    let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
    let mut pairs: Vec<(String, String)> = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = decode(&key.replace('+', " "));
        if !pairs.iter().any(|(known, _)| *known == key) {
            pairs.push((key, decode(&value.replace('+', " "))));
        }
    }
    let args = pairs.into_iter().flat_map(|(key, value)| [key, value]);
    (decode(path), args.filter(|arg| !arg.is_empty()).collect())
}

/// Undoes percent-encoding; a lone percent sign stays.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let hex = after.get(..2).filter(|_| *first == b'%');
        let byte = hex
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// I10, U10: the order is the one written.
    #[test]
    fn a_logger_uri_gives_path_and_arguments() {
        let (path, args) = parse("/usr/bin/log%20er?z=1&a=two+words&z=ignored&flag");
        assert_eq!(path, "/usr/bin/log er");
        assert_eq!(args, ["z", "1", "a", "two words", "flag"]);
        assert_eq!(parse("/l"), ("/l".into(), vec![]));
        assert_eq!(decode("100%"), "100%");
    }
}
