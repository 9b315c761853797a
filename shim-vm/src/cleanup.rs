// SPDX-License-Identifier: Apache-2.0
//! What `delete` does for a container whose shim is gone: its VM died with the shim, or is ended
//! now, and nothing of it stays.

use crate::hooks::Hooks;
use crate::{network, place};
use protos::Timestamp;
use protos::task::DeleteResponse;
use std::rc::Rc;
use std::time::SystemTime;
use task::ProcessId;
use task::aside;
use task::bundle::{Bundle, read_pid};
use task::json;
use task::reaper::Reaper;

/// The status of a container that had to be killed.
const KILLED: u32 = 137;
/// The pid of a container that never had one: -1, in the wire's unsigned number (contract D3).
const NO_PID: u32 = u32::MAX;

/// Ends what is left. What is gone already is no error.
///
/// # Errors
/// If something resists.
pub async fn cleanup(
    namespace: &str,
    id: &str,
    bundle: &Bundle,
    reaper: Rc<Reaper>,
) -> shim::Result<DeleteResponse> {
    let dir = place::of(namespace, id);
    let ended = place::end_keeper(&dir).await;
    ended.map_err(|e| shim::Error::io("end the keeper of", &dir, e))?;
    let cleared = place::clear(&dir).await;
    let netns = cleared.map_err(|e| shim::Error::io("clear", &dir, e))?;
    if let Some(netns) = netns {
        let at = netns.clone();
        let detached = aside::alone(move || network::detach(&at)).await;
        detached.map_err(|e| shim::Error::io("take the network from", &netns, e))?;
    }
    run_poststop(id, bundle, &reaper).await;
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

/// The hooks that a shim would have run after Delete, of a container that got as far.
async fn run_poststop(id: &str, bundle: &Bundle, reaper: &Reaper) {
    if !bundle.pid(&ProcessId::Init).exists() {
        return;
    }
    let config = std::fs::read(bundle.path().join("config.json"));
    let Ok(mut spec) = json::read_first(&config.unwrap_or_default()) else {
        return;
    };
    let Ok(hooks) = Hooks::take(&mut spec) else {
        return;
    };
    hooks.run_poststop(id, bundle.path(), reaper).await;
}
