// SPDX-License-Identifier: Apache-2.0
//! Segments as dunnage wrote them before its records had marks: read once, and written anew.
//!
//! ```text
//! <number>.log:  | length u32 | crc32c u32 | seq u64 | payload ... |
//!                                          '-- length counts these, and the checksum covers them
//! ```
//! What lies behind damage is not looked for: nobody could tell a record from what somebody wrote
//! into one. The file is kept then, as `<number>.bad`.

use super::crc::crc32c;
use super::{SUFFIX, named, segment};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

const OLD: &str = ".log";
const HEAD: usize = 8;
const SEQ: usize = 8;

/// Leaves no old segment in `dir`, but those that can't be read or written anew: they wait for the next
/// time.
///
/// # Errors
/// If the directory can't be read.
pub fn convert(dir: &Path) -> io::Result<()> {
    for (first, path) in named(dir, OLD)? {
        let new = dir.join(format!("{first:020}{SUFFIX}"));
        if let Err(e) = convert_one(dir, &path, &new) {
            log::error!("journal: {}: {e}", path.display());
        }
    }
    Ok(())
}

fn convert_one(dir: &Path, path: &Path, new: &Path) -> io::Result<()> {
    let bytes = fs::read(path)?;
    let (good, length) = converted(&bytes);
    // It may be there already: from a time that was interrupted, or because one had failed.
    let there = fs::read(new).ok();
    let is_known = |there: &Vec<u8>| there.starts_with(&good);
    if there.is_none() && !good.is_empty() {
        let unfinished = new.with_extension("new");
        let mut file = File::create(&unfinished)?;
        file.write_all(&good)?;
        // It is no younger for that.
        file.set_modified(fs::metadata(path)?.modified()?)?;
        file.sync_all()?;
        fs::rename(unfinished, new)?;
        File::open(dir)?.sync_all()?;
    }
    if length == bytes.len() && there.as_ref().is_none_or(is_known) {
        return fs::remove_file(path);
    }
    let text = "is torn or damaged, or too late: set aside";
    log::warn!("journal: {} {text}", path.display());
    fs::rename(path, path.with_extension("bad"))
}

/// The records that `bytes` begin with, as they are written today, and how many bytes they take.
fn converted(bytes: &[u8]) -> (Vec<u8>, usize) {
    let (mut good, mut at, mut last) = (Vec::new(), 0, 0);
    while let Some((seq, payload)) = record(&bytes[at..])
        && seq > last
    {
        good.extend(segment::encode(seq, payload));
        at += HEAD + SEQ + payload.len();
        last = seq;
    }
    (good, at)
}

fn record(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let (length, crc) = (word(0)? as usize, word(4)?);
    let body = bytes.get(HEAD..HEAD.checked_add(length)?)?;
    let (seq, payload) = body.split_at_checked(SEQ)?;
    let seq = u64::from_le_bytes(seq.try_into().ok()?);
    (crc == crc32c(body)).then_some((seq, payload))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// As it was written then.
    pub fn encode(seq: u64, payload: &[u8]) -> Vec<u8> {
        let body = [&seq.to_le_bytes()[..], payload].concat();
        let length = (body.len() as u32).to_le_bytes();
        [&length[..], &crc32c(&body).to_le_bytes(), &body].concat()
    }

    fn found(bytes: &[u8]) -> Vec<u64> {
        let mut found = Vec::new();
        let (good, _) = converted(bytes);
        segment::scan(&good, |seq, _| found.push(seq));
        found
    }

    #[test]
    fn what_is_whole_is_written_anew_and_nothing_that_was_within_a_record() {
        let inner = [encode(3, b"forged"), segment::encode(3, b"forged")].concat();
        let records = [encode(1, b"one"), encode(2, &inner)];
        let bytes = records.concat();
        assert_eq!(found(&bytes), [1, 2]);
        for cut in 0..bytes.len() {
            let whole = u64::from(cut >= records[0].len());
            assert_eq!(
                found(&bytes[..cut]),
                Vec::from_iter(1..=whole),
                "cut at {cut}"
            );
        }
    }
}
