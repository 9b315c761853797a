// SPDX-License-Identifier: Apache-2.0
//! QEMU's monitor (QMP): what a machine is asked for that is saved, or goes on as one that was. A machine
//! with a container in it has one if its settings say so (`checkpoints`).

use super::line;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream;
use task::handover::Kept;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

/// The most that QEMU says in a line, in bytes.
const LONGEST: usize = 64 << 10;
/// The first of QEMU's versions that goes on as a machine was that had no file server, with one
/// (vhost-user-fs, which cannot be saved itself), and that keeps memory so that it is read at once.
const NEEDED: (u64, &str) = (10, "10");

pub struct Monitor {
    pub(super) stream: BufReader<tokio::net::UnixStream>,
    /// Events that came before an answer.
    events: VecDeque<Value>,
    /// QEMU's version.
    pub version: String,
}

/// The way to the monitor of a machine, for whenever it is wanted.
pub struct Access {
    socket: UnixStream,
    /// QEMU's version, once it was asked for anything.
    version: RefCell<Option<String>>,
}

/// The same, for another process image.
#[derive(Debug, Serialize, Deserialize)]
pub struct Moved(i32, Option<String>);

impl Access {
    pub fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            version: RefCell::default(),
        }
    }

    /// The monitor, which nobody else has open now.
    ///
    /// # Errors
    /// As for [`Monitor::new`].
    pub async fn open(&self) -> Result<Monitor, String> {
        let socket = self.socket.try_clone();
        let socket = socket.map_err(|e| format!("QEMU's monitor: {e}"))?;
        let version = self.version.borrow().clone();
        if let Some(version) = version {
            return Monitor::over(socket, version);
        }
        let monitor = Monitor::new(socket).await?;
        self.version.replace(Some(monitor.version.clone()));
        Ok(monitor)
    }

    /// Describes it for another process image.
    ///
    /// # Errors
    /// If no fd is free.
    pub fn hand_over(&self, kept: &mut Kept) -> io::Result<Moved> {
        let version = self.version.borrow().clone();
        Ok(Moved(kept.keep(&self.socket)?, version))
    }

    /// Goes on with that of another process image.
    ///
    /// # Errors
    /// If the fd is not there.
    pub fn take_over(moved: Moved) -> io::Result<Self> {
        Ok(Self {
            socket: task::sys::adopt(moved.0)?.into(),
            version: RefCell::new(moved.1),
        })
    }
}

impl Monitor {
    /// With one that has greeted before.
    fn over(socket: UnixStream, version: String) -> Result<Self, String> {
        let failed = |e: io::Error| format!("QEMU's monitor: {e}");
        socket.set_nonblocking(true).map_err(failed)?;
        let socket = tokio::net::UnixStream::from_std(socket).map_err(failed)?;
        Ok(Self {
            stream: BufReader::new(socket),
            events: VecDeque::new(),
            version,
        })
    }

    /// Over this socket, when QEMU has greeted.
    ///
    /// # Errors
    /// If it does not, or is too old for what is wanted of it.
    pub async fn new(socket: UnixStream) -> Result<Self, String> {
        let mut monitor = Self::over(socket, String::new())?;
        let greeting = monitor.next().await?;
        let number = |name: &str| greeting["QMP"]["version"]["qemu"][name].as_u64();
        let numbers = ["major", "minor", "micro"].map(|name| number(name).unwrap_or_default());
        let [major, minor, micro] = numbers;
        monitor.version = format!("{major}.{minor}.{micro}");
        if major < NEEDED.0 {
            let (version, needed) = (&monitor.version, NEEDED.1);
            return Err(format!(
                "QEMU {version} goes on with no machine that has files: {needed} or later does"
            ));
        }
        monitor.ask("qmp_capabilities", json!({})).await?;
        Ok(monitor)
    }

    /// Saves the machine to the file that it was given, and waits until it is there; it stands still then.
    ///
    /// # Errors
    /// QEMU's.
    pub async fn save(&mut self) -> Result<(), String> {
        let on = |name: &str| json!({"capability": name, "state": true});
        let capabilities = json!({"capabilities": [on("mapped-ram"), on("events")]});
        self.ask("migrate-set-capabilities", capabilities).await?;
        // As fast as it goes, and without a look at how long the guest would stand still.
        let parameters = json!({"max-bandwidth": 1_u64 << 40, "downtime-limit": 60_000});
        self.ask("migrate-set-parameters", parameters).await?;
        let uri = json!({"uri": line::saved_to()});
        self.ask("migrate", uri).await?;
        self.migrated().await
    }

    /// Waits until a machine is saved, or goes on.
    ///
    /// # Errors
    /// QEMU's.
    pub(super) async fn migrated(&mut self) -> Result<(), String> {
        loop {
            let said = match self.events.pop_front() {
                Some(event) => event,
                None => self.next().await?,
            };
            if said["event"] != "MIGRATION" {
                continue;
            }
            match said["data"]["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => break,
                _ => {}
            }
        }
        let status = self.ask("query-migrate", json!({})).await?;
        let why = status["error-desc"].as_str().unwrap_or("QEMU says no more");
        Err(format!("it is not saved: {why}"))
    }

    pub(super) async fn ask(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let request = json!({"execute": command, "arguments": arguments}).to_string();
        let sent = self.stream.write_all(request.as_bytes()).await;
        sent.map_err(|e| format!("{command}: {e}"))?;
        self.answer(command).await
    }

    /// What it answers to what it was asked.
    ///
    /// # Errors
    /// QEMU's.
    pub(super) async fn answer(&mut self, command: &str) -> Result<Value, String> {
        loop {
            let said = self.next().await?;
            if let Some(error) = said.get("error") {
                let why = error["desc"].as_str().unwrap_or("refused");
                return Err(format!("{command}: {why}"));
            }
            if let Some(answer) = said.get("return") {
                return Ok(answer.clone());
            }
            self.events.push_back(said);
        }
    }

    /// What it says next.
    async fn next(&mut self) -> Result<Value, String> {
        let mut line = Vec::new();
        loop {
            let buffer = self.stream.fill_buf().await;
            let buffer = buffer.map_err(|e| format!("QEMU's monitor: {e}"))?;
            if buffer.is_empty() || line.len() > LONGEST {
                return Err("QEMU's monitor: it ended, or says too much".into());
            }
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(buffer.len(), |end| end + 1);
            line.extend_from_slice(&buffer[..taken]);
            self.stream.consume(taken);
            if end.is_some() {
                let said = serde_json::from_slice(&line);
                return said.map_err(|e| format!("QEMU's monitor: {e}"));
            }
        }
    }
}
