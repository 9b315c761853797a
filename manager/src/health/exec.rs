// SPDX-License-Identifier: Apache-2.0
//! One check: an exec of the container, which is told to nobody.

use super::check::{Check, OUTPUT, Ran};
use crate::failure::{Failure, unknown};
use crate::manager::Manager;
use crate::names::Key;
use crate::shim::Shim;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use protos::events::{TaskExecAdded, TaskExecStarted, TaskExit};
use protos::task::*;
use protos::task_types::Status;
use protos::types::Envelope;
use protos::{Any, any, topic};
use serde_json::Value;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use task::aside;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The exec's id: a container has one check at a time.
pub const ID: &str = "io.dunnage.health";
const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// How long the shim may take for what needs no process.
const PATIENCE: Duration = Duration::from_secs(5);
/// What says more than is kept is read this often, and so much of it: it must not keep the loop busy.
const PAUSE: Duration = Duration::from_millis(10);
const PART: usize = 16 << 10;

/// Whether that is told of a check's process: it is nobody's news, and the journal would be full of it.
pub fn is_of_check(envelope: &Envelope) -> bool {
    let Some(event) = &envelope.event else {
        return false;
    };
    match envelope.topic.as_str() {
        topic::TASK_EXIT => {
            any::unpack::<TaskExit>(event).is_some_and(|it| it.is_ok_and(|it| it.id == ID))
        }
        topic::TASK_EXEC_ADDED => any::unpack::<TaskExecAdded>(event)
            .is_some_and(|it| it.is_ok_and(|it| it.exec_id == ID)),
        topic::TASK_EXEC_STARTED => any::unpack::<TaskExecStarted>(event)
            .is_some_and(|it| it.is_ok_and(|it| it.exec_id == ID)),
        _ => false,
    }
}

impl Manager {
    fn shim_of(&self, key: &Key) -> Result<Rc<Shim>, Failure> {
        let shim = self.tasks.get(key)?.shim();
        shim.ok_or_else(|| unknown("its shim is gone"))
    }

    /// The container's own process, with the command of the check.
    pub(super) async fn process_of_check(&self, key: &Key, check: &Check) -> Result<Any, Failure> {
        let container = self.store.container(&key.namespace, &key.id).await?;
        let spec = container.spec.unwrap_or_default().value;
        let spec = task::json::read_first::<Value>(&spec).map_err(unknown)?;
        let mut process = spec["process"].clone();
        process["terminal"] = false.into();
        process["args"] = check.command.as_slice().into();
        if let Some(process) = process.as_object_mut() {
            process.remove("consoleSize");
        }
        Ok(Any {
            type_url: PROCESS_TYPE.into(),
            value: process.to_string().into_bytes(),
        })
    }

    /// Runs the check; none if there is nothing to be checked now, as while it is paused.
    pub(super) async fn run_check(&self, key: &Key, check: &Check, process: &Any) -> Option<Ran> {
        let at = Some(task::event::now());
        let shim = self.shim_of(key).ok()?;
        let ask = StateRequest {
            id: key.id.clone(),
            exec_id: String::new(),
        };
        let state = shim.call(&ask, Some(PATIENCE)).await.ok()?;
        if state.status != Status::Running as i32 {
            return None;
        }
        let bundle = self.bundles.get(key.clone()).path().to_owned();
        let mut output = Vec::new();
        let ran = exec(
            &shim,
            key,
            check,
            process,
            &bundle.join("health"),
            &mut output,
        )
        .await;
        let mut output = String::from_utf8_lossy(&output).into_owned();
        let exit = ran.unwrap_or_else(|e| {
            output = e.message;
            None
        });
        Some(Ran { at, exit, output })
    }

    /// Takes away what a daemon before us may have left.
    pub(super) async fn end_check(&self, key: &Key) {
        if let Ok(shim) = self.shim_of(key) {
            end(&shim, key).await;
        }
    }
}

/// Kills it, and waits for its end, but not for ever.
async fn end(shim: &Shim, key: &Key) {
    let kill = KillRequest {
        id: key.id.clone(),
        exec_id: ID.into(),
        signal: libc::SIGKILL.cast_unsigned(),
        all: false,
    };
    if shim.call(&kill, Some(PATIENCE)).await.is_ok() {
        let wait = WaitRequest {
            id: key.id.clone(),
            exec_id: ID.into(),
        };
        let _ = shim.call(&wait, Some(PATIENCE)).await;
    }
    delete(shim, key).await;
}

async fn delete(shim: &Shim, key: &Key) {
    let request = DeleteRequest {
        id: key.id.clone(),
        exec_id: ID.into(),
    };
    let _ = shim.call(&request, Some(PATIENCE)).await;
}

async fn exec(
    shim: &Shim,
    key: &Key,
    check: &Check,
    process: &Any,
    path: &Path,
    output: &mut Vec<u8>,
) -> Result<Option<u32>, Failure> {
    let fifo = fifo(path.to_owned()).await.map_err(unknown)?;
    let said = path.display().to_string();
    let add = ExecProcessRequest {
        id: key.id.clone(),
        exec_id: ID.into(),
        stdout: said.clone(),
        stderr: said,
        spec: Some(process.clone()),
        ..Default::default()
    };
    if let Err(e) = shim.call(&add, Some(PATIENCE)).await {
        // One that could not be ended before is in the way.
        end(shim, key).await;
        return Err(e);
    }
    let run = async {
        let start = StartRequest {
            id: key.id.clone(),
            exec_id: ID.into(),
        };
        shim.call(&start, None).await?;
        let wait = WaitRequest {
            id: key.id.clone(),
            exec_id: ID.into(),
        };
        shim.call(&wait, None).await
    };
    let ran = tokio::select! {
        ran = tokio::time::timeout(check.timeout(), run) => ran,
        () = read(&fifo, output) => return Err(unknown("its output could not be read")),
    };
    match ran {
        Ok(Ok(exit)) => {
            // What it said last, and is in the pipe.
            take(&fifo, output);
            delete(shim, key).await;
            Ok(Some(exit.exit_status))
        }
        Ok(Err(e)) => {
            delete(shim, key).await;
            Err(e)
        }
        Err(_) => {
            end(shim, key).await;
            let timeout = check.timeout();
            Err(unknown(format!(
                "it was killed: it took longer than {timeout:?}"
            )))
        }
    }
}

/// A new FIFO that we read.
async fn fifo(path: PathBuf) -> io::Result<AsyncFd<OwnedFd>> {
    let make = move || {
        let _ = nix::unistd::unlink(&path);
        nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        // Both ends, so that it does not end before it has begun.
        let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        open(&path, flags, Mode::empty())
    };
    task::sys::watch(aside::run(make).await?, Interest::READABLE)
}

/// Reads what comes, for as long as it is asked to.
async fn read(fifo: &AsyncFd<OwnedFd>, output: &mut Vec<u8>) {
    loop {
        let Ok(mut ready) = fifo.readable().await else {
            return;
        };
        if take(fifo, output) {
            ready.clear_ready();
        } else {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Takes a part of what there is, and keeps what there is room for. True if there was nothing left.
fn take(fifo: &AsyncFd<OwnedFd>, output: &mut Vec<u8>) -> bool {
    let mut part = vec![0; PART];
    match nix::unistd::read(fifo, &mut part) {
        Ok(n) => {
            let room = OUTPUT.saturating_sub(output.len());
            output.extend_from_slice(&part[..n.min(room)]);
            n < PART
        }
        Err(e) => e == Errno::EAGAIN,
    }
}
