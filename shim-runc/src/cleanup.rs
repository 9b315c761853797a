// SPDX-License-Identifier: Apache-2.0
//! What `delete` does for a container of an OCI runtime whose shim is gone (contract D2 to D4).

use protos::Timestamp;
use protos::task::DeleteResponse;
use protos::ttrpc::Context;
use std::rc::Rc;
use std::time::{Duration, SystemTime};
use task::ProcessId;
use task::bundle::{Bundle, read_pid};
use task::leftovers::Leftovers;
use task::oci::Cli;
use task::reaper::Reaper;
use task::rootfs;

/// The status of a container that had to be killed.
const KILLED: u32 = 137;
/// How long the OCI runtime may take; the caller gives all of `delete` five seconds (D1).
const REMOVE: Duration = Duration::from_millis(1500);
/// The pid of a container that never had one: -1, in the wire's unsigned number (D3).
const NO_PID: u32 = u32::MAX;

/// Kills and removes the container, whoever made it, and unmounts its root file system. What is
/// gone already is no error, so that it may be called again (D7).
///
/// # Errors
/// If the bundle's records are there and can't be read, or the root file system stays mounted.
pub async fn cleanup(
    namespace: &str,
    id: &str,
    bundle: &Bundle,
    reaper: Rc<Reaper>,
) -> shim::Result<DeleteResponse> {
    let options = bundle.read_options()?;
    let runtime = Cli::new(Rc::clone(&reaper), &options, namespace, bundle.clone());
    let mut removed = remove(&runtime, id).await;
    // What the runtime has no record of is found by its cgroup; with that gone, a runtime that
    // failed may do better.
    let leftovers = Leftovers::of(bundle.clone(), id, &options);
    if !leftovers.end().await {
        shim::warn(&format!("processes or cgroups of container {id} are left"));
    }
    if removed.is_err() {
        removed = remove(&runtime, id).await;
    }
    if let Err(why) = removed {
        shim::warn(&format!("failed to remove runc container {id}: {why}"));
    }
    let unmounted = rootfs::unmount_recursive(&reaper, bundle.rootfs()).await;
    unmounted.map_err(|e| shim::Error::new(format!("failed to cleanup rootfs mount: {e}")))?;
    // A shim that saw the exit has written it down; otherwise we have just killed it.
    if let Some(exit) = bundle.read_exit(&ProcessId::Init)? {
        let (seconds, nanos) = exit.exited_at;
        return Ok(DeleteResponse {
            pid: exit.pid,
            exit_status: exit.exit_status,
            exited_at: Some(Timestamp { seconds, nanos }),
        });
    }
    Ok(DeleteResponse {
        pid: read_pid(&bundle.pid(&ProcessId::Init)).unwrap_or(NO_PID),
        exit_status: KILLED,
        exited_at: Some(SystemTime::now().into()),
    })
}

/// Has the OCI runtime kill and remove the container.
async fn remove(runtime: &Cli, id: &str) -> Result<(), String> {
    let context = Context::background();
    let deleted = runtime.delete(id, true, &context);
    match tokio::time::timeout(REMOVE, deleted).await {
        Ok(deleted) => deleted.map_err(|failure| failure.to_string()),
        // It dies with this process at the latest.
        Err(_) => Err(format!("the OCI runtime took over {REMOVE:?}")),
    }
}
