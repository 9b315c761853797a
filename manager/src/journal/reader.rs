// SPDX-License-Identifier: Apache-2.0
//! Reading the journal, beside the one who writes it: a piece in memory at a time.

use super::{Record, segment, segments};
use prost::Message;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// So many bytes are read at once, or one record if that is longer.
const PIECE: u64 = 16 << 10;

pub struct Reader {
    segments: VecDeque<PathBuf>,
    /// The segment that is being read, and what was read of it and is no whole record yet.
    open: Option<(File, Vec<u8>)>,
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
            open: None,
            since,
        })
    }

    /// Gives the records of the next piece, of which there may be none, to `found`; false at the
    /// end of the journal.
    pub fn next(&mut self, mut found: impl FnMut(u64, Record)) -> bool {
        let Some((mut file, mut bytes)) = self.open.take().or_else(|| self.open_next()) else {
            return false;
        };
        let since = &mut self.since;
        let give = |seq, payload: &[u8]| {
            if seq >= *since {
                *since = seq + 1;
                if let Ok(record) = Record::decode(payload) {
                    found(seq, record);
                }
            }
        };
        match read_piece(&mut file, &mut bytes) {
            Ok(true) => {
                let taken = segment::take(&bytes, give);
                bytes.drain(..taken);
                self.open = Some((file, bytes));
            }
            Ok(false) => drop(segment::scan(&bytes, give)),
            Err(e) => log::error!("journal: {e}"),
        }
        true
    }

    fn open_next(&mut self) -> Option<(File, Vec<u8>)> {
        loop {
            let path = self.segments.pop_front()?;
            match File::open(&path) {
                Ok(file) => return Some((file, Vec::new())),
                // Compaction has just dropped it.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => log::error!("journal: {}: {e}", path.display()),
            }
        }
    }
}

/// Reads on until there is a whole record; false at the end of the file, or where it is damaged:
/// then all of it has been read.
fn read_piece(file: &mut File, bytes: &mut Vec<u8>) -> io::Result<bool> {
    loop {
        if file.take(PIECE).read_to_end(bytes)? == 0 {
            return Ok(false);
        }
        match segment::begins(bytes) {
            segment::Begin::Record => return Ok(true),
            segment::Begin::Part => {}
            segment::Begin::Damage => {
                file.read_to_end(bytes)?;
                return Ok(false);
            }
        }
    }
}
