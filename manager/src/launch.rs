//! Starting a shim, and asking a dead one's binary to clean up: the command lines, both dialects
//! of `start`'s stdin and all three of its answer (contract B9, B21).

use crate::bundles::Bundle;
use crate::config::Config;
use crate::failure::{Failure, invalid, io, not_found, unknown};
use crate::renewal::program;
use prost::Message;
use protos::bootstrap::{BootstrapParams, BootstrapResult, Extension};
use protos::task::DeleteResponse;
use protos::{Any, Code};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;
use task::foreign::{SMALL, read_head, read_whole};
use task::reaper::Reaper;

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
            return Err(crate::failure::unimplemented(format!(
                "unsupported shim version ({})",
                found.version
            )));
        }
        if found.protocol != "ttrpc" {
            return Err(crate::failure::unimplemented(format!(
                "shim protocol {:?}",
                found.protocol
            )));
        }
        if found.path().is_none() {
            return Err(crate::failure::unimplemented(format!(
                "shim address {:?}",
                found.address
            )));
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

/// Inode and time of change of a binary.
type Identity = (u64, i64);

/// What the shim's stdin is to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    /// BootstrapParams: containerd 2.3 and later; ours; 1.7 to 2.2 take it too.
    Bootstrap,
    /// The runtime's options as an Any: the only one that 1.6 takes.
    Legacy,
}

pub struct Launcher {
    config: Rc<Config>,
    pub reaper: Rc<Reaper>,
    /// Which dialect a binary took, by path, inode and time of change.
    dialects: RefCell<HashMap<PathBuf, (Identity, Dialect)>>,
}

impl Launcher {
    pub fn new(config: Rc<Config>, reaper: Rc<Reaper>) -> Self {
        Self {
            config,
            reaper,
            dialects: RefCell::default(),
        }
    }

    /// The binary of a runtime: an absolute path, or `a.b.NAME.VERSION` (contract B1).
    ///
    /// # Errors
    /// `InvalidArgument` for what is neither, `NotFound` if there is no such binary.
    pub fn resolve(&self, runtime: &str) -> Result<PathBuf, Failure> {
        if let Some(path) = self.config.runtime.paths.get(runtime) {
            return Ok(path.clone());
        }
        if runtime.starts_with('/') {
            return match Path::new(runtime).is_file() {
                true => Ok(runtime.into()),
                false => Err(not_found(format!("runtime {runtime:?}"))),
            };
        }
        let mut parts = runtime.rsplit('.');
        let (version, name) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        if runtime.contains('/') || name.is_empty() || version.is_empty() {
            return Err(invalid(format!(
                "invalid runtime name {runtime}, correct runtime name should be either format \
                 like `io.containerd.runc.v2` or a full path to the binary"
            )));
        }
        let binary = format!("containerd-shim-{name}-{version}");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let beside = std::env::current_exe().ok();
        let beside = beside.as_deref().and_then(Path::parent).map(Path::to_owned);
        let mut candidates = std::env::split_paths(&path)
            .chain(beside)
            .map(|dir| dir.join(&binary));
        candidates.find(|path| path.is_file()).ok_or_else(|| {
            not_found(format!(
                "runtime {runtime:?}: binary {binary:?} not installed"
            ))
        })
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
        bundle.write_shim_path(shim)?;
        let known = self.known(shim);
        let first = known.unwrap_or(Dialect::Bootstrap);
        let result = match self.start_as(first, bundle, shim, options).await {
            Err(e) if known.is_none() && e.code != Code::DeadlineExceeded => {
                match self.start_as(Dialect::Legacy, bundle, shim, options).await {
                    Ok(address) => {
                        self.learn(shim, Dialect::Legacy);
                        Ok(address)
                    }
                    // Both failed: what the newer dialect got tells more.
                    Err(_) => Err(e),
                }
            }
            Ok(address) => {
                self.learn(shim, first);
                Ok(address)
            }
            other => other,
        };
        let address = result?;
        bundle.write_address(&address)?;
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
        let failed = |what: &str| io(format!("start {}: {what}", shim.display()));
        // A file: its content survives us, and whoever comes after us finds the shim by it. It
        // is locked for as long as `start` has it open, with us or after us.
        let out = File::create(bundle.start_out()).map_err(failed("start.out"))?;
        crate::sys::lock(&out).map_err(failed("lock start.out"))?;
        let errors = File::create(bundle.path().join("start.err")).map_err(failed("start.err"))?;
        let mut command = self.command(bundle, shim);
        command
            .arg("start")
            .stdin(pipe_of(&stdin).map_err(failed("stdin"))?)
            .stdout(out)
            .stderr(errors);
        let mut child = self.reaper.spawn(&mut command).map_err(failed("exec"))?;
        // Else the last copy of the pipe's reading end would be ours.
        drop(command);
        let timeout = self.config.shim.start_timeout.0;
        let Ok(status) = tokio::time::timeout(timeout, child.exit()).await else {
            child.kill(nix::sys::signal::Signal::SIGKILL);
            return Err(protos::Status::new(
                Code::DeadlineExceeded,
                format!("{} start: no answer in {timeout:?}", shim.display()),
            ));
        };
        let printed = read_head(&bundle.start_out(), SMALL).map_err(failed("start.out"))?;
        if !status.success() {
            let said = read_head(&bundle.path().join("start.err"), SMALL).unwrap_or_default();
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
        let shim = bundle
            .shim_path()
            .ok_or_else(|| not_found(format!("shim of {:?}", bundle.id)))?;
        let failed = |what: &str| io(format!("delete with {}: {what}", shim.display()));
        let out = bundle.path().join("delete.out");
        let mut command = self.command(bundle, &shim);
        command
            .arg("-bundle")
            .arg(bundle.path())
            .arg("delete")
            .stdin(Stdio::null())
            .stdout(File::create(&out).map_err(failed("delete.out"))?)
            .stderr(Stdio::inherit());
        let mut child = self.reaper.spawn(&mut command).map_err(failed("exec"))?;
        let Ok(status) = tokio::time::timeout(DELETE_TIMEOUT, child.exit()).await else {
            child.kill(nix::sys::signal::Signal::SIGKILL);
            return Err(unknown(format!("{} delete: no answer", shim.display())));
        };
        if !status.success() {
            return Err(unknown(format!("{} delete: {status}", shim.display())));
        }
        let bytes = read_whole(&out, SMALL).map_err(failed("delete.out"))?;
        DeleteResponse::decode(bytes.as_slice())
            .map_err(|e| unknown(format!("{} delete: {e}", shim.display())))
    }

    fn command(&self, bundle: &Bundle, shim: &Path) -> Command {
        let config = &self.config;
        let mut command = Command::new(shim);
        command
            .current_dir(bundle.path())
            .process_group(0)
            .arg("-namespace")
            .arg(&bundle.namespace)
            .arg("-address")
            .arg(&config.grpc.address)
            // Old shims run it to publish an event.
            .arg("-publish-binary")
            .arg(program())
            .arg("-id")
            .arg(&bundle.id)
            .env("TTRPC_ADDRESS", &config.ttrpc.address)
            .env("GRPC_ADDRESS", &config.grpc.address)
            .env("NAMESPACE", &bundle.namespace)
            .env("MAX_SHIM_VERSION", "2")
            .env("GOMAXPROCS", "2")
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

    fn params(&self, bundle: &Bundle, options: Option<&Any>) -> BootstrapParams {
        let config = &self.config;
        let level = if config.debug() {
            protos::bootstrap::LogLevel::Debug
        } else {
            protos::bootstrap::LogLevel::Info
        };
        BootstrapParams {
            instance_id: bundle.id.clone(),
            namespace: bundle.namespace.clone(),
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

    fn known(&self, shim: &Path) -> Option<Dialect> {
        let dialects = self.dialects.borrow();
        let (of, dialect) = dialects.get(shim)?;
        (identity(shim)? == *of).then_some(*dialect)
    }

    fn learn(&self, shim: &Path, dialect: Dialect) {
        if let Some(identity) = identity(shim) {
            let mut dialects = self.dialects.borrow_mut();
            if dialects.len() >= DIALECTS {
                dialects.clear();
            }
            dialects.insert(shim.to_owned(), (identity, dialect));
        }
    }
}

fn identity(shim: &Path) -> Option<Identity> {
    let metadata = fs::metadata(shim).ok()?;
    Some((metadata.ino(), metadata.mtime()))
}

/// A pipe that holds `bytes`, at its end.
fn pipe_of(bytes: &[u8]) -> std::io::Result<Stdio> {
    /// What a pipe holds without a reader (pipe(7)).
    const CAPACITY: usize = 64 << 10;
    if bytes.len() > CAPACITY {
        return Err(std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            "runtime options over 64 KiB",
        ));
    }
    let (reader, mut writer) = std::io::pipe()?;
    writer.write_all(bytes)?;
    Ok(reader.into())
}

#[cfg(test)]
mod tests;
