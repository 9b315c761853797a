// SPDX-License-Identifier: Apache-2.0
//! `dunnage log FILE`: the logger behind `binary://…/dunnage?log=FILE`, and the files it writes.
//!
//! ```text
//! FILE.json   {"log":"text\n","stream":"stdout","time":"…"}      as Docker's json-file
//! FILE        2026-01-31T12:00:00Z stdout F text                  as CRI's
//! FILE.1 …    older ones
//! ```
//! The shim gives it stdout on fd 3, stderr on fd 4, and waits until it closes fd 5.

pub mod audience;
mod copy;
mod orders;
mod writer;

use crate::config::Config;
use crate::sys;
pub use copy::run;
pub use orders::{Orders, file_of, uri};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

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
    for beside in [audience::socket(&path), audience::stdin(&path)] {
        remove(&beside)?;
    }
    // There may be more than are made today.
    let mut n = 1;
    while remove(&rotated(&path, n))? || n < config.logger.max_files {
        n += 1;
    }
    Ok(())
}

/// Removes what is beside a log that stays.
pub fn keep_lines(config: &Config, namespace: &str, id: &str) {
    let path = path(config, namespace, id);
    for beside in [audience::socket(&path), audience::stdin(&path)] {
        let _ = std::fs::remove_file(beside);
    }
}

/// Makes the FIFO by which a container gets its input; its path.
///
/// # Errors
/// A text that names the file.
pub fn make_input(log: &Path) -> Result<String, String> {
    let path = audience::stdin(log);
    let failed = |e: io::Error| format!("{}: {e}", path.display());
    writer::make_dir(&path).map_err(failed)?;
    let mode = nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR;
    nix::unistd::mkfifo(&path, mode).map_err(|e| failed(e.into()))?;
    Ok(path.display().to_string())
}

/// The FIFO by which a container with such a log gets its input; nothing, if it gets none.
pub fn input_of(uri: &str) -> String {
    let fifo = file_of(uri).map(|log| audience::stdin(&log));
    let fifo = fifo.filter(|fifo| fifo.exists());
    fifo.map(|fifo| fifo.display().to_string())
        .unwrap_or_default()
}

/// Gives all of a log to a container of another name.
///
/// # Errors
/// A text that names the file.
pub fn rename(config: &Config, namespace: &str, id: &str, new: &str) -> Result<(), String> {
    let (old, new) = (path(config, namespace, id), path(config, namespace, new));
    let rename = |old: &Path, new: &Path| match std::fs::rename(old, new) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(format!("log {}: {e}", old.display())),
        Ok(()) => Ok(true),
    };
    rename(&old, &new)?;
    rename(&audience::stdin(&old), &audience::stdin(&new))?;
    let mut n = 1;
    while rename(&rotated(&old, n), &rotated(&new, n))? || n < config.logger.max_files {
        n += 1;
    }
    Ok(())
}

/// True while somebody writes to this log, perhaps what is on its way from a container that has
/// ended.
pub fn is_held(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| sys::lock(&file).is_err())
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
}
