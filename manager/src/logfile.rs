//! `dunnage log FILE`: the logger behind `binary://…/dunnage?log=FILE`, and the files it writes.
//!
//! ```text
//! FILE.json   {"log":"text\n","stream":"stdout","time":"…"}      as Docker's json-file
//! FILE        2026-01-31T12:00:00Z stdout F text                  as CRI's
//! FILE.1 …    older ones
//! ```
//! The shim gives it stdout on fd 3, stderr on fd 4, and waits until it closes fd 5.

use crate::config::Config;
use crate::sys;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::mpsc;

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
    pub text: String,
}

/// Reads a line of either form.
pub fn parse(line: &str) -> Option<Entry> {
    if line.starts_with('{') {
        let object: serde_json::Value = task::json::read(line.as_bytes()).ok()?;
        return Some(Entry {
            time: object["time"].as_str()?.to_owned(),
            is_stderr: object["stream"] == "stderr",
            text: object["log"].as_str()?.to_owned(),
        });
    }
    let mut parts = line.trim_end_matches('\n').splitn(4, ' ');
    let (time, stream, tag) = (parts.next()?, parts.next()?, parts.next()?);
    let end = if tag == "P" { "" } else { "\n" };
    Some(Entry {
        time: time.to_owned(),
        is_stderr: stream == "stderr",
        text: format!("{}{end}", parts.next()?),
    })
}

fn format(is_json: bool, entry: &Entry) -> String {
    let stream = if entry.is_stderr { "stderr" } else { "stdout" };
    if is_json {
        let object = serde_json::json!({"log": entry.text, "stream": stream, "time": entry.time});
        return format!("{object}\n");
    }
    let (text, tag) = match entry.text.strip_suffix('\n') {
        Some(text) => (text, "F"),
        None => (entry.text.as_str(), "P"),
    };
    format!("{} {stream} {tag} {text}\n", entry.time)
}

/// The name of the n-th oldest file.
pub fn rotated(path: &Path, n: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    name.into()
}

struct Writer {
    path: PathBuf,
    file: File,
    size: u64,
    max_size: u64,
    max_files: u32,
}

impl Writer {
    fn open(path: &Path, max_size: u64, max_files: u32) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o750)
                .create(dir)?;
        }
        let file = append(path)?;
        Ok(Self {
            path: path.to_owned(),
            size: file.metadata()?.len(),
            file,
            max_size,
            max_files,
        })
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        if self.size > 0 && self.size + line.len() as u64 > self.max_size {
            for n in (1..self.max_files.max(1)).rev() {
                let _ = std::fs::rename(rotated(&self.path, n), rotated(&self.path, n + 1));
            }
            std::fs::rename(&self.path, rotated(&self.path, 1))?;
            self.file = append(&self.path)?;
            self.size = 0;
        }
        self.size += line.len() as u64;
        self.file.write_all(line.as_bytes())
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(path)
}

/// Copies both streams to `path` until they end.
///
/// # Errors
/// A text; then the shim sees that its logger did not get ready.
pub fn run(config: &Config, path: &Path) -> Result<(), String> {
    let failed = |e: io::Error| format!("log {}: {e}", path.display());
    let inherited = |fd| sys::inherited_fd(fd).map_err(failed);
    let (stdout, stderr, ready) = (inherited(STDOUT)?, inherited(STDERR)?, inherited(READY)?);
    let (size, files) = (config.logger.max_size, config.logger.max_files);
    let mut writer = Writer::open(path, size, files).map_err(failed)?;
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
            let text = String::from_utf8_lossy(&rest[..end]).into_owned();
            rest.drain(..end);
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
        _ if bytes.len() >= LONGEST => Some(LONGEST),
        _ => (is_last && !bytes.is_empty()).then_some(bytes.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_back() {
        for (text, is_stderr) in [("a \"b\"\n", true), ("half", false)] {
            let entry = Entry {
                time: "2026-01-31T12:00:00Z".into(),
                is_stderr,
                text: text.into(),
            };
            for is_json in [true, false] {
                assert_eq!(parse(&format(is_json, &entry)).unwrap(), entry);
            }
        }
        assert_eq!(parse("nonsense"), None);
    }

    #[test]
    fn files_are_rotated_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs/c.json");
        let mut writer = Writer::open(&path, 10, 2).unwrap();
        for line in ["one......\n", "two......\n", "three....\n", "four.....\n"] {
            writer.write(line).unwrap();
        }
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        assert_eq!(read(&path), "four.....\n");
        assert_eq!(read(&rotated(&path, 1)), "three....\n");
        assert_eq!(read(&rotated(&path, 2)), "two......\n");
        assert!(!rotated(&path, 3).exists());
    }

    #[test]
    fn long_lines_come_in_parts() {
        assert_eq!(end_of_line(b"ab\ncd", false), Some(3));
        assert_eq!(end_of_line(b"cd", false), None);
        assert_eq!(end_of_line(b"cd", true), Some(2));
        assert_eq!(end_of_line(&[b'x'; LONGEST + 5], false), Some(LONGEST));
    }
}
