// SPDX-License-Identifier: Apache-2.0
//! Our own log, on stderr: one line an event, as text or as JSON.

use crate::config::{Config, Format};
use crate::stderr;
use log::{Level, LevelFilter, Log, Metadata, Record};
use protos::text;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;
use task::quota::Quota;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

struct Logger(Format, Mutex<Quota>);

/// Logs from here on; a panic is logged too.
pub fn start(config: &Config) {
    if log::set_boxed_logger(Box::new(Logger(config.log.format, Mutex::default()))).is_ok() {
        log::set_max_level(config.log.level.parse().unwrap_or(LevelFilter::Info));
    }
    std::panic::set_hook(Box::new(|panic| {
        log::error!("{panic}");
        stderr::finish();
    }));
}

impl Logger {
    fn line(&self, level: Level, message: &str) -> String {
        let time = OffsetDateTime::now_utc()
            .format(&Rfc3339)
            .unwrap_or_default();
        let level = level.as_str().to_lowercase();
        let message = text::cut(message, text::MAX);
        match self.0 {
            // One line an event, whatever others said.
            Format::Text => {
                let message = task::printable(&message).replace('\n', "\\n");
                format!("{time} {level:5} {message}\n")
            }
            Format::Json => {
                let json = serde_json::json!({"time": time, "level": level, "msg": message});
                format!("{json}\n")
            }
        }
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        // The libraries under us have nothing to tell an operator.
        metadata.target().starts_with("dunnage") || metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = self.line(record.level(), &record.args().to_string());
        let mut quota = self.1.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(missed) = quota.take(line.len(), Instant::now()) else {
            return;
        };
        if missed > 0 {
            let note = format!("too much to log: {missed} lines before this were left out");
            let note = self.line(Level::Warn, &note);
            stderr::write(note.as_bytes());
        }
        stderr::write(line.as_bytes());
    }

    fn flush(&self) {}
}
