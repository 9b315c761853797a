// SPDX-License-Identifier: Apache-2.0
//! Our stderr: whoever reads it may stand still, or its disk, so the loop has it written by a thread.

use std::io::{self, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use task::aside;

/// So many bytes wait to be written; further ones are lost, and counted.
const MOST: usize = 1 << 20;
/// How long whoever ends waits for what is still to be written.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What is to be written.
struct Waiting {
    bytes: Vec<u8>,
    lost: u64,
    /// There is a loop that must not wait.
    has_loop: bool,
    /// A thread is at it.
    is_written: bool,
}

static WAITING: Mutex<Waiting> = Mutex::new(Waiting {
    bytes: Vec::new(),
    lost: 0,
    has_loop: false,
    is_written: false,
});
static WRITTEN: Condvar = Condvar::new();

fn waiting() -> MutexGuard<'static, Waiting> {
    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on nobody waits for it. Not before signals are blocked: a thread would get them.
pub fn begin() {
    waiting().has_loop = true;
}

/// Waits until all is written, but not for long; from now on whoever writes waits.
pub fn finish() {
    let mut waiting = waiting();
    waiting.has_loop = false;
    let done = WRITTEN.wait_timeout_while(waiting, LAST_WORDS, |it| it.is_written);
    drop(done);
}

/// Writes whole lines.
pub fn write(lines: &[u8]) {
    let mut waiting = waiting();
    if !waiting.has_loop {
        drop(waiting);
        // Nobody is left who could be told of an error.
        let _ = io::stderr().write_all(lines);
        return;
    }
    if waiting.bytes.len() + lines.len() > MOST {
        waiting.lost += 1;
        return;
    }
    if waiting.lost > 0 {
        let lost = std::mem::take(&mut waiting.lost);
        let note = format!("stderr was not read: {lost} lines before this are lost\n");
        waiting.bytes.extend_from_slice(note.as_bytes());
    }
    waiting.bytes.extend_from_slice(lines);
    let is_written = std::mem::replace(&mut waiting.is_written, true);
    drop(waiting);
    if !is_written {
        aside::forget(|| write_all(&mut io::stderr()));
    }
}

/// Writes all that waits, and what comes meanwhile.
fn write_all(to: &mut impl Write) {
    loop {
        let bytes = {
            let mut waiting = waiting();
            if waiting.bytes.is_empty() {
                waiting.is_written = false;
                WRITTEN.notify_all();
                return;
            }
            std::mem::take(&mut waiting.bytes)
        };
        let _ = to.write_all(&bytes);
    }
}
