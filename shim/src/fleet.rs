//! The `upgrade` command: has running shims become the binary that this command is.
//!
//! `containerd-shim-runc-v2 [-namespace NS] [-id ID] upgrade`

use crate::bootstrap::LISTENER_FD;
use crate::error::{Error, Result};
use crate::flags::Flags;
use crate::runtime;
use protos::service;
use protos::ttrpc::{CallError, Client};
use protos::upgrade::{UpgradeRequest, UpgradeResponse};
use protos::{Code, Status};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long one shim may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A shim that runs.
struct Daemon {
    pid: u32,
    flags: Flags,
}

/// Upgrades every shim called `program` that `filter` names, and prints a line for each.
///
/// # Errors
/// If one of them refuses; the others are upgraded all the same.
pub fn upgrade(program: &str, filter: &Flags) -> Result<()> {
    let binary = std::env::current_exe().map_err(|e| Error::io("find", "own binary", e))?;
    let mut refused = 0;
    let report = runtime()?.block_on(async {
        let mut report = String::new();
        for daemon in daemons(program, filter)? {
            let name = format!("{}/{}", daemon.flags.namespace, daemon.flags.id);
            let said = match ask(&daemon, &binary).await {
                Ok(answer) => format!("runs {}", answer.version),
                Err(status) if status.code == Code::Unimplemented => "left alone: not ours".into(),
                Err(status) => {
                    refused += 1;
                    format!("refused: {}", status.message)
                }
            };
            // Writing to a String does not fail.
            let _ = writeln!(report, "{name} pid {}: {said}", daemon.pid);
        }
        Ok::<_, Error>(report)
    })?;
    crate::print(report.as_bytes())?;
    match refused {
        0 => Ok(()),
        n => Err(Error::new(format!("{n} shims were not upgraded"))),
    }
}

fn daemons(program: &str, filter: &Flags) -> Result<Vec<Daemon>> {
    let proc = fs::read_dir("/proc").map_err(|e| Error::io("read", "/proc", e))?;
    let pids = proc.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut daemons: Vec<_> = pids.filter_map(|pid| daemon(pid, program)).collect();
    let wanted = |filter: &str, value: &str| filter.is_empty() || filter == value;
    daemons.retain(|daemon| {
        wanted(&filter.namespace, &daemon.flags.namespace) && wanted(&filter.id, &daemon.flags.id)
    });
    daemons.sort_by_key(|daemon| daemon.pid);
    Ok(daemons)
}

/// The shim that process `pid` is, if it is one that serves.
fn daemon(pid: u32, program: &str) -> Option<Daemon> {
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
    let mut args = line.trim_end_matches('\0').split('\0').map(str::to_owned);
    let name = args.next()?;
    let flags = Flags::parse(args).ok()?;
    let serves = matches!(flags.action.as_str(), "" | "resume") && !flags.namespace.is_empty();
    let ours = name.rsplit('/').next() == Some(program);
    (ours && serves).then_some(Daemon { pid, flags })
}

async fn ask(daemon: &Daemon, binary: &Path) -> std::result::Result<UpgradeResponse, Status> {
    let unavailable = |text: &str| Status::new(Code::Unavailable, text);
    let socket = socket(daemon.pid).ok_or_else(|| unavailable("its socket was not found"))?;
    let client = Client::connect(socket).await;
    let client = client.map_err(|e| unavailable(&format!("connect: {e}")))?;
    let binary = binary.to_string_lossy().into_owned();
    let request = UpgradeRequest { binary };
    match client
        .call(service::UPGRADE, "Upgrade", &request, Some(TIMEOUT))
        .await
    {
        Ok(answer) => Ok(answer),
        Err(CallError::Status(status)) => Err(status),
        Err(CallError::Closed) => Err(unavailable("it closed the connection")),
    }
}

/// Where a shim listens: the name of its fd 3 (proc(5), /proc/net/unix).
fn socket(pid: u32) -> Option<PathBuf> {
    let link = fs::read_link(format!("/proc/{pid}/fd/{LISTENER_FD}")).ok()?;
    let inode = link
        .to_str()?
        .strip_prefix("socket:[")?
        .strip_suffix(']')?
        .to_owned();
    let table = fs::read_to_string("/proc/net/unix").ok()?;
    table.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        (fields.len() == 8 && fields[6] == inode).then(|| PathBuf::from(fields[7]))
    })
}
