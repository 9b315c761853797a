//! The journal: every event and every process that was started, in order, on disk before anybody
//! is told.
//!
//! Segments are files named by their first record's number. A torn tail, as a crash leaves it, is
//! cut; a segment with other damage is set aside as `<name>.bad` and its good records are kept.
//! Neither ever stops the daemon. Old records go, but never what is still needed.

mod crc;
mod segment;

use prost::Message;
use protos::types::Envelope;
use segment::End;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A segment that has grown to this is followed by a new one.
const SEGMENT: u64 = 1 << 20;

/// One entry.
#[derive(Clone, PartialEq, Message)]
pub struct Record {
    #[prost(message, optional, tag = "1")]
    pub envelope: Option<Envelope>,
    /// Where the knowledge came from: an `Origin`'s name.
    #[prost(string, tag = "2")]
    pub origin: String,
    #[prost(message, optional, tag = "3")]
    pub started: Option<Started>,
}

/// Start of this process is about to be answered with OK.
#[derive(Clone, PartialEq, Message)]
pub struct Started {
    #[prost(string, tag = "1")]
    pub namespace: String,
    #[prost(string, tag = "2")]
    pub container: String,
    /// Empty for init.
    #[prost(string, tag = "3")]
    pub exec: String,
    #[prost(uint32, tag = "4")]
    pub pid: u32,
    /// Clock ticks after boot, as in /proc/PID/stat: tells two owners of one pid apart.
    #[prost(uint64, tag = "5")]
    pub start_time: u64,
}

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub records: u64,
    pub age: std::time::Duration,
}

pub struct Journal {
    dir: PathBuf,
    limits: Limits,
    last: u64,
    open: Option<(File, u64)>,
    /// Its directory is full or gone: told once, not for every event.
    failing: bool,
}

impl Journal {
    /// Opens the journal in `dir`, repairs it, and gives every record to `found`.
    ///
    /// # Errors
    /// If the directory can't be made or read. What is in it is never an error.
    pub fn open(
        dir: &Path,
        limits: Limits,
        mut found: impl FnMut(u64, Record),
    ) -> io::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)?;
        let mut last = 0;
        for (_, path) in segments(dir)? {
            let bytes = match fs::read(&path) {
                Ok(bytes) => bytes,
                Err(e) => {
                    log::error!("journal: {}: {e}", path.display());
                    continue;
                }
            };
            let mut good = Vec::new();
            let end = segment::scan(&bytes, |seq, payload| {
                if seq <= last {
                    return;
                }
                last = seq;
                good.extend(segment::encode(seq, payload));
                if let Ok(record) = Record::decode(payload) {
                    found(seq, record);
                }
            });
            if let Err(e) = repair(&path, end, &good) {
                log::error!("journal: repair {}: {e}", path.display());
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            limits,
            last,
            open: reopen(dir),
            failing: false,
        })
    }

    /// The number of the latest record.
    pub fn last(&self) -> u64 {
        self.last
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes `record`; once this returns, it survives the end of this process.
    ///
    /// # Errors
    /// From the file system; then the record is not in the journal.
    pub fn append(&mut self, record: &Record) -> io::Result<u64> {
        let result = self.try_append(record);
        match &result {
            Ok(_) => self.failing = false,
            Err(e) => {
                // Half a record may be there: a new segment starts behind it.
                self.open = None;
                if !std::mem::replace(&mut self.failing, true) {
                    log::error!("journal: append in {}: {e}", self.dir.display());
                }
            }
        }
        result
    }

    fn try_append(&mut self, record: &Record) -> io::Result<u64> {
        let seq = self.last + 1;
        let bytes = segment::encode(seq, &record.encode_to_vec());
        let (file, size) = match &mut self.open {
            Some((_, size)) if *size >= SEGMENT => self.open.insert((create(&self.dir, seq)?, 0)),
            Some(open) => open,
            None => self.open.insert((create(&self.dir, seq)?, 0)),
        };
        file.write_all(&bytes)?;
        *size += bytes.len() as u64;
        self.last = seq;
        Ok(seq)
    }

    /// A handle whose `sync_data` makes all that was appended survive a power loss.
    pub fn file(&self) -> Option<File> {
        self.open.as_ref()?.0.try_clone().ok()
    }

    /// True if a segment has just been filled: time to [`Journal::compact`].
    pub fn is_full(&self) -> bool {
        self.open.as_ref().is_some_and(|(_, size)| *size >= SEGMENT)
    }

    /// Drops records over the limits, except those that `needed` names.
    ///
    /// # Errors
    /// From the file system; nothing is lost then.
    pub fn compact(&mut self, needed: impl Fn(u64, &Record) -> bool) -> io::Result<()> {
        let all = segments(&self.dir)?;
        let closed = all.len().saturating_sub(1);
        for (index, (_, path)) in all.iter().take(closed).enumerate() {
            let next = all.get(index + 1).map_or(self.last, |(first, _)| *first);
            let excess = self.last.saturating_sub(next) >= self.limits.records;
            let age = fs::metadata(path)?
                .modified()?
                .elapsed()
                .unwrap_or_default();
            if !excess && age < self.limits.age {
                continue;
            }
            let mut kept = Vec::new();
            segment::scan(&fs::read(path)?, |seq, payload| {
                if Record::decode(payload).is_ok_and(|record| needed(seq, &record)) {
                    kept.extend(segment::encode(seq, payload));
                }
            });
            if kept.is_empty() {
                fs::remove_file(path)?;
            } else {
                replace(path, &kept)?;
            }
        }
        Ok(())
    }
}

/// Reads the journal in `dir` from record `since` on, as it is now.
///
/// # Errors
/// If the directory can't be read.
pub fn read(dir: &Path, since: u64, mut found: impl FnMut(u64, Record)) -> io::Result<()> {
    let all = segments(dir)?;
    for (index, (_, path)) in all.iter().enumerate() {
        if all.get(index + 1).is_some_and(|(next, _)| *next <= since) {
            continue;
        }
        segment::scan(&fs::read(path)?, |seq, payload| {
            if seq >= since
                && let Ok(record) = Record::decode(payload)
            {
                found(seq, record);
            }
        });
    }
    Ok(())
}

/// First number and path of each segment, in order.
fn segments(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".log"));
        if let Some(number) = number.and_then(|number| number.parse().ok()) {
            found.push((number, entry.path()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The latest segment, to go on with. Without one the next record starts one.
fn reopen(dir: &Path) -> Option<(File, u64)> {
    let (_, path) = segments(dir).ok()?.pop()?;
    let file = OpenOptions::new().append(true).open(path).ok()?;
    let size = file.metadata().ok()?.len();
    Some((file, size))
}

fn create(dir: &Path, seq: u64) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600);
    options.open(dir.join(format!("{seq:020}.log")))
}

fn repair(path: &Path, end: End, good: &[u8]) -> io::Result<()> {
    match end {
        End::Whole => Ok(()),
        End::Torn(0) => fs::remove_file(path),
        End::Torn(length) => OpenOptions::new()
            .write(true)
            .open(path)?
            .set_len(length as u64),
        End::Corrupt => {
            log::error!("journal: {} is damaged: set aside", path.display());
            fs::copy(path, path.with_extension("bad"))?;
            replace(path, good)
        }
    }
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, bytes)?;
    fs::rename(new, path)
}

#[cfg(test)]
mod tests;
