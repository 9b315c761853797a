// SPDX-License-Identifier: Apache-2.0
//! Containers' networks, by CNI: what a container wishes, where its network lies, and when the daemon
//! has it made and taken away.
//!
//! ```text
//!  run ── label: the wish ──> record of the container
//!  create a task ─> the network is there? ── no ──> helper attach: netns ─> loopback, plugins ADD ─> files
//!  delete the record ─> the network is there? ── yes ─> helper detach: plugins DEL ─> netns, files away
//!
//! <root>/networks/<key>.json       what was asked of the plugins, and what they answered
//! <state>/networks/<key>/          netns (a mount), hosts, hostname, resolv.conf
//! ```
//! It outlives the tasks of its container. The helper is a process of its own (`attach`): the daemon never
//! runs a plugin, nor waits for one on its loop; it only looks whether a network is there.

pub mod attach;
pub mod config;
mod files;
mod netns;
mod plugin;
pub mod record;

use crate::config::Config;
use crate::failure::{Failure, unknown};
use crate::launch;
use crate::manager::Manager;
use crate::names::{Key, check_id};
use crate::store::Labels;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use protos::Code;
use protos::services::containers::v1::Container;
use serde::{Deserialize, Serialize};
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use task::Command;
use task::aside;
use task::reaper::Reaper;
use tokio::sync::Semaphore;

/// The label that has a container's wish, as JSON.
pub const LABEL: &str = "io.dunnage.network";
/// How long the helper may take: each plugin of a list has [`plugin::TIMEOUT`].
const TIMEOUT: Duration = Duration::from_secs(180);
/// So many helpers work at once: after a reboot every container wants one, and those of the plugins that
/// set up a firewall wait for each other anyway.
const HELPERS: usize = 8;
static TURNS: Semaphore = Semaphore::const_new(HELPERS);
/// The most of the helper's words that are told on.
const SAID: usize = 4096;

/// The network that a container is to have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// Names it, on this machine and for ever; the plugins know the container by it.
    pub key: String,
    /// The name of a list of plugins.
    pub network: String,
    pub hostname: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<IpAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<Host>,
}

/// A port of the host's that leads to one of the container's, in CNI's words (`portMappings`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    pub host_port: u16,
    pub container_port: u16,
    pub protocol: Protocol,
    #[serde(rename = "hostIP", default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Port {
    /// Whether one of the host's ports would have to lead to two places.
    pub fn conflicts(&self, other: &Self) -> bool {
        let any = |ip: Option<IpAddr>| ip.filter(|ip| !ip.is_unspecified());
        let same_ip = match (any(self.host_ip), any(other.host_ip)) {
            (Some(one), Some(another)) => one == another,
            _ => true,
        };
        same_ip && self.host_port == other.host_port && self.protocol == other.protocol
    }
}

impl std::fmt::Display for Port {
    /// As the command line has it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host_ip {
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:")?,
            Some(ip) => write!(f, "{ip}:")?,
            None => {}
        }
        write!(f, "{}:{}", self.host_port, self.container_port)?;
        match self.protocol {
            Protocol::Tcp => Ok(()),
            Protocol::Udp => write!(f, "/udp"),
        }
    }
}

/// A line more in /etc/hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    pub name: String,
    /// None: the network's gateway, by which the host is reached.
    pub address: Option<IpAddr>,
}

/// Where a network's files are.
#[derive(Clone, Debug)]
pub struct Place {
    pub dir: PathBuf,
    pub record: PathBuf,
}

impl Place {
    pub fn new(root: &Path, state: &Path, key: &str) -> Self {
        Self {
            dir: state.join("networks").join(key),
            record: root.join("networks").join(format!("{key}.json")),
        }
    }

    pub fn netns(&self) -> PathBuf {
        self.dir.join("netns")
    }

    /// Every file that a container gets of it, and where.
    pub fn files(&self) -> [(PathBuf, &'static str); 3] {
        ["hosts", "hostname", "resolv.conf"]
            .map(|name| (self.dir.join(name), name))
            .map(|(path, name)| match name {
                "hosts" => (path, "/etc/hosts"),
                "hostname" => (path, "/etc/hostname"),
                _ => (path, "/etc/resolv.conf"),
            })
    }

    /// All of it is there: nothing of it survives a reboot, and the record is completed last.
    fn is_whole(&self) -> bool {
        netns::is_there(&self.netns()) && record::read(&self.record).is_ok_and(|it| it.is_done)
    }

    fn has_something(&self) -> bool {
        self.dir.exists() || self.record.exists()
    }
}

/// What the helper is told, on its command line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    pub action: Action,
    root: PathBuf,
    state: PathBuf,
    network: crate::config::Network,
    wish: Wish,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    Attach,
    Detach,
}

impl Order {
    pub fn new(action: Action, config: &Config, wish: Wish) -> Self {
        Self {
            action,
            root: config.root.clone(),
            state: config.state.clone(),
            network: config.network.clone(),
            wish,
        }
    }

    fn place(&self) -> Place {
        Place::new(&self.root, &self.state, &self.wish.key)
    }

    /// Has the helper do it.
    ///
    /// # Errors
    /// What the helper says.
    pub async fn run(&self, reaper: &Reaper) -> Result<(), String> {
        let failed = |e: &dyn std::fmt::Display| format!("network {}: {e}", self.wish.network);
        let json = serde_json::to_string(self).map_err(|e| failed(&e))?;
        let _turn = TURNS.acquire().await.map_err(|e| failed(&e))?;
        let (reader, writer) = io::pipe().map_err(|e| failed(&e))?;
        let mut command = Command::new(launch::program());
        command
            .args([attach::COMMAND, &json])
            .lead_group()
            .env_remove("NOTIFY_SOCKET")
            .null([libc::STDIN_FILENO])
            .stdout(writer);
        let ended = launch::run(reaper, command, TIMEOUT).await;
        let status = ended.map_err(|e| failed(&e))?;
        if status.success() {
            return Ok(());
        }
        let said = said(reader);
        let said = said.trim();
        Err(failed(if said.is_empty() { &status } else { &said }))
    }
}

/// What is in the pipe of a helper that has ended.
fn said(mut pipe: io::PipeReader) -> String {
    let mut said = vec![0; SAID];
    let flags = FcntlArg::F_SETFL(OFlag::O_NONBLOCK);
    let read = fcntl(&pipe, flags).map_err(io::Error::from);
    let length = read.and_then(|_| pipe.read(&mut said)).unwrap_or(0);
    String::from_utf8_lossy(&said[..length]).into_owned()
}

/// A container's wish, if it has one.
///
/// # Errors
/// A text, if the label is none of ours.
pub fn wish(labels: &Labels) -> Result<Option<Wish>, String> {
    let Some(label) = labels.get(LABEL) else {
        return Ok(None);
    };
    let wish: Wish = serde_json::from_str(label).map_err(|e| format!("label {LABEL}: {e}"))?;
    // It becomes part of a path; and is an id with eight digits behind it.
    if wish.key.contains(['/', '\0']) || wish.key.starts_with('.') || wish.key.len() > 128 {
        return Err(format!("label {LABEL}: key {:?}", wish.key));
    }
    Ok(Some(wish))
}

/// Sees to it that a container whose task is about to be created has its network.
///
/// # Errors
/// What the helper says; then nothing of the network is left.
pub async fn attach(manager: &Manager, container: &Container) -> Result<(), Failure> {
    let Some(wish) = wish(&container.labels).map_err(unknown)? else {
        return Ok(());
    };
    let order = Order::new(Action::Attach, &manager.config, wish);
    let place = order.place();
    if aside::run(move || place.is_whole()).await {
        return Ok(());
    }
    order.run(&manager.launcher.reaper).await.map_err(unknown)
}

/// Takes the network away of a container whose record is about to be deleted.
///
/// # Errors
/// `NotFound`, or what the helper says; then what it could not take away is still recorded.
pub async fn detach(manager: &Manager, key: &Key) -> Result<(), Failure> {
    let container = match manager.store.container(&key.namespace, &key.id).await {
        Err(e) if [Code::NotFound, Code::Unavailable].contains(&e.code) => return Err(e),
        read => read.unwrap_or_default(),
    };
    // A record or a label that is broken has never had a network made.
    let Ok(Some(wish)) = wish(&container.labels) else {
        return Ok(());
    };
    let order = Order::new(Action::Detach, &manager.config, wish);
    let place = order.place();
    if !aside::run(move || place.has_something()).await {
        return Ok(());
    }
    order.run(&manager.launcher.reaper).await.map_err(unknown)
}

/// Networks of no container, by what is there of them: all but those of these keys.
pub fn orphans(config: &Config, known: &[String]) -> Vec<Wish> {
    let names = |dir: PathBuf| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok())
    };
    let records = names(config.root.join("networks"))
        .filter_map(|name| name.strip_suffix(".json").map(str::to_owned));
    let mut keys: Vec<String> = names(config.state.join("networks"))
        .chain(records)
        .collect();
    keys.sort_unstable();
    keys.dedup();
    keys.retain(|key| !known.contains(key));
    let wish = |key: String| {
        let place = Place::new(&config.root, &config.state, &key);
        let recorded = record::read(&place.record).map(|it| it.wish);
        recorded.unwrap_or(Wish {
            key,
            network: "?".into(),
            ..Wish::default()
        })
    };
    keys.into_iter().map(wish).collect()
}

/// The network that a spec has a container in, and the label that its record is to have for it.
pub fn of_spec(config: &Config, spec: &[u8]) -> Option<(String, String)> {
    let spec: serde_json::Value = task::json::read_first(spec).ok()?;
    let namespaces = spec["linux"]["namespaces"].as_array()?;
    let network = namespaces.iter().find(|it| it["type"] == "network")?;
    let path = Path::new(network["path"].as_str()?);
    let key = path.parent()?.file_name()?.to_str()?;
    let place = Place::new(&config.root, &config.state, key);
    if path != place.netns() {
        return None;
    }
    let wish = record::read(&place.record).ok()?.wish;
    Some((key.to_owned(), serde_json::to_string(&wish).ok()?))
}

/// A key for a container of this id that nobody else has.
///
/// # Errors
/// A text, if the id is none.
pub fn new_key(id: &str) -> Result<String, String> {
    check_id(id).map_err(|e| e.message)?;
    let uuid = task::proc::text("/proc/sys/kernel/random/uuid").map_err(|e| e.to_string())?;
    let digits = uuid.get(..8).unwrap_or_default();
    Ok(format!("{id}-{digits}"))
}

#[cfg(test)]
mod tests;
