//! One file of the journal: records one after the other, each with its length and checksum.
//!
//! ```text
//! | length u32 | crc32c u32 | seq u64 | payload ... |     little endian; the checksum covers
//!                           '-- length counts these --'  seq and payload
//! ```

use super::crc::{Stretches, crc32c};

const HEAD: usize = 8;
const SEQ: usize = 8;
/// The longest payload of a record, in bytes: a record that says it is longer is none.
pub const MAX: usize = 4 << 20;
/// What a record's first four bytes may say.
const LENGTHS: std::ops::RangeInclusive<usize> = SEQ..=SEQ + MAX;

/// Encodes one record.
pub fn encode(seq: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + SEQ + payload.len());
    bytes.extend_from_slice(&((SEQ + payload.len()) as u32).to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&seq.to_le_bytes());
    bytes.extend_from_slice(payload);
    let crc = crc32c(&bytes[HEAD..]);
    bytes[4..HEAD].copy_from_slice(&crc.to_le_bytes());
    bytes
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

/// Gives every whole record of `bytes` to `found`, in order. Past damage the next record that
/// checks out is looked for, in a time that grows with the length of `bytes` and no faster,
/// whatever they are; records whose number does not grow are old bytes, not records.
pub fn scan(bytes: &[u8], mut found: impl FnMut(u64, &[u8])) -> End {
    let (mut at, mut good, mut last) = (0, 0, 0);
    let mut damaged = false;
    // Only what is damaged needs it. From there on anything may look like a record, at every byte.
    let mut stretches = None;
    while at < bytes.len() {
        match record(bytes, at, stretches.as_ref()).filter(|(seq, _)| *seq > last) {
            Some((seq, payload)) => {
                damaged |= at != good;
                found(seq, payload);
                at += HEAD + SEQ + payload.len();
                (good, last) = (at, seq);
            }
            None => {
                stretches.get_or_insert_with(|| Stretches::new(bytes, *LENGTHS.end()));
                at += 1;
            }
        }
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
    let Some(length) = length(bytes, 0) else {
        return Begin::Part;
    };
    match record(bytes, 0, None) {
        Some(_) => Begin::Record,
        None if LENGTHS.contains(&length) && bytes.len() < HEAD + length => Begin::Part,
        None => Begin::Damage,
    }
}

/// Gives the whole records that `bytes` begin with to `found`; how many bytes they take.
pub fn take(bytes: &[u8], mut found: impl FnMut(u64, &[u8])) -> usize {
    let mut at = 0;
    while let Some((seq, payload)) = record(bytes, at, None) {
        found(seq, payload);
        at += HEAD + SEQ + payload.len();
    }
    at
}

fn length(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize)
}

/// The record that starts at a byte, if one does.
fn record<'a>(
    bytes: &'a [u8],
    at: usize,
    stretches: Option<&Stretches<'_>>,
) -> Option<(u64, &'a [u8])> {
    let length = length(bytes, at).filter(|length| LENGTHS.contains(length))?;
    let (from, to) = (at + HEAD, at + HEAD + length);
    let body = bytes.get(from..to)?;
    let crc = match stretches {
        None => crc32c(body),
        Some(stretches) => stretches.crc32c(from, to),
    };
    let (seq, payload) = body.split_at(SEQ);
    let stored = bytes.get(at + 4..from)?;
    (stored == crc.to_le_bytes()).then(|| {
        (
            u64::from_le_bytes(seq.try_into().unwrap_or_default()),
            payload,
        )
    })
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

    /// One record of the right form, torn, whose payload is full of heads of records that would
    /// all reach far: each byte more must cost the same, however many there are.
    fn crafted(length: usize) -> Vec<u8> {
        let mut bytes = encode(1, b"good");
        let mut torn = encode(2, &vec![0; length]);
        torn.pop();
        for at in (HEAD + SEQ..torn.len() - HEAD).step_by(4) {
            let reach = (torn.len() - at - HEAD).clamp(SEQ, SEQ + MAX) as u32;
            torn[at..at + 4].copy_from_slice(&reach.to_le_bytes());
        }
        bytes.extend(torn);
        bytes
    }

    #[test]
    fn looking_for_the_next_record_takes_linear_time() {
        let bytes = [1 << 16, 1 << 18].map(crafted);
        let work = bytes.map(|bytes| {
            let work = super::super::crc::work::of(|| {
                assert_eq!(numbers(&bytes), (vec![1], End::Torn(20)));
            });
            work / bytes.len()
        });
        // A quarter of the bytes is a head, and each of those costs at most two steps.
        assert!(work.iter().all(|&each| each <= 8), "{work:?} bytes a byte");
    }
}
