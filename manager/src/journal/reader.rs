//! Reading the journal, beside the one who writes it: one segment in memory at a time.

use super::{Record, segment, segments};
use prost::Message;
use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub struct Reader {
    segments: VecDeque<PathBuf>,
    since: u64,
}

impl Reader {
    /// Everything in `dir` from record `since` on. Segments that are made later are not read.
    ///
    /// # Errors
    /// If the directory can't be read.
    pub fn open(dir: &Path, since: u64) -> io::Result<Self> {
        let all = segments(dir)?;
        // A segment whose successor starts early enough has nothing.
        let first = all.iter().rposition(|(first, _)| *first <= since);
        let paths = all.into_iter().skip(first.unwrap_or(0));
        Ok(Self {
            segments: paths.map(|(_, path)| path).collect(),
            since,
        })
    }

    /// Gives the records of the next segment to `found`; false if there is none.
    pub fn next(&mut self, mut found: impl FnMut(u64, Record)) -> bool {
        let Some(path) = self.segments.pop_front() else {
            return false;
        };
        match fs::read(&path) {
            Ok(bytes) => drop(segment::scan(&bytes, |seq, payload| {
                if seq >= self.since
                    && let Ok(record) = Record::decode(payload)
                {
                    found(seq, record);
                }
            })),
            // Compaction has just dropped it.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => log::error!("journal: {}: {e}", path.display()),
        }
        true
    }
}
