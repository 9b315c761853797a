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

/// Rows under a head, in columns.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> Result<(), String> {
    // A cell is on one line, and as wide as it is shown.
    let shown = |cell: &String| task::printable(&cell.replace(['\n', '\t'], " ")).into_owned();
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(shown).collect())
        .collect();
    let width = |column: usize| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let print = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:width$}  "));
        line(padded.collect::<String>().trim_end())
    };
    print(&mut head.iter().copied())?;
    rows.iter()
        .try_for_each(|row| print(&mut row.iter().map(String::as_str)))
}

/// Prints each row as an object instead, if `json` is wanted.
pub fn rows(head: &[&str], rows: &[Vec<String>], as_json: bool) -> Result<(), String> {
    if !as_json {
        return table(head, rows);
    }
    for row in rows {
        let pairs = head.iter().zip(row);
        let pairs =
            pairs.map(|(key, cell)| (key.to_lowercase().replace(' ', "_"), cell.as_str().into()));
        line(&Value::Object(pairs.collect()).to_string())?;
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
