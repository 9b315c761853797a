// SPDX-License-Identifier: Apache-2.0
//! One file of the journal: records one after the other, each with a mark, its length and checksum.
//!
//! ```text
//! | mark | length u32 | crc32c u32 | seq u64 | payload ... |     little endian; the checksum covers
//!                     '-- length counts these, stuffed --'      seq and payload as they were
//! ```
//! Whoever is recorded may write what looks like a record into his own. The mark is where a record
//! begins and nowhere else: where the first seven bytes of one would be in what it has after its
//! length, a byte follows that makes it none ([`stuffed`]). So what is left of a record that is torn
//! or damaged has no record in it, and the next one is found by its mark alone.

use super::crc::crc32c;
use std::borrow::Cow;

/// Its first byte is in it but once, so that no two of them, nor a part and a whole one, overlap; and
/// no byte is 0, as the last one of every length is.
const MARK: &[u8; 8] = b"\xf5dnjrnl\xfa";
/// A mark without its last byte, and what then follows where it is none.
const NEARLY: &[u8] = MARK.split_at(7).0;
const STUFFING: u8 = 0;
const LENGTH: usize = 4;
/// So many bytes are looked through at once for a mark.
const PIECE: usize = 64;
/// A record's mark and length.
const HEAD: usize = MARK.len() + LENGTH;
const CRC: usize = 4;
const SEQ: usize = 8;
/// The longest payload of a record, in bytes: a record that says it is longer is none.
pub const MAX: usize = 4 << 20;
const LONGEST: usize = CRC + SEQ + MAX;
/// What a record's length may say.
const LENGTHS: std::ops::RangeInclusive<usize> = CRC + SEQ..=LONGEST + LONGEST / NEARLY.len();

/// Encodes one record.
pub fn encode(seq: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; CRC];
    bytes.reserve(SEQ + payload.len());
    bytes.extend_from_slice(&seq.to_le_bytes());
    bytes.extend_from_slice(payload);
    let crc = crc32c(&bytes[CRC..]);
    bytes[..CRC].copy_from_slice(&crc.to_le_bytes());
    let bytes = stuffed(&bytes);
    let length = (bytes.len() as u32).to_le_bytes();
    [&MARK[..], &length, &bytes].concat()
}

/// What reading a segment's bytes found.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing but whole records.
    Whole,
    /// Whole records up to here; then less than one, as a crash leaves it.
    Torn(usize),
    /// Something else lies between or behind the records.
    Corrupt,
}

/// Gives every whole record of `bytes` to `found`, in order. Past damage the next one is looked for,
/// in a time that grows with the length of `bytes` and no faster, whatever they are; records whose
/// number does not grow are old bytes, not records.
pub fn scan(bytes: &[u8], mut found: impl FnMut(u64, &[u8])) -> End {
    let (mut at, mut good, mut last) = (0, 0, 0);
    let mut damaged = false;
    while at < bytes.len() {
        // Its length is not to be believed before its checksum is.
        let next = find(bytes, MARK, at + 1).unwrap_or(bytes.len());
        if let Some((seq, payload, length)) = record(&bytes[at..next])
            && seq > last
        {
            damaged |= at != good;
            found(seq, &payload);
            (good, last) = (at + length, seq);
        }
        at = next;
    }
    match () {
        () if damaged => End::Corrupt,
        () if good < bytes.len() => End::Torn(good),
        () => End::Whole,
    }
}

/// What a segment's bytes begin with.
pub enum Begin {
    Record,
    /// So far nothing is wrong; more bytes will tell.
    Part,
    Damage,
}

pub fn begins(bytes: &[u8]) -> Begin {
    if !bytes.iter().zip(MARK).all(|(one, other)| one == other) {
        return Begin::Damage;
    }
    match length(bytes) {
        None => Begin::Part,
        Some(length) if !LENGTHS.contains(&length) => Begin::Damage,
        Some(length) if bytes.len() < HEAD + length => Begin::Part,
        Some(_) if record(bytes).is_some() => Begin::Record,
        Some(_) => Begin::Damage,
    }
}

/// Gives the whole records that `bytes` begin with to `found`; how many bytes they take.
pub fn take(bytes: &[u8], mut found: impl FnMut(u64, &[u8])) -> usize {
    let mut at = 0;
    while let Some((seq, payload, length)) = record(&bytes[at..]) {
        found(seq, &payload);
        at += length;
    }
    at
}

fn length(bytes: &[u8]) -> Option<usize> {
    let length = bytes.get(MARK.len()..HEAD)?.try_into().ok()?;
    Some(u32::from_le_bytes(length) as usize)
}

/// The record that `bytes` begin with, if they do: its number, its payload, and how many bytes it is.
fn record(bytes: &[u8]) -> Option<(u64, Cow<'_, [u8]>, usize)> {
    bytes.starts_with(MARK).then_some(())?;
    let length = length(bytes).filter(|length| LENGTHS.contains(length))?;
    let end = HEAD + length;
    let body = original(bytes.get(HEAD..end)?)?;
    let (crc, seq) = (body.get(..CRC)?, body.get(CRC..CRC + SEQ)?);
    let is_whole = crc == crc32c(&body[CRC..]).to_le_bytes();
    let seq = u64::from_le_bytes(seq.try_into().ok()?);
    let payload = match body {
        Cow::Borrowed(body) => Cow::Borrowed(&body[CRC + SEQ..]),
        Cow::Owned(body) => Cow::Owned(body[CRC + SEQ..].to_vec()),
    };
    is_whole.then_some((seq, payload, end))
}

/// Where `what` is in `bytes` from `from` on.
fn find(bytes: &[u8], what: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    // Most pieces have not even its first byte, which is told at once.
    for piece in bytes.get(from..)?.chunks(PIECE) {
        if piece.contains(what.first()?) {
            let found = (at..at + piece.len()).find(|&at| bytes[at..].starts_with(what));
            if found.is_some() {
                return found;
            }
        }
        at += piece.len();
    }
    None
}

/// `bytes` with a byte more after each that could be a mark's last but one.
fn stuffed(bytes: &[u8]) -> Cow<'_, [u8]> {
    let mut stuffed = Vec::new();
    let mut at = 0;
    while let Some(found) = find(bytes, NEARLY, at) {
        let end = found + NEARLY.len();
        stuffed.extend_from_slice(&bytes[at..end]);
        stuffed.push(STUFFING);
        at = end;
    }
    if at == 0 {
        return Cow::Borrowed(bytes);
    }
    stuffed.extend_from_slice(&bytes[at..]);
    Cow::Owned(stuffed)
}

/// What was [`stuffed`]; `None` if these bytes never were.
fn original(stuffed: &[u8]) -> Option<Cow<'_, [u8]>> {
    let mut bytes = Vec::new();
    let mut at = 0;
    while let Some(found) = find(stuffed, NEARLY, at) {
        let end = found + NEARLY.len();
        (stuffed.get(end) == Some(&STUFFING)).then_some(())?;
        bytes.extend_from_slice(&stuffed[at..end]);
        at = end + 1;
    }
    if at == 0 {
        return Some(Cow::Borrowed(stuffed));
    }
    bytes.extend_from_slice(&stuffed[at..]);
    Some(Cow::Owned(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> (Vec<u8>, Vec<usize>) {
        let mut bytes = Vec::new();
        let mut ends = Vec::new();
        for (seq, payload) in [(1, "one"), (2, "two and more"), (3, "")] {
            bytes.extend(encode(seq, payload.as_bytes()));
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    fn numbers(bytes: &[u8]) -> (Vec<u64>, End) {
        let mut seqs = Vec::new();
        let end = scan(bytes, |seq, _| seqs.push(seq));
        (seqs, end)
    }

    #[test]
    fn a_cut_at_any_byte_loses_only_the_record_it_cuts() {
        let (bytes, ends) = three();
        for cut in 0..=bytes.len() {
            let whole = ends.iter().filter(|&&end| end <= cut).count();
            let (seqs, end) = numbers(&bytes[..cut]);
            assert_eq!(seqs, (1..=whole as u64).collect::<Vec<_>>(), "cut at {cut}");
            let good = if whole == 0 { 0 } else { ends[whole - 1] };
            let expected = if good == cut {
                End::Whole
            } else {
                End::Torn(good)
            };
            assert_eq!(end, expected, "cut at {cut}");
        }
    }

    #[test]
    fn a_flip_of_any_byte_loses_only_the_record_it_is_in() {
        let (bytes, ends) = three();
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x55;
            let hit = ends.iter().filter(|&&end| end <= at).count() as u64 + 1;
            let (seqs, end) = numbers(&bytes);
            let left: Vec<u64> = (1..=3).filter(|&seq| seq != hit).collect();
            assert_eq!(seqs, left, "flip at {at}");
            assert_ne!(end, End::Whole, "flip at {at}");
        }
    }

    /// Payloads that somebody made who knows the journal: records, whole and in part, one within the
    /// other, and what would be one if a byte of the journal's own came before or after it.
    fn forgeries() -> Vec<Vec<u8>> {
        let inner = encode(7, b"forged");
        let tail = |n: usize| inner[n..].to_vec();
        let mut all: Vec<Vec<u8>> = (0..HEAD + CRC).map(tail).collect();
        all.extend((1..inner.len()).map(|n| inner[..n].to_vec()));
        all.push([inner.clone(), inner.clone(), encode(u64::MAX, b"forged")].concat());
        all.push(encode(6, &inner));
        let halves: Vec<u8> = NEARLY.iter().chain(NEARLY).chain(MARK).copied().collect();
        all.push([halves, inner.clone()].concat());
        all.push([NEARLY, &[STUFFING], &inner].concat());
        all
    }

    #[test]
    fn no_record_is_found_in_what_is_left_of_another() {
        for payload in forgeries() {
            let (first, record) = (encode(1, b"first"), encode(2, &payload));
            let (mut found, whole) = (Vec::new(), [&first[..], &record].concat());
            scan(&whole, |_, payload| found.push(payload.to_vec()));
            assert_eq!(found, [b"first".to_vec(), payload.clone()]);
            for cut in 0..record.len() {
                let torn = [&first[..], &record[..cut]].concat();
                assert_eq!(numbers(&torn).0, [1], "cut at {cut}: {payload:02x?}");
                // More was written behind it.
                let behind = [&torn[..], &encode(9, b"behind")].concat();
                assert_eq!(numbers(&behind).0, [1, 9], "cut at {cut}: {payload:02x?}");
                // A block that was not on the disk yet.
                let zeros = [&torn[..], &vec![0; record.len() - cut]].concat();
                if zeros == whole {
                    continue;
                }
                assert_eq!(numbers(&zeros).0, [1], "zeros from {cut}: {payload:02x?}");
            }
            for from in 0..record.len() {
                let late = [&first[..], &vec![0; from + 1], &record[from + 1..]].concat();
                assert_eq!(numbers(&late).0, [1], "zeros to {from}: {payload:02x?}");
            }
        }
    }

    /// Bytes that are full of heads of records which would all reach far, and of parts of marks: each
    /// byte more must cost the same, however many there are.
    fn crafted(length: usize) -> Vec<u8> {
        let mut bytes = encode(1, b"good");
        while bytes.len() < length {
            bytes.extend_from_slice(MARK);
            bytes.extend_from_slice(&((length / 2) as u32).to_le_bytes());
            bytes.extend_from_slice(NEARLY);
            bytes.extend_from_slice(&MARK[..1]);
        }
        bytes
    }

    #[test]
    fn looking_for_the_next_record_takes_linear_time() {
        let bytes = [1 << 16, 1 << 18].map(crafted);
        let work = bytes.map(|bytes| {
            let work = super::super::crc::work::of(|| {
                assert_eq!(numbers(&bytes), (vec![1], End::Torn(28)));
            });
            work as f64 / bytes.len() as f64
        });
        assert!(
            work.iter().all(|&each| each <= 1.0),
            "{work:?} bytes a byte"
        );
    }
}
