// SPDX-License-Identifier: Apache-2.0
//! The kernel's wait before a process is moved into another cgroup, begun ahead.
//!
//! Who moves one writes what every fork and exit reads: after a while without any, that waits until no
//! processor can be reading (a grace period of RCU), for 8 ms on a machine with nothing to do and for longer
//! on a busy one. Who comes soon after that does not wait. An OCI runtime moves its process some milliseconds after
//! it was started, and the wait can be over by then.
//!
//! With version 1 alone: with version 2 there are runtimes that move none, but fork it into its cgroup.

use super::Cgroup;
use super::find::Place;
use crate::aside;
use std::fs::File;
use std::io::{self, Write};

/// Waits so, on a thread of its own.
pub async fn wait_ahead() {
    // Without it the runtime waits.
    if let Err(e) = aside::alone(wait).await {
        log::debug!("the wait for a change of cgroups: {e}");
    }
}

/// Moves this thread to where it is. If its process is moved meanwhile, it stays behind alone.
fn wait() -> io::Result<()> {
    let own = Cgroup::of_pid(std::process::id()).map_err(io::Error::other)?;
    if let (Place::V1(_), Some(dir)) = (&own.0, own.dir()) {
        let mut tasks = File::options().write(true).open(dir.join("tasks"))?;
        write!(tasks, "{}", nix::unistd::gettid())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_elsewhere_afterwards() {
        let now = || std::fs::read("/proc/thread-self/cgroup").unwrap();
        let before = now();
        wait().unwrap();
        assert_eq!(now(), before);
    }
}
