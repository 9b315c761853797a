// SPDX-License-Identifier: Apache-2.0
//! The configuration: `/etc/dunnage/config.toml` and the drop-ins beside it, every key with its
//! meaning.
//!
//! Drop-ins are `config.d/*.toml` in the order of their names; a later key replaces an earlier
//! one. A key that does not exist is an error that names it.

mod files;
mod image;
mod logger;
mod network;
mod span;

use files::Files;
pub use image::Image;
pub use logger::Logger;
pub use network::Network;
use serde::{Deserialize, Deserializer};
pub use span::Span;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where it is unless `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/dunnage/config.toml";
/// Bytes that the path of a socket may have (unix(7), less the zero at its end).
const SOCKET_PATH: usize = 107;
/// Of which 69 are a shim's: a slash, four letters, and the hash that its socket is called by.
const SHIM_SOCKET_DIR: usize = 38;

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The version of this file's format: 1.
    pub version: u32,
    /// What survives a reboot: container and namespace records.
    pub root: PathBuf,
    /// What does not: sockets, bundles, the journal.
    pub state: PathBuf,
    pub grpc: Grpc,
    pub ttrpc: Ttrpc,
    pub shim: Shim,
    pub runtime: Runtime,
    pub journal: Journal,
    pub restart: Restart,
    pub metrics: Metrics,
    pub log: Log,
    pub logger: Logger,
    pub network: Network,
    pub image: Image,
}

/// containerd's API.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Grpc {
    /// The socket; default `<state>/dunnage.sock`.
    pub address: PathBuf,
    /// Who owns the socket.
    pub uid: u32,
    pub gid: u32,
    /// Its mode, in octal.
    #[serde(deserialize_with = "octal")]
    pub mode: u32,
}

/// Where shims send events.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ttrpc {
    /// The socket; default is gRPC's with `.ttrpc` behind it.
    pub address: PathBuf,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shim {
    /// Where shims that ask for it make their sockets; at most 38 bytes.
    pub socket_dir: PathBuf,
    /// `KEY=value` pairs for shims.
    pub env: Vec<String>,
    /// How long `start` may take.
    pub start_timeout: Span,
    /// What becomes of a container whose shim dies: "kill" or "keep".
    pub on_death: OnDeath,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDeath {
    Kill,
    Keep,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Runtime {
    /// The runtime of `dunnage run` and `create`.
    pub default: String,
    /// Names of runtimes and the paths of their shims.
    pub paths: BTreeMap<String, PathBuf>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Journal {
    /// "run": in `state`, survives what containers survive; "disk": in `root`, synced.
    #[serde(rename = "where")]
    pub place: Place,
    /// How many records are kept.
    pub max_records: u64,
    /// How many bytes of them.
    pub max_size: u64,
    /// How long records are kept.
    pub max_age: Span,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    Run,
    Disk,
}

/// How containers with containerd's restart labels are restarted.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Restart {
    pub backoff_min: Span,
    pub backoff_max: Span,
    /// A container that ran for this long starts with the shortest backoff again.
    pub reset_after: Span,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// A unix socket's path, or IP:PORT; empty for none.
    pub address: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// "error", "warn", "info", "debug" or "trace".
    pub level: String,
    /// "text" or "json".
    pub format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Text,
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            version: 1,
            root: "/var/lib/dunnage".into(),
            state: "/run/dunnage".into(),
            grpc: Grpc::default(),
            ttrpc: Ttrpc::default(),
            shim: Shim::default(),
            runtime: Runtime::default(),
            journal: Journal::default(),
            restart: Restart::default(),
            metrics: Metrics::default(),
            log: Log::default(),
            logger: Logger::default(),
            network: Network::default(),
            image: Image::default(),
        }
    }
}

impl Default for Grpc {
    fn default() -> Self {
        Self {
            address: PathBuf::new(),
            uid: 0,
            gid: 0,
            mode: 0o660,
        }
    }
}

impl Default for Shim {
    fn default() -> Self {
        Self {
            socket_dir: PathBuf::new(),
            env: Vec::new(),
            start_timeout: Span(Duration::from_secs(10)),
            on_death: OnDeath::Kill,
        }
    }
}

impl Default for Runtime {
    fn default() -> Self {
        Self {
            default: "io.containerd.runc.v2".into(),
            paths: BTreeMap::new(),
        }
    }
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            place: Place::Run,
            max_records: 100_000,
            max_size: 32 << 20,
            max_age: Span(Duration::from_secs(168 * 3600)),
        }
    }
}

impl Default for Restart {
    fn default() -> Self {
        Self {
            backoff_min: Span(Duration::from_millis(100)),
            backoff_max: Span(Duration::from_secs(60)),
            reset_after: Span(Duration::from_secs(10)),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: "info".into(),
            format: Format::Text,
        }
    }
}

impl Config {
    /// Reads `path` and its drop-ins. The default file may be missing.
    ///
    /// # Errors
    /// A text with the file and the key.
    pub fn load(path: Option<&Path>) -> Result<Self, String> {
        let main = path.unwrap_or(Path::new(DEFAULT_PATH));
        let mut read = Files::default();
        if path.is_some() || main.exists() {
            read.read(main)?;
        }
        let drop_ins = main.with_file_name("config.d");
        let mut files: Vec<PathBuf> = std::fs::read_dir(&drop_ins)
            .map(|dir| dir.filter_map(|e| Some(e.ok()?.path())).collect())
            .unwrap_or_default();
        files.retain(|file| file.extension().is_some_and(|e| e == "toml"));
        files.sort_unstable();
        for file in files {
            read.read(&file)?;
        }
        let config = read.merged().try_into();
        let mut config: Self = config.map_err(|e| format!("{}: {e}", main.display()))?;
        config.complete().map_err(|e| read.blame(&e, main))?;
        Ok(config)
    }

    /// The shims that are named and not there: the daemon goes on without them, until somebody asks for
    /// one.
    pub fn absent(&self) -> Vec<String> {
        let paths = self.runtime.paths.iter();
        let absent = paths.filter(|(_, path)| !path.is_file());
        absent
            .map(|(name, path)| format!("runtime.paths.{name:?}: {path:?}: no such file"))
            .collect()
    }

    /// Fills in what follows from other keys.
    ///
    /// # Errors
    /// A text with the key that does not fit.
    pub fn complete(&mut self) -> Result<(), String> {
        if self.version != 1 {
            return Err(format!(
                "version: {} is not supported, only 1",
                self.version
            ));
        }
        let or = |path: &mut PathBuf, default: PathBuf| {
            if path.as_os_str().is_empty() {
                *path = default;
            }
        };
        or(&mut self.grpc.address, self.state.join("dunnage.sock"));
        let mut ttrpc = self.grpc.address.clone().into_os_string();
        ttrpc.push(".ttrpc");
        or(&mut self.ttrpc.address, ttrpc.into());
        or(&mut self.shim.socket_dir, self.state.join("s"));
        for (key, path) in [
            ("root", &self.root),
            ("state", &self.state),
            ("grpc.address", &self.grpc.address),
            ("ttrpc.address", &self.ttrpc.address),
            ("shim.socket_dir", &self.shim.socket_dir),
        ] {
            if !path.is_absolute() {
                return Err(format!("{key}: {path:?} is not an absolute path"));
            }
        }
        self.fits()?;
        self.network.fits()?;
        if let Some(pair) = self.shim.env.iter().find(|pair| !pair.contains('=')) {
            return Err(format!("shim.env: {pair:?} is not KEY=value"));
        }
        if self.log.level.parse::<log::LevelFilter>().is_err() {
            return Err(format!("log.level: {:?} is no level", self.log.level));
        }
        Ok(())
    }

    /// Whether each value is one that the daemon can go on with.
    fn fits(&self) -> Result<(), String> {
        let metrics = Path::new(&self.metrics.address);
        for (key, path, most) in [
            ("grpc.address", self.grpc.address.as_path(), SOCKET_PATH),
            ("ttrpc.address", &self.ttrpc.address, SOCKET_PATH),
            ("metrics.address", metrics, SOCKET_PATH),
            ("shim.socket_dir", &self.shim.socket_dir, SHIM_SOCKET_DIR),
        ] {
            let length = path.as_os_str().len();
            if length > most {
                return Err(format!("{key}: {path:?} has {length} bytes, {most} fit"));
            }
        }
        let address = &self.metrics.address;
        if !address.is_empty() && metrics.is_relative() && address.parse::<SocketAddr>().is_err() {
            return Err(format!(
                "metrics.address: {address:?} is neither IP:PORT nor the path of a socket"
            ));
        }
        if self.grpc.mode > 0o777 {
            return Err(format!(
                "grpc.mode: {:o} is no mode of a file",
                self.grpc.mode
            ));
        }
        if self.shim.start_timeout.0.is_zero() {
            return Err("shim.start_timeout: no shim starts in 0s".into());
        }
        let (min, max) = (self.restart.backoff_min.0, self.restart.backoff_max.0);
        if min > max {
            let why = format!("{min:?} is more than restart.backoff_max, {max:?}");
            return Err(format!("restart.backoff_min: {why}"));
        }
        for (name, path) in &self.runtime.paths {
            if path.is_relative() {
                return Err(format!("runtime.paths.{name:?}: {path:?} is not absolute"));
            }
        }
        self.image.check()
    }

    pub fn debug(&self) -> bool {
        matches!(self.log.level.as_str(), "debug" | "trace")
    }

    pub fn journal_dir(&self) -> PathBuf {
        match self.journal.place {
            Place::Run => self.state.join("journal"),
            Place::Disk => self.root.join("journal"),
        }
    }
}

fn octal<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let text = String::deserialize(deserializer)?;
    u32::from_str_radix(&text, 8)
        .map_err(|_| serde::de::Error::custom(format!("{text:?} is no octal mode")))
}

#[cfg(test)]
mod tests;
