//! Our own log, on stderr: one line an event, as text or as JSON.

use crate::config::{Config, Format};
use log::{LevelFilter, Log, Metadata, Record};
use std::io::{self, Write};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

struct Logger(Format);

/// Logs from here on; a panic is logged too.
pub fn start(config: &Config) {
    if log::set_boxed_logger(Box::new(Logger(config.log.format))).is_ok() {
        log::set_max_level(config.log.level.parse().unwrap_or(LevelFilter::Info));
    }
    std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        // The libraries under us have nothing to tell an operator.
        metadata.target().starts_with("dunnage") || metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let time = OffsetDateTime::now_utc()
            .format(&Rfc3339)
            .unwrap_or_default();
        let level = record.level().as_str().to_lowercase();
        let message = record.args().to_string();
        let line = match self.0 {
            // One line an event, whatever others said.
            Format::Text => {
                let message = task::printable(&message).replace('\n', "\\n");
                format!("{time} {level:5} {message}\n")
            }
            Format::Json => {
                let json = serde_json::json!({"time": time, "level": level, "msg": message});
                format!("{json}\n")
            }
        };
        let _ = io::stderr().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}
