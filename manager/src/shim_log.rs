// SPDX-License-Identifier: Apache-2.0
//! The log FIFO of a bundle: made before the shim starts, and copied to our own log, line by line.
//!
//! A shim that writes more than its share loses lines, and is never held up.

use crate::bundles::{Bundle, Files};
use crate::failure::{Failure, io};
use crate::names::Key;
use crate::stderr;
use protos::text;
use std::time::Instant;
use task::quota::Quota;
use tokio::net::unix::pipe::Receiver;
use tokio::task::AbortHandle;

/// A FIFO that is open and copied from, as long as this is there.
pub struct Log(AbortHandle);

impl Drop for Log {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Makes the FIFO, or opens the one that is there.
///
/// # Errors
/// From the file system.
pub async fn open(bundle: &Bundle) -> Result<Log, Failure> {
    let failed = || io(format!("log of {}", bundle.key));
    let log = bundle.with(Files::open_log).await.map_err(failed())?;
    let receiver = Receiver::from_file_unchecked(log).map_err(failed())?;
    let lines = Lines {
        of: bundle.key.clone(),
        begun: Vec::new(),
        quota: Quota::new(),
    };
    let copying = tokio::task::spawn_local(drain(receiver, lines));
    Ok(Log(copying.abort_handle()))
}

async fn drain(receiver: Receiver, mut lines: Lines) {
    while receiver.readable().await.is_ok() {
        copy(&receiver, &mut lines);
    }
}

/// Apart, so that the buffer is on the stack only while there is something to copy.
fn copy(receiver: &Receiver, lines: &mut Lines) {
    /// So many reads at a time: a shim that never stops must not stop us.
    const TURN: usize = 16;
    let mut buffer = [0; 4096];
    for _ in 0..TURN {
        match receiver.try_read(&mut buffer) {
            Ok(n @ 1..) => lines.copy(&buffer[..n], Instant::now(), stderr::write),
            _ => return,
        }
    }
}

/// What a shim logs, cut into lines of at most [`text::MAX`] bytes.
struct Lines {
    of: Key,
    /// A line whose end has not come.
    begun: Vec<u8>,
    quota: Quota,
}

impl Lines {
    fn copy(&mut self, bytes: &[u8], now: Instant, mut to: impl FnMut(&[u8])) {
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            let room = text::MAX.saturating_sub(self.begun.len());
            self.begun.extend_from_slice(&part[..part.len().min(room)]);
            if !part.ends_with(b"\n") {
                continue;
            }
            let mut line = std::mem::take(&mut self.begun);
            if !line.ends_with(b"\n") {
                line.push(b'\n');
            }
            let Some(missed) = self.quota.take(line.len(), now) else {
                continue;
            };
            if missed > 0 {
                log::warn!(
                    "{}: {missed} lines of its shim's log were left out",
                    self.of
                );
            }
            let line = String::from_utf8_lossy(&line);
            to(task::printable(&line).as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::time::Duration;

    #[test]
    fn lines_are_copied_whole_and_no_more_than_a_shims_share() {
        let mut lines = Lines {
            of: Key::new("n", "c"),
            begun: Vec::new(),
            quota: Quota::new(),
        };
        let (out, now) = (RefCell::new(Vec::new()), Instant::now());
        let to = |line: &[u8]| out.borrow_mut().extend_from_slice(line);
        lines.copy(b"one\ntw", now, to);
        assert_eq!(*out.borrow(), b"one\n");
        lines.copy(b"o\n", now, to);
        assert_eq!(*out.borrow(), b"one\ntwo\n");
        out.borrow_mut().clear();
        for _ in 0..100 {
            lines.copy(&[b'x'; 4096], now, to);
        }
        lines.copy(b"\nnext\n", now, to);
        assert_eq!(out.borrow().len(), text::MAX + 1 + 5);
        out.borrow_mut().clear();
        for _ in 0..100_000 {
            lines.copy(b"level=error msg=\"the guest says so\"\n", now, to);
        }
        assert!(out.borrow().len() <= 256 << 10, "{}", out.borrow().len());
        out.borrow_mut().clear();
        lines.copy(b"later\n", now + Duration::from_secs(1), to);
        assert_eq!(*out.borrow(), b"later\n");
    }
}
