// SPDX-License-Identifier: Apache-2.0
//! The file server of one VM, as its shim sees it: a child that serves the share.

use crate::child::Child;
use crate::console::Console;
use crate::fsd::{LISTENER_FD, SOCKETS_FD, WITH_SOCKETS};
use crate::share::Share;
use command_fds::{CommandFdExt, FdMapping};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use task::reaper::Reaper;

/// On which terms it serves.
pub struct Terms {
    /// The most files that it may have open.
    pub most: u64,
    /// Where it hears which sockets of containers' the host connects to, and tells of them.
    pub sockets: Option<OwnedFd>,
}

/// Starts the file server of `share`, and gives a socket connected to it. What it says goes to `console`.
///
/// # Errors
/// If it can't be started.
pub fn start(
    dir: &Path,
    share: &Share,
    terms: Terms,
    console: &Console,
    reaper: &Reaper,
) -> Result<(Child, OwnedFd), String> {
    let failed = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
    let path = dir.join("files.sock");
    let listener = UnixListener::bind(&path).map_err(failed("files.sock"))?;
    // Before anybody listens to it: the first, and the only one, in the queue.
    let client = UnixStream::connect(&path).map_err(failed("files.sock"))?;
    fs::remove_file(&path).map_err(failed("files.sock"))?;
    let (reader, writer) = io::pipe().map_err(failed("pipe"))?;
    let exe = std::env::current_exe().map_err(failed("own binary"))?;
    let (at, namespace) = share.dir();
    let mut command = Command::new(exe);
    command
        .arg("fsd")
        .arg(at)
        .arg(terms.most.to_string())
        .args(terms.sockets.as_ref().map(|_| WITH_SOCKETS))
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(writer);
    let listener = FdMapping {
        parent_fd: listener.into(),
        child_fd: LISTENER_FD,
    };
    let sockets = terms.sockets.map(|fd| FdMapping {
        parent_fd: fd,
        child_fd: SOCKETS_FD,
    });
    let mapped = command.fd_mappings([listener].into_iter().chain(sockets).collect());
    mapped.map_err(|e| format!("fd for the file server: {e}"))?;
    console.read(reader, false).map_err(failed("pipe"))?;
    task::sys::run_in_mounts(&mut command, namespace.clone());
    let child = Child::fork(command, reaper)?;
    Ok((child, client.into()))
}
