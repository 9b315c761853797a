// SPDX-License-Identifier: Apache-2.0
//! The `start` command: finds the shim of the container's group, or becomes its parent
//! (contract B30 to B40). Only to ask a shim that runs already what it speaks does it need an event loop.

use crate::error::{Error, Result};
use crate::flags::Flags;
use crate::lifeline::Lifeline;
use crate::params::{Caller, Versions};
use crate::socket::{self, Bound};
use crate::{Shim, print, runtime, sys};
use command_fds::{CommandFdExt, FdMapping};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};
use protos::task::ConnectRequest;
use protos::ttrpc::{CallError, Client};
use protos::{Code, Status, service};
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use task::bundle::{Bundle, Spec};
use task::oci::Options;

/// The fd at which the daemon finds its listener (B36).
pub const LISTENER_FD: i32 = 3;
/// Annotations that put containers into one shim, the first one wins (B30).
const GROUPS: [&str; 3] = [
    "io.containerd.runc.v2.group",
    "io.kubernetes.cri.sandbox-id",
    "io.kubernetes.cri-o.SandboxID",
];
/// How long a running shim may take to say what it speaks.
const CONNECT: Duration = Duration::from_secs(2);
/// The most that is read from stdin (B9).
const MAX_STDIN: u64 = 10 << 20;

/// Starts a shim for the bundle in the working directory, and prints where it listens.
///
/// # Errors
/// Whatever kept the shim from being started; it is not running then.
pub fn start(shim: &dyn Shim, flags: &Flags) -> Result<()> {
    if flags.id.is_empty() {
        return Err(Error::new("shim id cannot be empty"));
    }
    let caller = read_caller(flags)?;
    let bundle = Bundle::new("");
    let is_sandbox = !bundle.has_spec();
    let spec = match is_sandbox && shim.makes_sandboxes() {
        true => Spec::default(),
        false => bundle
            .read_spec()
            .map_err(|e| no_sandbox(e.into(), is_sandbox))?,
    };
    let dir = Path::new(caller.socket_dir().unwrap_or(socket::DEFAULT_DIR));
    let mut lifeline = None;
    if caller.socket_dir().is_some() {
        socket::link_dir(dir)?;
    }
    let path = socket_of(flags, &spec, dir);
    let address = socket::address(&path);
    let versions = match socket::bind(&path)? {
        Bound::Theirs => {
            write_address(&address)?;
            versions_of(&path)?
        }
        Bound::Ours(listener) => {
            let launched = launch(flags, &caller, listener, &address);
            lifeline = Some(launched.inspect_err(|_| {
                let _ = fs::remove_file(&path);
            })?);
            match is_sandbox {
                true => Versions::OF_SANDBOX,
                false => Versions::OURS,
            }
        }
    };
    print(&caller.answer(&address, versions, shim.mounts()))?;
    let released = lifeline.map_or(Ok(()), Lifeline::release);
    released.map_err(|e| Error::new(format!("the daemon has ended: {e}")))
}

/// What is wrong without a config.json, and what to do where a sandbox was meant.
fn no_sandbox(error: Error, is_sandbox: bool) -> Error {
    match is_sandbox {
        true => Error::new(format!(
            "{error}: this shim makes no sandboxes without a container: sandboxer = \"podsandbox\" does"
        )),
        false => error,
    }
}

fn read_caller(flags: &Flags) -> Result<Caller> {
    let mut stdin = Vec::new();
    let read = io::stdin().take(MAX_STDIN).read_to_end(&mut stdin);
    read.map_err(|e| Error::io("read", "stdin", e))?;
    Ok(Caller::parse(&stdin, &flags.id, &flags.namespace))
}

/// Where the shim of a bundle's container listens.
pub fn socket_of(flags: &Flags, spec: &Spec, dir: &Path) -> PathBuf {
    let group = group(spec, &flags.id);
    socket::path(dir, &flags.address, &flags.namespace, group)
}

fn group<'a>(spec: &'a Spec, id: &'a str) -> &'a str {
    GROUPS
        .iter()
        .find_map(|key| spec.annotation(key))
        .unwrap_or(id)
}

/// Asks the running shim of the group what it speaks.
fn versions_of(path: &Path) -> Result<Versions> {
    runtime()?.block_on(async {
        let failed = |e| Error::io("connect to", path, e);
        let client = Client::connect(path).await.map_err(failed)?;
        let speaks = async |service: &str| {
            let request = ConnectRequest::default();
            let call = client.call_as(service, &request, Some(CONNECT));
            let unknown = |status: &Status| {
                // The ttrpc of containerd's Rust shim says it so.
                matches!(status.code, Code::Unimplemented | Code::InvalidArgument)
            };
            !matches!(call.await, Err(CallError::Status(status)) if unknown(&status))
        };
        let v2 = speaks(service::TASK_V2).await;
        let v3 = speaks(service::TASK_V3).await;
        Ok(Versions { v2, v3 })
    })
}

/// Spawns the daemon, and sets it up as its parent must; on failure it is killed (B40).
/// It lives for as long as the answer does, until that is released.
fn launch(
    flags: &Flags,
    caller: &Caller,
    listener: UnixListener,
    address: &str,
) -> Result<Lifeline> {
    // B37: the scheduling cookie is inherited, so it is made before the daemon is.
    if std::env::var_os("SCHED_CORE").is_some_and(|value| !value.is_empty()) {
        sys::create_sched_core()
            .map_err(|e| Error::new(format!("enable sched core support: {e}")))?;
    }
    let (daemon, lifeline) = spawn(flags, caller, listener)?;
    let settle = || {
        let options = Options::from_any(caller.options())?;
        join_cgroup(&options.shim_cgroup, daemon)?;
        adjust_oom_score(daemon);
        write_address(address)
    };
    settle().inspect_err(|_| {
        let _ = kill(Pid::from_raw(daemon.cast_signed()), Signal::SIGKILL);
    })?;
    Ok(lifeline)
}

/// B36: ourselves again, with the listener, in a process group of its own. Stdout and stderr are
/// /dev/null, and so is stdin once we have answered: containerd reads our stdout to its end, so
/// nothing may stay open.
fn spawn(flags: &Flags, caller: &Caller, listener: UnixListener) -> Result<(u32, Lifeline)> {
    let exe = std::env::current_exe().map_err(|e| Error::io("find", "own binary", e))?;
    let mut command = Command::new(&exe);
    let daemon = Flags {
        debug: flags.debug || caller.debug(),
        ..flags.clone()
    };
    command.args(daemon.of_daemon(None));
    // Inherited by the OCI runtime, which is written in Go.
    command.env("GOMAXPROCS", "4");
    command.env("OTEL_SERVICE_NAME", format!("containerd-shim-{}", flags.id));
    command.envs(sys::heap_tunables());
    if let Some(address) = caller.ttrpc_address() {
        command.env("TTRPC_ADDRESS", address);
    }
    let listener = FdMapping {
        parent_fd: listener.into(),
        child_fd: LISTENER_FD,
    };
    command
        .fd_mappings(vec![listener])
        .map_err(|e| Error::new(e.to_string()))?;
    let (lifeline, stdin) = Lifeline::new().map_err(|e| Error::io("start", &exe, e))?;
    command
        .process_group(0)
        .stdin(stdin)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let daemon = command.spawn().map_err(|e| Error::io("start", &exe, e))?;
    Ok((daemon.id(), lifeline))
}

/// B38: puts the daemon into the cgroup that the options name, in every hierarchy there is.
fn join_cgroup(cgroup: &str, daemon: u32) -> Result<()> {
    if cgroup.is_empty() {
        return Ok(());
    }
    let relative = cgroup.trim_start_matches('/');
    let root = Path::new("/sys/fs/cgroup");
    let mut hierarchies = vec![root.to_owned()];
    if !root.join("cgroup.controllers").exists() {
        let entries = fs::read_dir(root).map_err(|e| Error::io("read", root, e))?;
        hierarchies = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.join("cgroup.procs").exists())
            .collect();
    }
    let mut joined = false;
    for procs in hierarchies
        .iter()
        .map(|h| h.join(relative).join("cgroup.procs"))
    {
        match fs::write(&procs, daemon.to_string()) {
            Ok(()) => joined = true,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("join shim cgroup", procs, e)),
        }
    }
    if joined {
        Ok(())
    } else {
        Err(Error::new(format!("shim cgroup {cgroup}: not found")))
    }
}

/// B39: killed a little sooner than containerd, our parent. Without the right to set the score
/// the daemon keeps the one it has.
fn adjust_oom_score(daemon: u32) {
    let score = |pid: i32| -> Option<i32> {
        task::proc::text(format!("/proc/{pid}/oom_score_adj"))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    if let Some(parent) = score(getppid().as_raw()) {
        let adjusted = parent.saturating_add(1).min(1000).to_string();
        let _ = fs::write(format!("/proc/{daemon}/oom_score_adj"), adjusted);
    }
}

/// B35: containerd up to 1.7 finds the shim by this file after a restart; so does one that
/// somebody goes back to.
fn write_address(address: &str) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let (temporary, name) = (".address", "address");
    let failed = |e| Error::io("write", name, e);
    let mut options = fs::OpenOptions::new();
    let file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(temporary);
    file.and_then(|mut file| file.write_all(address.as_bytes()))
        .map_err(failed)?;
    fs::rename(temporary, name).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// B30: the annotation for runc wins over that for a pod, and without any the id is the group.
    #[test]
    fn the_first_group_annotation_wins() {
        let spec = |json| task::json::read::<Spec>(str::as_bytes(json)).unwrap();
        let both = spec(
            r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod","io.containerd.runc.v2.group":"g"}}"#,
        );
        assert_eq!(group(&both, "id"), "g");
        let crio = spec(r#"{"annotations":{"io.kubernetes.cri-o.SandboxID":"pod"}}"#);
        assert_eq!(group(&crio, "c"), "pod");
        let pod = spec(r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#);
        assert_eq!(group(&pod, "id"), "pod");
        assert_eq!(group(&spec("{}"), "id"), "id");
    }
}
