//! What `delete` does for a container whose shim is gone: its VM died with the shim, or is ended
//! now, and nothing of it stays.

use crate::vm::aside;
use crate::{network, place};
use protos::Timestamp;
use protos::task::DeleteResponse;
use std::time::SystemTime;
use task::bundle::{Bundle, read_pid};

/// The status of a container that had to be killed.
const KILLED: u32 = 137;
/// The pid of a container that never had one: -1, in the wire's unsigned number (contract D3).
const NO_PID: u32 = u32::MAX;

/// Ends what is left. What is gone already is no error.
///
/// # Errors
/// If something resists.
pub async fn cleanup(namespace: &str, id: &str, bundle: &Bundle) -> shim::Result<DeleteResponse> {
    let dir = place::of(namespace, id);
    let cleared = place::clear(&dir).await;
    let netns = cleared.map_err(|e| shim::Error::io("clear", &dir, e))?;
    if let Some(netns) = netns {
        let at = netns.clone();
        let detached = aside(move || network::detach(&at)).await;
        detached.map_err(|e| shim::Error::io("take the network from", &netns, e))?;
    }
    if let Some(exit) = bundle.read_exit(None)? {
        let (seconds, nanos) = exit.exited_at;
        return Ok(DeleteResponse {
            pid: exit.pid,
            exit_status: exit.exit_status,
            exited_at: Some(Timestamp { seconds, nanos }),
        });
    }
    Ok(DeleteResponse {
        pid: read_pid(&bundle.init_pid()).unwrap_or(NO_PID),
        exit_status: KILLED,
        exited_at: Some(SystemTime::now().into()),
    })
}
