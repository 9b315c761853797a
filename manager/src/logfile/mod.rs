//! `dunnage log FILE`: the logger behind `binary://…/dunnage?log=FILE`, and the files it writes.
//!
//! ```text
//! FILE.json   {"log":"text\n","stream":"stdout","time":"…"}      as Docker's json-file
//! FILE        2026-01-31T12:00:00Z stdout F text                  as CRI's
//! FILE.1 …    older ones
//! ```
//! The shim gives it stdout on fd 3, stderr on fd 4, and waits until it closes fd 5.

mod orders;
mod writer;

use crate::config::Config;
use crate::sys;
pub use orders::{Orders, file_of, uri};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::mpsc;
use writer::Writer;

const STDOUT: i32 = 3;
const STDERR: i32 = 4;
const READY: i32 = 5;
/// A line that is longer is written in parts.
const LONGEST: usize = 16 << 10;

/// One line of a log.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    pub time: String,
    pub is_stderr: bool,
    /// Whatever was written; CRI's form keeps it as it is.
    pub text: Vec<u8>,
}

/// Reads a line of either form. `None` for what is none, as a line that a full disk has torn.
pub fn parse(line: &[u8]) -> Option<Entry> {
    if line.starts_with(b"{") {
        let object: serde_json::Value = task::json::read(line).ok()?;
        return Some(Entry {
            time: object["time"].as_str()?.to_owned(),
            is_stderr: object["stream"] == "stderr",
            text: object["log"].as_str()?.into(),
        });
    }
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut parts = line.splitn(4, |&byte| byte == b' ');
    let mut word = || std::str::from_utf8(parts.next()?).ok();
    let (time, stream, tag) = (word()?, word()?, word()?);
    let end: &[u8] = if tag == "P" { b"" } else { b"\n" };
    Some(Entry {
        time: time.to_owned(),
        is_stderr: stream == "stderr",
        text: [parts.next()?, end].concat(),
    })
}

fn format(is_json: bool, entry: &Entry) -> Vec<u8> {
    let stream = if entry.is_stderr { "stderr" } else { "stdout" };
    if is_json {
        let text = replaced(&entry.text);
        let object = serde_json::json!({"log": text, "stream": stream, "time": entry.time});
        return format!("{object}\n").into_bytes();
    }
    let (text, tag) = match entry.text.strip_suffix(b"\n") {
        Some(text) => (text, "F"),
        None => (entry.text.as_slice(), "P"),
    };
    let begin = format!("{} {stream} {tag} ", entry.time);
    [begin.as_bytes(), text, b"\n"].concat()
}

/// JSON has no bytes, only characters: each byte that is of none becomes U+FFFD, as Docker has it.
fn replaced(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    text
}

/// Where the log of a container is that did not say otherwise.
pub fn path(config: &Config, namespace: &str, id: &str) -> PathBuf {
    config
        .root
        .join("logs")
        .join(namespace)
        .join(format!("{id}.json"))
}

/// The name of the n-th oldest file.
pub fn rotated(path: &Path, n: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    name.into()
}

/// Removes the log of a container that did not say where it is to be, with all its older files.
///
/// # Errors
/// A text that names the file.
pub fn remove(config: &Config, namespace: &str, id: &str) -> Result<(), String> {
    let path = path(config, namespace, id);
    let remove = |file: &Path| match std::fs::remove_file(file) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(format!("log {}: {e}", file.display())),
        Ok(()) => Ok(true),
    };
    remove(&path)?;
    // There may be more than are made today.
    let mut n = 1;
    while remove(&rotated(&path, n))? || n < config.logger.max_files {
        n += 1;
    }
    Ok(())
}

/// True while somebody writes to this log, perhaps what is on its way from a container that has
/// ended.
pub fn is_held(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| sys::lock(&file).is_err())
}

/// Copies both streams to where it is told until they end.
///
/// # Errors
/// A text; then the shim sees that its logger did not get ready.
pub fn run(orders: &Orders) -> Result<(), String> {
    let path = orders.file.as_path();
    let failed = |e: io::Error| format!("log {}: {e}", path.display());
    let inherited = |fd| task::sys::adopt(fd).map_err(failed);
    let (stdout, stderr, ready) = (inherited(STDOUT)?, inherited(STDERR)?, inherited(READY)?);
    let mut writer = Writer::open(path, orders.limits()).map_err(failed)?;
    let is_json = path
        .extension()
        .is_some_and(|extension| extension == "json");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.map_err(failed)?.block_on(async {
        let (sender, mut entries) = mpsc::channel(16);
        let term = task::signals::Signals::new([nix::sys::signal::Signal::SIGTERM]).map_err(failed)?;
        for (fd, is_stderr) in [(stdout, false), (stderr, true)] {
            let receiver = Receiver::from_owned_fd(fd).map_err(failed)?;
            tokio::spawn(split(receiver, is_stderr, sender.clone()));
        }
        drop(sender);
        drop(ready);
        let mut told = false;
        loop {
            tokio::select! {
                biased;
                entry = entries.recv() => match entry {
                    Some(entry) => {
                        // A full disk must not stop the container.
                        if let Err(e) = writer.write(&format(is_json, &entry)) {
                            log::error!("log {}: {e}", path.display());
                        }
                    }
                    None => return Ok(()),
                },
                // All that was written is read first; a stream that stays open is not waited for.
                _ = term.next(), if !told => told = true,
                () = tokio::time::sleep(std::time::Duration::from_secs(1)), if told => return Ok(()),
            }
        }
    })
}

async fn split(mut receiver: Receiver, is_stderr: bool, to: mpsc::Sender<Entry>) {
    let mut rest: Vec<u8> = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let n = receiver.read(&mut buffer).await.unwrap_or(0);
        rest.extend_from_slice(&buffer[..n]);
        while let Some(end) = end_of_line(&rest, n == 0) {
            let text = rest.drain(..end).collect();
            let time = OffsetDateTime::now_utc()
                .format(&Rfc3339)
                .unwrap_or_default();
            let entry = Entry {
                time,
                is_stderr,
                text,
            };
            if to.send(entry).await.is_err() {
                return;
            }
        }
        if n == 0 {
            return;
        }
    }
}

fn end_of_line(bytes: &[u8], is_last: bool) -> Option<usize> {
    match bytes.iter().position(|&byte| byte == b'\n') {
        Some(end) if end < LONGEST => Some(end + 1),
        _ if bytes.len() >= LONGEST => Some(between_characters(bytes, LONGEST)),
        _ => (is_last && !bytes.is_empty()).then_some(bytes.len()),
    }
}

/// The last place up to `end` that is not inside a character.
fn between_characters(bytes: &[u8], end: usize) -> usize {
    // None is longer than four bytes, the first of which tells how many they are.
    for back in 1..=3 {
        let length = bytes[end - back].leading_ones() as usize;
        if length != 1 {
            let is_cut = (2..=4).contains(&length) && length > back;
            return if is_cut { end - back } else { end };
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_back() {
        for (text, is_stderr) in [("a \"b\"\n", true), ("half", false), ("\n", false)] {
            let entry = Entry {
                time: "2026-01-31T12:00:00Z".into(),
                is_stderr,
                text: text.into(),
            };
            for is_json in [true, false] {
                assert_eq!(parse(&format(is_json, &entry)).unwrap(), entry);
            }
        }
        assert_eq!(parse(b"nonsense"), None);
        assert_eq!(parse(b"{\"log\":\"caf\xc3"), None);
    }

    /// CRI's form keeps them; in JSON each becomes what Docker makes of it.
    #[test]
    fn bytes_that_are_no_characters() {
        let entry = Entry {
            time: "t".into(),
            is_stderr: false,
            text: b"\xe6\x96 \xe4\n".into(),
        };
        assert_eq!(format(false, &entry), b"t stdout F \xe6\x96 \xe4\n");
        assert_eq!(parse(&format(false, &entry)).unwrap(), entry);
        let json = parse(&format(true, &entry)).unwrap().text;
        assert_eq!(json, "\u{fffd}\u{fffd} \u{fffd}\n".as_bytes());
    }

    #[test]
    fn long_lines_come_in_parts() {
        assert_eq!(end_of_line(b"ab\ncd", false), Some(3));
        assert_eq!(end_of_line(b"cd", false), None);
        assert_eq!(end_of_line(b"cd", true), Some(2));
        assert_eq!(end_of_line(&[b'x'; LONGEST + 5], false), Some(LONGEST));
        for (character, cuts) in [("\u{e4}", 1), ("\u{65b9}", 2), ("\u{1f600}", 3)] {
            for before in 0..=cuts + 1 {
                let mut bytes = vec![b'x'; LONGEST - before];
                bytes.extend_from_slice(character.as_bytes());
                bytes.extend_from_slice(b"xxxxxx");
                let cut = if before <= cuts {
                    LONGEST - before
                } else {
                    LONGEST
                };
                assert_eq!(
                    end_of_line(&bytes, false),
                    Some(cut),
                    "{character} {before}"
                );
            }
        }
        for no_character in [b"\x80\x80\x80\x80", b"xxx\xff", b"\xff\x80\x80\x80"] {
            let bytes = [&[b'x'; LONGEST - 4], &no_character[..], b"x"].concat();
            assert_eq!(end_of_line(&bytes, false), Some(LONGEST));
        }
    }
}
