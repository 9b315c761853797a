// SPDX-License-Identifier: Apache-2.0
//! The shim's log: containerd's FIFO in the bundle, in logrus' text form (contract B52).
//!
//! A line is written whole or not at all, and never waited for: when containerd does not read,
//! lines are dropped rather than the shim stopped. So they are when there are too many.

use crate::error::{Error, Result};
use log::{Level, LevelFilter, Log, Metadata, Record};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use protos::text;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;
use task::quota::Quota;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// What a pipe takes whole or not at all (pipe(7), PIPE_BUF), in bytes.
const MAX_LINE: usize = 4096;

struct Logger {
    runtime: &'static str,
    quota: Mutex<Quota>,
}

/// Logs to stderr from here on; a panic is logged too.
pub fn start(runtime: &'static str, debug: bool) {
    if log::set_boxed_logger(Box::new(Logger::new(runtime))).is_ok() {
        log::set_max_level(if debug {
            LevelFilter::Debug
        } else {
            LevelFilter::Info
        });
    }
    std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
}

/// The same for a program beside the shims, with what an operator wants to know.
pub fn start_plain(name: &'static str) {
    start(name, false);
}

/// Makes the FIFO `log` of the working directory our stderr. It blocks until containerd has
/// opened it, as containerd does before it starts a shim.
///
/// # Errors
/// If there is no such FIFO.
pub fn open_fifo() -> Result<()> {
    let failed = |e: io::Error| Error::io("open", "log", e);
    let fifo = OpenOptions::new().write(true).open("log").map_err(failed)?;
    fcntl(&fifo, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|e| failed(e.into()))?;
    nix::unistd::dup2_stderr(&fifo).map_err(|e| failed(e.into()))
}

impl Logger {
    fn new(runtime: &'static str) -> Self {
        Self {
            runtime,
            quota: Mutex::default(),
        }
    }

    /// The lines that are to be written for a message; none, if there is too much already.
    fn lines(&self, level: Level, message: &str, now: Instant) -> Vec<String> {
        let time = OffsetDateTime::now_utc();
        let own = line(time, level, message, self.runtime);
        let mut quota = self.quota.lock().unwrap_or_else(PoisonError::into_inner);
        match quota.take(own.len(), now) {
            None => Vec::new(),
            Some(0) => vec![own],
            Some(missed) => {
                let note = format!("too much to log: {missed} lines before this were left out");
                vec![line(time, Level::Warn, &note, self.runtime), own]
            }
        }
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            let message = record.args().to_string();
            for line in self.lines(record.level(), &message, Instant::now()) {
                let _ = io::stderr().write_all(line.as_bytes());
            }
        }
    }

    fn flush(&self) {}
}

fn line(time: OffsetDateTime, level: Level, message: &str, runtime: &str) -> String {
    let level = match level {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    };
    let time = time.format(&Rfc3339).unwrap_or_default();
    let mut most = MAX_LINE - 256;
    loop {
        let shown = text::cut(message, most);
        // Rust's quoting of a string is Go's but for rare control characters.
        let line = format!("time=\"{time}\" level={level} msg={shown:?} runtime={runtime}\n");
        // Quoted, some characters are longer.
        if line.len() <= MAX_LINE || most < 64 {
            return line;
        }
        most /= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_logrus_text() {
        let line = line(
            OffsetDateTime::UNIX_EPOCH,
            Level::Warn,
            "a \"b\"\nc",
            "io.x",
        );
        let expected =
            "time=\"1970-01-01T00:00:00Z\" level=warning msg=\"a \\\"b\\\"\\nc\" runtime=io.x\n";
        assert_eq!(line, expected);
    }

    /// Whole or not at all is what a pipe promises for so much only.
    #[test]
    fn a_line_is_never_longer_than_a_pipe_takes_at_once() {
        for text in ["x", "\u{1}", "\"", "ä", "\u{202e}"] {
            let line = line(
                OffsetDateTime::UNIX_EPOCH,
                Level::Warn,
                &text.repeat(9000),
                "io.x",
            );
            assert!(line.len() <= MAX_LINE, "{text:?}: {}", line.len());
            assert!(line.contains("bytes more)\" runtime=io.x\n"), "{line}");
        }
    }

    #[test]
    fn a_flood_of_messages_is_cut_off_and_counted() {
        let logger = Logger::new("io.x");
        let now = Instant::now();
        let flood = (0..100_000).flat_map(|_| logger.lines(Level::Warn, "the guest says so", now));
        let bytes: usize = flood.map(|line| line.len()).sum();
        assert!(bytes <= 256 << 10, "{bytes}");
        let later = now + std::time::Duration::from_secs(10);
        let lines = logger.lines(Level::Error, "at last", later);
        assert_eq!(lines.len(), 2);
        assert!(
            lines[0].contains("lines before this were left out"),
            "{lines:?}"
        );
    }
}
