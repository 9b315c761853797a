//! The `upgrade` command: has running shims become the binary that this command is.
//!
//! `containerd-shim-runc-v2 [-namespace NS] [-id ID] upgrade`

use crate::bootstrap::LISTENER_FD;
use crate::error::{Error, Result};
use crate::flags::Flags;
use crate::keeper;
use crate::runtime;
use nix::unistd::geteuid;
use protos::ttrpc::{CallError, Client};
use protos::upgrade::{UpgradeRequest, UpgradeResponse};
use protos::{Code, Status};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use task::proc;
use tokio::sync::Semaphore;
use tokio::task::spawn_local;

/// How long one shim may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How many are asked at once: each starts the new binary, to have it look at the state.
const AT_ONCE: usize = 32;

type Answer = std::result::Result<UpgradeResponse, Status>;

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
    let (report, refused) = runtime()?.block_on(async {
        let turns = Rc::new(Semaphore::new(AT_ONCE));
        let asked: Vec<_> = daemons(program, filter)?
            .into_iter()
            .map(|daemon| {
                let (turns, binary) = (Rc::clone(&turns), binary.clone());
                spawn_local(async move {
                    // It is never closed.
                    let _turn = turns.acquire().await;
                    let answer = ask(&daemon, &binary).await;
                    (daemon, answer)
                })
            })
            .collect();
        let (mut report, mut refused) = (String::new(), 0);
        for answer in asked {
            let answer = answer.await.map_err(|e| Error::new(e.to_string()))?;
            let (said, is_refused) = line_of(answer);
            refused += u32::from(is_refused);
            report += &said;
        }
        Ok::<_, Error>((report, refused))
    })?;
    crate::print(task::printable(&report).as_bytes())?;
    match refused {
        0 => Ok(()),
        1 => Err(Error::new("one shim was not upgraded")),
        n => Err(Error::new(format!("{n} shims were not upgraded"))),
    }
}

/// The line about one shim, whatever it said, and whether it was not upgraded.
fn line_of((daemon, answer): (Daemon, Answer)) -> (String, bool) {
    let Daemon { pid, flags } = daemon;
    let (said, refused) = match answer {
        Ok(answer) => (format!("runs {}", answer.version), false),
        Err(status) if status.code == Code::Unimplemented => ("left alone: not ours".into(), false),
        Err(status) => (format!("refused: {}", status.message), true),
    };
    let line = format!("{}/{} pid {pid}: {said}", flags.namespace, flags.id);
    (line.replace(['\n', '\t'], " ") + "\n", refused)
}

fn daemons(program: &str, filter: &Flags) -> Result<Vec<Daemon>> {
    let pids = proc::all().map_err(|e| Error::io("read", "/proc", e))?;
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
    let line = proc::command_line(pid);
    let flags = Flags::parse(line.into_iter().skip(1)).ok()?;
    let serves = matches!(flags.action.as_str(), "" | "resume" | keeper::ADOPT)
        && !flags.namespace.is_empty();
    (serves && is_ours(pid, program)).then_some(Daemon { pid, flags })
}

/// True for a process of our own user's that runs a shim's file of our own root directory: anybody
/// may call a process of theirs what they like, and so may a container.
fn is_ours(pid: u32, program: &str) -> bool {
    // A file that was put aside for a new one has another ending.
    let named = proc::program(pid).is_some_and(|path| {
        let name = path.file_name().map(OsStrExt::as_bytes);
        name.is_some_and(|name| name.starts_with(program.as_bytes()))
    });
    let root = |pid: &str| {
        let root = fs::metadata(format!("/proc/{pid}/root/")).ok()?;
        Some((root.dev(), root.ino()))
    };
    named
        && proc::users(pid) == Some([geteuid().as_raw(); 4])
        && root("self") == root(&pid.to_string())
}

async fn ask(daemon: &Daemon, binary: &Path) -> Answer {
    let unavailable = |text: &str| Status::new(Code::Unavailable, text);
    let socket = socket(daemon.pid).ok_or_else(|| unavailable("its socket was not found"))?;
    let client = Client::connect(socket).await;
    let client = client.map_err(|e| unavailable(&format!("connect: {e}")))?;
    let binary = binary.to_string_lossy().into_owned();
    let request = UpgradeRequest { binary };
    match client.call(&request, Some(TIMEOUT)).await {
        Ok(answer) => Ok(answer),
        Err(CallError::Status(status)) => Err(status),
        Err(CallError::Closed) => Err(unavailable("it closed the connection")),
    }
}

/// Where a shim listens: the name of its fd 3 (proc(5), /proc/net/unix).
fn socket(pid: u32) -> Option<PathBuf> {
    let link = fs::read_link(format!("/proc/{pid}/fd/{LISTENER_FD}")).ok()?;
    let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
    // Other sockets may have any names.
    let table = fs::read("/proc/net/unix").ok()?;
    table.split(|&byte| byte == b'\n').find_map(|line| {
        let fields = line.split(u8::is_ascii_whitespace);
        let mut fields = fields.filter(|field| !field.is_empty()).skip(6);
        let is_its = fields.next()? == inode.as_bytes();
        let path = OsStr::from_bytes(fields.next()?);
        is_its.then(|| PathBuf::from(path))
    })
}
