// SPDX-License-Identifier: Apache-2.0
//! Where spans go: a file or a socket that `DUNNAGE_TRACE` names, `file:///path` or `unix:///path`. Each
//! is a line, a whole `TracesData` of OTLP in JSON, as OpenTelemetry's collector reads and writes them.
//!
//! Nothing waits for it: what is not written yet is in a queue with a bound, and what comes when that is
//! full is counted and lost.

use crate::aside;
use serde_json::{Value, json};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

const VARIABLE: &str = "DUNNAGE_TRACE";
/// What may wait to be written, in bytes.
const MOST: usize = 128 << 10;
/// A file that is as long as this gets no more: somebody has forgotten it.
const LONGEST: u64 = 256 << 20;
/// How long who listens at a socket may take for what is written at once.
const PATIENCE: Duration = Duration::from_secs(1);

enum Place {
    File(PathBuf),
    Socket(PathBuf),
}

struct Out {
    place: Place,
    /// What is said of this process.
    resource: Value,
}

static OUT: OnceLock<Out> = OnceLock::new();

struct Queue {
    lines: Vec<u8>,
    is_being_written: bool,
    lost: u64,
}

static QUEUE: Mutex<Queue> = Mutex::new(Queue {
    lines: Vec::new(),
    is_being_written: false,
    lost: 0,
});

fn queue() -> MutexGuard<'static, Queue> {
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Spans of this process, a `service` of this version, go from now on where the environment says, if it
/// says so; `attributes` are what else there is to say of it.
pub fn start(service: &str, version: &str, attributes: &[(&str, &str)]) {
    let Some(said) = std::env::var_os(VARIABLE).filter(|said| !said.is_empty()) else {
        return;
    };
    let said = said.to_string_lossy();
    let place = match said.split_once("://") {
        Some(("file", path)) if path.starts_with('/') => Place::File(path.into()),
        Some(("unix", path)) if path.starts_with('/') => Place::Socket(path.into()),
        _ => {
            let text = "neither file:///path nor unix:///path: nothing is traced";
            return log::warn!("{VARIABLE}={said:?}: {text}");
        }
    };
    let pid = i64::from(std::process::id());
    let text = |(key, value): &(&str, &str)| json!({"key": key, "value": {"stringValue": value}});
    let known = [("service.name", service), ("service.version", version)];
    let mut all: Vec<Value> = known.iter().chain(attributes).map(text).collect();
    all.push(json!({"key": "process.pid", "value": {"intValue": pid.to_string()}}));
    let resource = json!({"attributes": all});
    let _ = OUT.set(Out { place, resource });
}

pub fn is_on() -> bool {
    OUT.get().is_some()
}

/// A span is whole.
pub fn put(span: &Value) {
    let Some(out) = OUT.get() else { return };
    let scope = json!({"scope": {"name": "dunnage"}, "spans": [span]});
    let data = json!({"resourceSpans": [{"resource": out.resource, "scopeSpans": [scope]}]});
    let line = format!("{data}\n");
    let mut queue = queue();
    if queue.lines.len() + line.len() > MOST {
        queue.lost += 1;
        return;
    }
    queue.lines.extend_from_slice(line.as_bytes());
    if !queue.is_being_written {
        queue.is_being_written = true;
        drop(queue);
        aside::forget(move || out.write_all());
    }
}

impl Out {
    /// Until nothing is left.
    fn write_all(&self) {
        loop {
            let (lines, lost) = {
                let mut queue = queue();
                queue.is_being_written = !queue.lines.is_empty();
                if !queue.is_being_written {
                    return;
                }
                (
                    std::mem::take(&mut queue.lines),
                    std::mem::take(&mut queue.lost),
                )
            };
            if lost > 0 {
                log::warn!("{VARIABLE}: {lost} spans were lost, more came than were written");
            }
            if let Err(e) = self.write(&lines) {
                log::warn!("{VARIABLE}: spans are lost: {e}");
            }
        }
    }

    fn write(&self, lines: &[u8]) -> io::Result<()> {
        match &self.place {
            Place::File(path) => {
                let mut options = OpenOptions::new();
                let mut file = options
                    .append(true)
                    .create(true)
                    .mode(0o600)
                    .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
                    .open(path)?;
                let about = file.metadata()?;
                if about.is_file() && about.len() > LONGEST {
                    let text = format!("{} has {LONGEST} bytes, and gets no more", path.display());
                    return Err(io::Error::other(text));
                }
                file.write_all(lines)
            }
            Place::Socket(path) => {
                let mut socket = UnixStream::connect(path)?;
                socket.set_write_timeout(Some(PATIENCE))?;
                socket.write_all(lines)
            }
        }
    }
}
