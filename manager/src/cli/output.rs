// SPDX-License-Identifier: Apache-2.0
//! What the client prints: tables for people, one JSON object a line for programs.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use protos::events::*;
use protos::task_types::Status;
use protos::types::Envelope;
use protos::{Any, Timestamp, any};
use serde_json::{Value, json};
use std::io::{self, Write};
use std::os::fd::AsFd;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::oneshot;

/// Writes a line to stdout, as [`write()`] does. What is in it may be others': it moves no cursor.
pub fn line(text: &str) -> Result<(), String> {
    write(
        &mut io::stdout().lock(),
        format!("{}\n", task::printable(text)).as_bytes(),
    )
}

/// Writes to stdout or stderr. If nobody reads it any more, we end as other programs do: at once,
/// silently, of SIGPIPE.
///
/// # Errors
/// A text, if it fails for another reason.
pub fn write(to: &mut impl Write, bytes: &[u8]) -> Result<(), String> {
    match to.write_all(bytes).and_then(|()| to.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => crate::sys::end_by_sigpipe(),
        written => written.map_err(|e| format!("output: {e}")),
    }
}

/// Does what only watches, until nobody reads our stdout any more: `| head` may have seen enough
/// long before there is more to write.
pub async fn while_read<T>(watching: impl Future<Output = T>) -> T {
    let (gone, reader_gone) = oneshot::channel();
    std::thread::spawn(move || {
        let stdout = io::stdout();
        // Errors and hang-ups are told unasked; a file has neither.
        let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
        while let Err(Errno::EINTR) | Ok(0) = poll(&mut fds, PollTimeout::NONE) {}
        let _ = gone.send(());
    });
    tokio::select! {
        biased;
        done = watching => done,
        Ok(()) = reader_gone => crate::sys::end_by_sigpipe(),
    }
}

/// Prints records, which are objects with these keys: each as a line of JSON, or all as a table. A key
/// of numbers ends with their unit, in which people see them.
pub fn rows(keys: &[&str], records: &[Value], as_json: bool) -> Result<(), String> {
    if as_json {
        let mut lines = records.iter().map(Value::to_string);
        return lines.try_for_each(|json| line(&json));
    }
    let head = keys.iter().map(|key| heading(key)).collect();
    let cells = |record: &Value| keys.iter().map(|key| cell(key, &record[key])).collect();
    table(
        std::iter::once(head)
            .chain(records.iter().map(cells))
            .collect(),
    )
}

const BYTES: &str = "_bytes";
const PERCENT: &str = "_percent";

fn heading(key: &str) -> String {
    let name = key.strip_suffix(BYTES).unwrap_or(key);
    let name = name.replace(PERCENT, " %").replace('_', " ");
    name.to_uppercase()
}

fn cell(key: &str, value: &Value) -> String {
    let shown = match (value, value.as_f64()) {
        (Value::Null, _) => "-".to_owned(),
        (Value::String(text), _) => text.clone(),
        (_, Some(bytes)) if key.ends_with(BYTES) => size(bytes),
        (_, Some(part)) if key.ends_with(PERCENT) => format!("{part:.1}"),
        (other, _) => other.to_string(),
    };
    // It is on one line, and as wide as it is shown.
    task::printable(&shown.replace(['\n', '\t'], " ")).into_owned()
}

fn size(mut bytes: f64) -> String {
    for unit in ["B", "KiB", "MiB"] {
        if bytes < 1024.0 {
            return format!("{bytes:.1}{unit}");
        }
        bytes /= 1024.0;
    }
    format!("{bytes:.1}GiB")
}

fn table(rows: Vec<Vec<String>>) -> Result<(), String> {
    let mut widths = Vec::new();
    for row in &rows {
        widths.resize(row.len(), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    for row in &rows {
        let cells = row.iter().zip(&widths);
        let padded: String = cells
            .map(|(cell, &width)| format!("{cell:width$}  "))
            .collect();
        line(padded.trim_end())?;
    }
    Ok(())
}

pub fn time(at: Option<Timestamp>) -> String {
    let Some(at) = at.filter(|at| at.seconds > 0) else {
        return String::new();
    };
    let nanos = i128::from(at.seconds) * 1_000_000_000 + i128::from(at.nanos);
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanos).ok();
    time.and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default()
}

/// Reads a time: RFC 3339, or how long ago ("10m").
///
/// # Errors
/// A text that names it.
pub fn parse_time(text: &str) -> Result<Timestamp, String> {
    if let Ok(crate::config::Span(ago)) = text.parse() {
        let ago = time::Duration::try_from(ago).ok();
        let then = ago.and_then(|ago| OffsetDateTime::now_utc().checked_sub(ago));
        // Nothing was before.
        let beginning = OffsetDateTime::UNIX_EPOCH;
        return Ok(timestamp(then.unwrap_or(beginning).max(beginning)));
    }
    OffsetDateTime::parse(text, &Rfc3339)
        .map(timestamp)
        .map_err(|_| {
            format!("{text:?} is no time: 2026-01-31T12:00:00Z, or 10m for ten minutes ago")
        })
}

fn timestamp(time: OffsetDateTime) -> Timestamp {
    Timestamp {
        seconds: time.unix_timestamp(),
        nanos: time.nanosecond().cast_signed(),
    }
}

pub fn status(number: i32) -> &'static str {
    match Status::try_from(number) {
        Ok(Status::Created) => "created",
        Ok(Status::Running) => "running",
        Ok(Status::Stopped) => "stopped",
        Ok(Status::Paused) => "paused",
        Ok(Status::Pausing) => "pausing",
        _ => "unknown",
    }
}

/// An event as an object.
pub fn event(seq: u64, origin: &str, envelope: &Envelope) -> Value {
    let mut object = json!({
        "seq": seq,
        "time": time(envelope.timestamp),
        "namespace": envelope.namespace,
        "topic": envelope.topic,
        "event": envelope.event.as_ref().map(body),
    });
    if envelope.topic == protos::topic::TASK_EXIT && !origin.is_empty() {
        object["origin"] = origin.into();
    }
    object
}

fn body(event: &Any) -> Value {
    macro_rules! known {
        ($($kind:ident { $($field:ident),* } $(time $at:ident)?;)*) => {
            $(if let Some(Ok(event)) = any::unpack::<$kind>(event) {
                #[allow(unused_mut, reason = "only some events have a time")]
                let mut object = json!({ $(stringify!($field): event.$field),* });
                $(object[stringify!($at)] = time(event.$at).into();)?
                return object;
            })*
        };
    }
    known! {
        TaskCreate { container_id, bundle, pid, checkpoint };
        TaskStart { container_id, pid };
        TaskExit { container_id, id, pid, exit_status } time exited_at;
        TaskDelete { container_id, id, pid, exit_status } time exited_at;
        TaskOom { container_id };
        TaskExecAdded { container_id, exec_id };
        TaskExecStarted { container_id, exec_id, pid };
        TaskPaused { container_id };
        TaskResumed { container_id };
        TaskCheckpointed { container_id, checkpoint };
        ContainerCreate { id, image };
        ContainerUpdate { id, image, labels };
        ContainerDelete { id };
        NamespaceCreate { name, labels };
        NamespaceUpdate { name, labels };
        NamespaceDelete { name };
    }
    json!({"type_url": event.type_url})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_both_ways() {
        assert_eq!(parse_time("1970-01-01T00:00:09Z").unwrap().seconds, 9);
        let ago = parse_time("1h").unwrap().seconds;
        assert!((OffsetDateTime::now_utc().unix_timestamp() - ago - 3600).abs() < 5);
        assert!(parse_time("yesterday").is_err());
        for long in [
            "99999999999h",
            "18446744073709551615h",
            "18446744073709551615ms",
        ] {
            assert_eq!(parse_time(long), Ok(Timestamp::default()), "{long}");
        }
    }

    #[test]
    fn people_see_units_and_programs_numbers() {
        let record =
            json!({"memory_bytes": 65 << 20, "cpu_percent": 1.25, "pid": 7, "limit_bytes": null});
        let shown = ["memory_bytes", "cpu_percent", "pid", "limit_bytes"]
            .map(|key| (heading(key), cell(key, &record[key])));
        let expected = [
            ("MEMORY", "65.0MiB"),
            ("CPU %", "1.2"),
            ("PID", "7"),
            ("LIMIT", "-"),
        ];
        assert_eq!(
            shown,
            expected.map(|(head, cell)| (head.to_owned(), cell.to_owned()))
        );
        assert_eq!(cell("exec", &json!("a\nb\u{1b}")), "a b\\u001b");
    }

    #[test]
    fn an_exit_is_an_object() {
        let exit = TaskExit {
            container_id: "c".into(),
            id: "c".into(),
            pid: 5,
            exit_status: 7,
            exited_at: Some(Timestamp {
                seconds: 9,
                nanos: 0,
            }),
        };
        let envelope = Envelope {
            topic: "/tasks/exit".into(),
            event: Some(any::pack(&exit)),
            ..Default::default()
        };
        let object = event(3, "shim", &envelope);
        assert_eq!(object["event"]["exit_status"], 7);
        assert_eq!(object["event"]["exited_at"], "1970-01-01T00:00:09Z");
        assert_eq!(object["origin"], "shim");
    }
}
