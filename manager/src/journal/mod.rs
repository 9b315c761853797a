// SPDX-License-Identifier: Apache-2.0
//! The journal: every event and every process that was started, in order, on disk before anybody
//! is told.
//!
//! Segments are files named by their first record's number. A torn tail, as a crash leaves it, is
//! cut; a segment with other damage is set aside as `<name>.bad` and its good records are kept.
//! Neither ever stops the daemon. Old records go, but never what is still needed: those of the
//! namespaces that have most.

mod crc;
mod old;
mod reader;
mod record;
mod segment;
mod shares;

pub use reader::Reader;
pub use record::{ExecDeleted, Record, Started};
/// The longest record, in bytes, encoded: as long as a message of ttrpc.
pub use segment::MAX as MAX_RECORD;

use prost::Message;
use segment::End;
use shares::{Shares, Verdicts};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A segment that has grown to this is followed by a new one.
const SEGMENT: u64 = 1 << 20;

/// Of a segment's name, behind its number.
const SUFFIX: &str = ".journal";

/// How much is kept, and how safely.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub records: u64,
    pub bytes: u64,
    pub age: std::time::Duration,
    /// Records are to survive a power loss: see [`Journal::take_unsynced`].
    pub durable: bool,
}

/// The one that is written to.
struct Segment {
    first: u64,
    file: File,
    size: u64,
}

pub struct Journal {
    dir: PathBuf,
    limits: Limits,
    last: u64,
    open: Option<Segment>,
    shares: Shares,
    /// What [`Journal::take_unsynced`] has to name besides the open segment: full segments, and the
    /// directory that has got a new one.
    unsynced: Vec<File>,
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
        old::convert(dir)?;
        let mut last = 0;
        let mut shares = Shares::default();
        for (first, path) in segments(dir)? {
            let bytes = match fs::read(&path) {
                Ok(bytes) => bytes,
                Err(e) => {
                    log::error!("journal: {}: {e}", path.display());
                    continue;
                }
            };
            let before = last;
            let end = segment::scan(&bytes, |seq, payload| {
                if seq > before {
                    last = seq;
                    if let Ok(record) = Record::decode(payload) {
                        shares.add(first, &record, payload.len());
                        found(seq, record);
                    }
                }
            });
            if let Err(e) = repair(&path, end, &bytes, before) {
                log::error!("journal: repair {}: {e}", path.display());
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            limits,
            last,
            open: reopen(dir),
            shares,
            unsynced: Vec::new(),
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
    /// `InvalidInput` for a record that is longer than [`MAX_RECORD`], else from the file system;
    /// then the record is not in the journal.
    pub fn append(&mut self, record: &Record) -> io::Result<u64> {
        let length = record.encoded_len();
        if length > MAX_RECORD {
            let text = format!("a record of {length} bytes is longer than {MAX_RECORD}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let result = self.try_append(record);
        match &result {
            Ok(_) => self.failing = false,
            Err(e) => {
                // Half a record may be there.
                if let Some(open) = &self.open
                    && open.file.set_len(open.size).is_err()
                {
                    self.open = None;
                }
                if !std::mem::replace(&mut self.failing, true) {
                    log::error!("journal: append in {}: {e}", self.dir.display());
                }
            }
        }
        result
    }

    fn try_append(&mut self, record: &Record) -> io::Result<u64> {
        let seq = self.last + 1;
        let payload = record.encode_to_vec();
        let bytes = segment::encode(seq, &payload);
        if self.open.is_none() || self.is_full() {
            let new = Segment {
                first: seq,
                file: create(&self.dir, seq)?,
                size: 0,
            };
            let full = self.open.replace(new);
            if self.limits.durable {
                self.unsynced.extend(full.map(|full| full.file));
                self.unsynced.push(File::open(&self.dir)?);
            }
        }
        let open = self.open.as_mut().ok_or(io::ErrorKind::NotFound)?;
        open.file.write_all(&bytes)?;
        open.size += bytes.len() as u64;
        self.shares.add(open.first, record, payload.len());
        self.last = seq;
        Ok(seq)
    }

    pub fn is_durable(&self) -> bool {
        self.limits.durable
    }

    /// Files whose `sync_all` makes all that was appended survive a power loss.
    ///
    /// # Errors
    /// From dup(2).
    pub fn take_unsynced(&mut self) -> io::Result<Vec<File>> {
        let open = self.open.as_ref().map(|open| open.file.try_clone());
        let mut files = std::mem::take(&mut self.unsynced);
        files.extend(open.transpose()?);
        Ok(files)
    }

    /// True if a segment has just been filled: time to [`Journal::compact`].
    pub fn is_full(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.size >= SEGMENT)
    }

    /// Drops records over the limits, the oldest first, except those that `needed` names.
    ///
    /// # Errors
    /// From the file system; nothing is lost then.
    pub fn compact(&mut self, needed: impl Fn(u64, &Record) -> bool) -> io::Result<()> {
        let mut verdicts = self.shares.judge(&self.limits);
        let all = segments(&self.dir)?;
        for (first, path) in all.iter().take(all.len().saturating_sub(1)) {
            let age = fs::metadata(path)?.modified()?.elapsed();
            let is_old = age.unwrap_or_default() >= self.limits.age;
            let goes = |of: &str, verdicts: &Verdicts| is_old || verdicts.is_over(of);
            if !self.shares.may_lose(*first, |of| goes(of, &verdicts)) {
                continue;
            }
            let mut kept = Vec::new();
            self.shares.forget(*first);
            let (shares, verdicts) = (&mut self.shares, &mut verdicts);
            segment::scan(&fs::read(path)?, |seq, payload| {
                let Ok(record) = Record::decode(payload) else {
                    return;
                };
                let namespace = shares::namespace(&record);
                if !goes(namespace, verdicts) || needed(seq, &record) {
                    kept.extend(segment::encode(seq, payload));
                    shares.add(*first, &record, payload.len());
                } else {
                    verdicts.dropped(namespace, payload.len());
                }
            });
            shares.settle(*first, |of| goes(of, verdicts));
            if kept.is_empty() {
                fs::remove_file(path)?;
            } else {
                replace(path, &kept)?;
            }
        }
        Ok(())
    }
}

/// First number and path of each segment, in order.
fn segments(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    named(dir, SUFFIX)
}

/// The same of files that are named by a number and `suffix`.
fn named(dir: &Path, suffix: &str) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(suffix));
        if let Some(number) = number.and_then(|number| number.parse().ok()) {
            found.push((number, entry.path()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The latest segment, to go on with. Without one the next record starts one.
fn reopen(dir: &Path) -> Option<Segment> {
    let (first, path) = segments(dir).ok()?.pop()?;
    let file = OpenOptions::new().append(true).open(path).ok()?;
    let size = file.metadata().ok()?.len();
    Some(Segment { first, file, size })
}

fn create(dir: &Path, seq: u64) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600);
    options.open(dir.join(format!("{seq:020}{SUFFIX}")))
}

/// Leaves in a segment what is good in its `bytes`, and newer than `before`.
fn repair(path: &Path, end: End, bytes: &[u8], before: u64) -> io::Result<()> {
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
            let mut good = Vec::new();
            segment::scan(bytes, |seq, payload| {
                if seq > before {
                    good.extend(segment::encode(seq, payload));
                }
            });
            replace(path, &good)
        }
    }
}

/// Replaces a segment by what is left of it, which is no younger for that.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    file.set_modified(fs::metadata(path)?.modified()?)?;
    fs::rename(new, path)
}

#[cfg(test)]
mod tests;
