// SPDX-License-Identifier: Apache-2.0
//! The record of a network: what the plugins were asked for it, so that they can be asked to undo just
//! that, and what they answered. It is written before the first of them runs.

use super::config::List;
use super::{Port, Protocol, Wish};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Attachment {
    pub wish: Wish,
    pub list: List,
    /// Of the last plugin that was done: what those that come after it would have been told.
    #[serde(default)]
    pub result: Option<Value>,
    /// How many plugins were done.
    #[serde(default)]
    pub done: usize,
    /// The one after those said that it could not do it.
    #[serde(default)]
    pub is_refused: bool,
    /// All is made.
    #[serde(default)]
    pub is_done: bool,
}

impl Attachment {
    /// Whether the plugin at this place may have made something, of which it must take back all.
    pub fn must_undo(&self, place: usize) -> bool {
        place < self.done || (place == self.done && !self.is_refused)
    }

    /// The container's addresses, and the gateway of each.
    pub fn addresses(&self) -> Vec<(IpAddr, Option<IpAddr>)> {
        let ips = self.result.as_ref().and_then(|it| it["ips"].as_array());
        let address = |ip: &Value| {
            let (address, _) = ip["address"].as_str()?.split_once('/')?;
            let gateway = ip["gateway"].as_str().and_then(|it| it.parse().ok());
            Some((address.parse().ok()?, gateway))
        };
        ips.into_iter().flatten().filter_map(address).collect()
    }

    /// # Errors
    /// From the disk.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let new = path.with_extension("new");
        let written = std::fs::write(&new, serde_json::to_vec(self)?);
        let placed = written.and_then(|()| std::fs::rename(&new, path));
        placed.inspect_err(|_| drop(std::fs::remove_file(&new)))
    }
}

/// # Errors
/// From the disk, or if it is no record.
pub fn read(path: &Path) -> io::Result<Attachment> {
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

/// Whether the host's ports are free: no program listens there, and no other network of `dir` has them.
///
/// # Errors
/// A text that names the port, and who has it.
pub fn are_free(ports: &[Port], dir: &Path, own: &Path) -> Result<(), String> {
    if ports.is_empty() {
        return Ok(());
    }
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in entries {
        let path = entry.path();
        let is_record = path.extension().is_some_and(|it| it == "json") && path != own;
        let Some(other) = is_record.then(|| read(&path).ok()).flatten() else {
            continue;
        };
        let theirs = &other.wish.ports;
        let taken = ports
            .iter()
            .find(|port| theirs.iter().any(|it| it.conflicts(port)));
        if let Some(port) = taken {
            return Err(format!("-p {port}: {} has that port", other.wish.key));
        }
    }
    for port in ports {
        let ip = port.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        let address = SocketAddr::new(ip, port.host_port);
        let bound = match port.protocol {
            Protocol::Tcp => TcpListener::bind(address).map(drop),
            Protocol::Udp => UdpSocket::bind(address).map(drop),
        };
        bound.map_err(|e| format!("-p {port}: {e}"))?;
    }
    Ok(())
}
