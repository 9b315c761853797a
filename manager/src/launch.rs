// SPDX-License-Identifier: Apache-2.0
//! Starting a shim, and asking a dead one's binary to clean up: the command lines, both dialects
//! of `start`'s stdin and all three of its answer (contract B9, B21).

mod binary;

use crate::bundles::{Bundle, Files};
use crate::config::{Config, OnDeath};
use crate::failure::{self, Failure, not_found, unimplemented, unknown};
pub use binary::program;
use binary::{Identity, identity};
use nix::sys::signal::Signal;
use prost::Message;
use protos::bootstrap::{BootstrapParams, BootstrapResult, Extension};
use protos::task::DeleteResponse;
use protos::{Any, Code};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use task::Command;
use task::reaper::{ExitStatus, Reaper};
use task::record::{ADOPT, ON_SHIM_DEATH};

/// The latest version of the shim protocol that we speak.
const MAX_VERSION: i32 = 3;
/// How long `delete` may take (contract T5, and runc's own 10 s for stubborn processes).
const DELETE_TIMEOUT: Duration = Duration::from_secs(30);

/// So many shims' dialects are remembered; one that is forgotten is found out anew.
const DIALECTS: usize = 64;

/// How a shim is reached, in containerd's words (bootstrap.json).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    pub version: i32,
    pub address: String,
    #[serde(default = "ttrpc")]
    pub protocol: String,
}

fn ttrpc() -> String {
    "ttrpc".into()
}

impl Address {
    /// Reads what `start` printed: a BootstrapResult, JSON, or a bare address (contract B21).
    ///
    /// # Errors
    /// If it is none of them, or asks for what we don't speak.
    pub fn parse(printed: &[u8]) -> Result<Self, Failure> {
        let found = Self::read(printed).ok_or_else(|| {
            unknown(format!(
                "no address in {:?}",
                String::from_utf8_lossy(printed)
            ))
        })?;
        if found.version > MAX_VERSION {
            return Err(unimplemented(format!(
                "unsupported shim version ({})",
                found.version
            )));
        }
        if found.protocol != "ttrpc" {
            return Err(unimplemented(format!("shim protocol {:?}", found.protocol)));
        }
        if found.path().is_none() {
            return Err(unimplemented(format!("shim address {:?}", found.address)));
        }
        Ok(found)
    }

    fn read(printed: &[u8]) -> Option<Self> {
        if let Ok(result) = BootstrapResult::decode(printed)
            && !result.address.is_empty()
        {
            return Some(Self {
                version: result.version,
                address: result.address,
                protocol: Some(result.protocol)
                    .filter(|p| !p.is_empty())
                    .unwrap_or_else(ttrpc),
            });
        }
        if let Ok(json) = task::json::read::<Self>(printed) {
            return Some(json);
        }
        let text = std::str::from_utf8(printed).ok()?.trim();
        let plain = !text.is_empty() && !text.contains(char::is_whitespace);
        plain.then(|| Self {
            version: 2,
            address: text.to_owned(),
            protocol: ttrpc(),
        })
    }

    /// The unix socket's path.
    pub fn path(&self) -> Option<&Path> {
        let path = self
            .address
            .strip_prefix("unix://")
            .unwrap_or(&self.address);
        path.starts_with('/').then(|| Path::new(path))
    }
}

/// What the shim's stdin is to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    /// BootstrapParams: containerd 2.3 and later; ours; 1.7 to 2.2 take it too.
    Bootstrap,
    /// The runtime's options as an Any: the only one that 1.6 takes.
    Legacy,
}

pub struct Launcher {
    config: Arc<Config>,
    pub reaper: Rc<Reaper>,
    /// Which dialect a binary took, by path, inode and time of change.
    dialects: RefCell<HashMap<PathBuf, (Identity, Dialect)>>,
}

impl Launcher {
    pub fn new(config: Arc<Config>, reaper: Rc<Reaper>) -> Self {
        Self {
            config,
            reaper,
            dialects: RefCell::default(),
        }
    }

    /// The binary of a runtime: see [`binary::resolve`].
    ///
    /// # Errors
    /// As that.
    pub async fn resolve(&self, runtime: &str) -> Result<PathBuf, Failure> {
        match self.config.runtime.paths.get(runtime) {
            Some(path) => Ok(path.clone()),
            None => binary::resolve(runtime).await,
        }
    }

    /// Starts the shim of `bundle`, or finds the one of its group; where it listens.
    ///
    /// # Errors
    /// With what the shim said.
    pub async fn start(
        &self,
        bundle: &Bundle,
        shim: &Path,
        options: Option<&Any>,
    ) -> Result<Address, Failure> {
        let path = shim.to_owned();
        let written = bundle.with(move |files| files.write_shim_path(&path));
        written.await?;
        let identity = identity(shim).await;
        let known = self.known(shim, identity);
        let first = known.unwrap_or(Dialect::Bootstrap);
        let result = match self.start_as(first, bundle, shim, options).await {
            Err(e) if known.is_none() && e.code != Code::DeadlineExceeded => {
                match self.start_as(Dialect::Legacy, bundle, shim, options).await {
                    Ok(address) => {
                        self.learn(shim, identity, Dialect::Legacy);
                        Ok(address)
                    }
                    // Both failed: what the newer dialect got tells more.
                    Err(_) => Err(e),
                }
            }
            Ok(address) => {
                self.learn(shim, identity, first);
                Ok(address)
            }
            other => other,
        };
        let address = result?;
        let found = address.clone();
        let written = bundle.with(move |files| files.write_address(&found));
        written.await?;
        Ok(address)
    }

    async fn start_as(
        &self,
        dialect: Dialect,
        bundle: &Bundle,
        shim: &Path,
        options: Option<&Any>,
    ) -> Result<Address, Failure> {
        let stdin = match dialect {
            Dialect::Bootstrap => self.params(bundle, options).encode_to_vec(),
            Dialect::Legacy => options.map(Message::encode_to_vec).unwrap_or_default(),
        };
        let failed = |what: &str| failure::io(format!("start {}: {what}", shim.display()));
        let outputs = bundle.with(Files::outputs_of_start).await;
        let (out, errors) = outputs.map_err(failed("start.out"))?;
        let mut command = self.command(bundle, shim);
        command
            .arg("start")
            .stdin(pipe_of(&stdin).map_err(failed("stdin"))?)
            .stdout(out)
            .stderr(errors);
        let ended = run(&self.reaper, command, self.config.shim.start_timeout.0).await;
        let status = ended.map_err(|e| match e.kind() {
            ErrorKind::TimedOut => {
                let text = format!("{} start: {e}", shim.display());
                protos::Status::new(Code::DeadlineExceeded, text)
            }
            _ => failed("exec")(e),
        })?;
        let said = bundle.with(Files::said_by_start).await;
        let (printed, said) = said.map_err(failed("start.out"))?;
        if !status.success() {
            let said = String::from_utf8_lossy(&said);
            let printed = String::from_utf8_lossy(&printed);
            return Err(unknown(format!(
                "failed to start shim: start failed: {}{}: {status}",
                said.trim(),
                printed.trim()
            )));
        }
        Address::parse(&printed)
    }

    /// Has the shim's binary clean up after a shim that is gone.
    ///
    /// # Errors
    /// If it fails; the container may then be left.
    pub async fn delete(&self, bundle: &Bundle) -> Result<DeleteResponse, Failure> {
        let shim = bundle.with(Files::shim_path).await;
        let shim = shim.ok_or_else(|| not_found(format!("shim of {:?}", bundle.id())))?;
        let failed = |what: &str| failure::io(format!("delete with {}: {what}", shim.display()));
        let out = bundle.with(Files::output_of_delete).await;
        let mut command = self.command(bundle, &shim);
        command
            .arg("-bundle")
            .arg(bundle.path())
            .arg("delete")
            .null([libc::STDIN_FILENO])
            .stdout(out.map_err(failed("delete.out"))?);
        let ended = run(&self.reaper, command, DELETE_TIMEOUT).await;
        let status = ended.map_err(failed("exec"))?;
        if !status.success() {
            return Err(unknown(format!("{} delete: {status}", shim.display())));
        }
        let bytes = bundle.with(Files::answer_of_delete).await;
        let bytes = bytes.map_err(failed("delete.out"))?;
        DeleteResponse::decode(bytes.as_slice())
            .map_err(|e| unknown(format!("{} delete: {e}", shim.display())))
    }

    fn command(&self, bundle: &Bundle, shim: &Path) -> Command {
        let config = &self.config;
        let mut command = Command::new(shim);
        command
            .current_dir(bundle.path())
            .lead_group()
            .arg("-namespace")
            .arg(&bundle.key.namespace)
            .arg("-address")
            .arg(&config.grpc.address)
            // Old shims run it to publish an event.
            .arg("-publish-binary")
            .arg(program())
            .arg("-id")
            .arg(bundle.id())
            .env("TTRPC_ADDRESS", &config.ttrpc.address)
            .env("GRPC_ADDRESS", &config.grpc.address)
            .env("NAMESPACE", &bundle.key.namespace)
            .env("MAX_SHIM_VERSION", "2")
            .env("GOMAXPROCS", "2")
            .env(ON_SHIM_DEATH, self.on_shim_death())
            .env_remove("NOTIFY_SOCKET")
            .env_remove(crate::sockets::PASSED_ON)
            .env_remove("LISTEN_FDS")
            .env_remove("LISTEN_PID");
        for pair in &config.shim.env {
            if let Some((key, value)) = pair.split_once('=') {
                command.env(key, value);
            }
        }
        if config.debug() {
            command.arg("-debug");
        }
        command
    }

    /// What a shim that can be brought back after its death is to do then.
    fn on_shim_death(&self) -> &'static str {
        match self.config.shim.on_death {
            OnDeath::Keep => ADOPT,
            OnDeath::Kill => "kill",
        }
    }

    fn params(&self, bundle: &Bundle, options: Option<&Any>) -> BootstrapParams {
        let config = &self.config;
        let level = if config.debug() {
            protos::bootstrap::LogLevel::Debug
        } else {
            protos::bootstrap::LogLevel::Info
        };
        BootstrapParams {
            instance_id: bundle.id().to_owned(),
            namespace: bundle.key.namespace.clone(),
            log_level: level as i32,
            containerd_version: crate::VERSION.into(),
            containerd_ttrpc_address: config.ttrpc.address.display().to_string(),
            containerd_grpc_address: config.grpc.address.display().to_string(),
            containerd_binary: program().display().to_string(),
            extensions: options
                .map(|options| Extension {
                    value: Some(options.clone()),
                })
                .into_iter()
                .collect(),
            socket_dir: Some(config.shim.socket_dir.display().to_string()),
        }
    }

    fn known(&self, shim: &Path, identity: Option<Identity>) -> Option<Dialect> {
        let dialects = self.dialects.borrow();
        let (of, dialect) = dialects.get(shim)?;
        (identity? == *of).then_some(*dialect)
    }

    fn learn(&self, shim: &Path, identity: Option<Identity>, dialect: Dialect) {
        if let Some(identity) = identity {
            let mut dialects = self.dialects.borrow_mut();
            if dialects.len() >= DIALECTS {
                dialects.clear();
            }
            dialects.insert(shim.to_owned(), (identity, dialect));
        }
    }
}

/// Runs `command` to its end; one that takes longer than `timeout` is killed.
///
/// # Errors
/// If it cannot be executed, and `TimedOut`.
pub async fn run(reaper: &Reaper, command: Command, timeout: Duration) -> io::Result<ExitStatus> {
    let (mut child, not_executed) = reaper.spawn(&command)?;
    // Else the last copy of what the child reads from would be ours.
    drop(command);
    let Ok(status) = tokio::time::timeout(timeout, child.exit()).await else {
        child.kill(Signal::SIGKILL);
        let text = format!("no answer in {timeout:?}");
        return Err(io::Error::new(ErrorKind::TimedOut, text));
    };
    not_executed.error().map_or(Ok(status), Err)
}

/// A pipe that holds `bytes`, at its end.
fn pipe_of(bytes: &[u8]) -> io::Result<OwnedFd> {
    /// What a pipe holds without a reader (pipe(7)).
    const CAPACITY: usize = 64 << 10;
    if bytes.len() > CAPACITY {
        let text = "runtime options over 64 KiB";
        return Err(io::Error::new(ErrorKind::InvalidInput, text));
    }
    let (reader, mut writer) = io::pipe()?;
    writer.write_all(bytes)?;
    Ok(reader.into())
}

#[cfg(test)]
mod tests;
