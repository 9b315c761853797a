//! The shim's log: containerd's FIFO in the bundle, in logrus' text form (contract B52).
//!
//! A line is written whole or not at all, and never waited for: when containerd does not read,
//! lines are dropped rather than the shim stopped.

use crate::error::{Error, Result};
use log::{Level, LevelFilter, Log, Metadata, Record};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::fs::OpenOptions;
use std::io::{self, Write};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

struct Logger {
    runtime: &'static str,
}

/// Logs to stderr from here on; a panic is logged too.
pub fn start(runtime: &'static str, debug: bool) {
    if log::set_boxed_logger(Box::new(Logger { runtime })).is_ok() {
        log::set_max_level(if debug {
            LevelFilter::Debug
        } else {
            LevelFilter::Info
        });
    }
    std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
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

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            let now = OffsetDateTime::now_utc();
            let line = line(
                now,
                record.level(),
                &record.args().to_string(),
                self.runtime,
            );
            let _ = io::stderr().write_all(line.as_bytes());
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
    // Rust's quoting of a string is Go's but for rare control characters.
    format!("time=\"{time}\" level={level} msg={message:?} runtime={runtime}\n")
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
}
