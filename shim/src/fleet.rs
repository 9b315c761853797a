// SPDX-License-Identifier: Apache-2.0
//! What an operator asks of running shims: finding them, and asking them.
//!
//! `containerd-shim-runc-v2 [-namespace NS] [-id ID] upgrade | inspect [-json]`

mod inspect;
mod look;
mod upgrade;

pub use inspect::inspect;
pub use upgrade::upgrade;

use crate::bootstrap::LISTENER_FD;
use crate::error::{Error, Result};
use crate::flags::Flags;
use crate::keeper;
use protos::ttrpc::{Call, CallError, Client};
use protos::{Code, Status};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use task::proc;
use tokio::sync::Semaphore;
use tokio::task::spawn_local;

/// A shim that runs.
struct Daemon {
    pid: u32,
    flags: Flags,
}

/// Asks `daemons` as `ask` does, so many at a time; their answers, in the same order.
///
/// # Errors
/// If one could not be asked at all.
async fn ask_all<A: 'static, F: Future<Output = A> + 'static>(
    daemons: Vec<Daemon>,
    at_once: usize,
    ask: impl Fn(u32) -> F,
) -> Result<Vec<(Daemon, A)>> {
    let turns = Rc::new(Semaphore::new(at_once));
    let asked: Vec<_> = daemons
        .into_iter()
        .map(|daemon| {
            let (turns, asking) = (Rc::clone(&turns), ask(daemon.pid));
            spawn_local(async move {
                // It is never closed.
                let _turn = turns.acquire().await;
                (daemon, asking.await)
            })
        })
        .collect();
    let mut answers = Vec::new();
    for answer in asked {
        answers.push(answer.await.map_err(|e| Error::new(e.to_string()))?);
    }
    Ok(answers)
}

/// Every shim called `program` that `filter` names.
fn daemons(program: &str, filter: &Flags) -> Result<Vec<Daemon>> {
    let pids = proc::all().map_err(|e| Error::io("read", "/proc", e))?;
    let mut daemons: Vec<_> = pids.filter_map(|pid| daemon(pid, program)).collect();
    // What a shim has forked is called as it is until it executes its program.
    let all: Vec<u32> = daemons.iter().map(|daemon| daemon.pid).collect();
    let is_fork = |pid| proc::parent(pid).is_some_and(|parent| all.contains(&parent));
    daemons.retain(|daemon| !is_fork(daemon.pid));
    let wanted = |filter: &str, value: &str| filter.is_empty() || filter == value;
    daemons.retain(|daemon| {
        wanted(&filter.namespace, &daemon.flags.namespace) && wanted(&filter.id, &daemon.flags.id)
    });
    daemons.sort_by_key(|daemon| daemon.pid);
    Ok(daemons)
}

/// The socket of the one shim called `program` that has this id, in whatever namespace if that is empty.
///
/// # Errors
/// If there is none, or are several.
pub fn socket_of(program: &str, namespace: &str, id: &str) -> Result<PathBuf> {
    let wanted = Flags {
        namespace: namespace.to_owned(),
        id: id.to_owned(),
        ..Flags::default()
    };
    let found = daemons(program, &wanted)?;
    match &found[..] {
        [one] => {
            let none = || Error::new(format!("the socket of the shim of {id:?} was not found"));
            socket(one.pid).ok_or_else(none)
        }
        [] => Err(Error::new(format!("no shim of {id:?} runs"))),
        _ => Err(Error::new(format!(
            "-namespace is missing: several shims are of {id:?}"
        ))),
    }
}

/// The shim that process `pid` is, if it is one that serves.
fn daemon(pid: u32, program: &str) -> Option<Daemon> {
    let line = proc::command_line(pid);
    let flags = Flags::parse(line.into_iter().skip(1)).ok()?;
    let serves = matches!(flags.action.as_str(), "" | "resume" | keeper::ADOPT)
        && !flags.namespace.is_empty();
    (serves && proc::is_ours(pid, program)).then_some(Daemon { pid, flags })
}

/// Asks the shim that process `pid` is.
async fn ask<C: Call>(
    pid: u32,
    request: C,
    timeout: Duration,
) -> std::result::Result<C::Answer, Status> {
    let unavailable = |text: &str| Status::new(Code::Unavailable, text);
    let socket = socket(pid).ok_or_else(|| unavailable("its socket was not found"))?;
    let client = Client::connect(socket).await;
    let client = client.map_err(|e| unavailable(&format!("connect: {e}")))?;
    match client.call(&request, Some(timeout)).await {
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
