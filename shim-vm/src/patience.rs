// SPDX-License-Identifier: Apache-2.0
//! How long a process may take that is to boot a guest: on a machine that is busy with others, what it
//! waits for a processor is not its own.

use crate::word::Doom;
use protos::ttrpc::Context;
use std::cell::Cell;
use std::fs;
use std::time::{Duration, Instant};

/// Whatever it waits for, it may not take longer than so many times what it may take.
const MOST: u32 = 5;
/// How soon to look again, at least.
const AGAIN: Duration = Duration::from_millis(100);

/// Waits until the process that `pid` tells has had `time`; there may be none yet.
pub async fn over(time: Duration, pid: impl Fn() -> u32) {
    let began = Instant::now();
    loop {
        let left = left(time, began.elapsed(), waited(pid()));
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.max(AGAIN)).await;
    }
}

/// Waits until a boot by the process `qemu` is of no use any more, and tells why.
pub async fn given_up(
    context: &Context,
    doom: &Doom,
    deadline: Duration,
    qemu: &Cell<u32>,
) -> String {
    tokio::select! {
        why = context.cancelled() => why.message,
        why = doom.sealed() => why,
        () = over(deadline, || qemu.get()) => {
            format!("the guest was not ready within {} s", deadline.as_secs())
        }
    }
}

/// What it has left of `time`.
fn left(time: Duration, elapsed: Duration, waited: Duration) -> Duration {
    let of_its_own = time.saturating_sub(elapsed.saturating_sub(waited));
    of_its_own.min((time * MOST).saturating_sub(elapsed))
}

/// How long that thread of the process that waited most for a processor has waited for one.
fn waited(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    let threads = threads.into_iter().flatten().flatten();
    let waited = threads.filter_map(|thread| {
        let text = task::proc::text(thread.path().join("schedstat")).ok()?;
        text.split(' ').nth(1)?.parse().ok()
    });
    Duration::from_nanos(waited.max().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_others_took_is_not_counted() {
        let seconds = Duration::from_secs;
        for (elapsed, waited, expected) in [
            (0, 0, 30),
            (29, 0, 1),
            (30, 0, 0),
            (30, 20, 20),
            (60, 31, 1),
            (60, 30, 0),
            (149, 149, 1),
            (150, 150, 0),
            (10, 11, 30),
        ] {
            let left = left(seconds(30), seconds(elapsed), seconds(waited));
            assert_eq!(left, seconds(expected), "{elapsed} {waited}");
        }
        assert_eq!(waited(0), Duration::ZERO);
    }
}
