//! One file of the journal: records one after the other, each with its length and checksum.
//!
//! ```text
//! | length u32 | crc32c u32 | seq u64 | payload ... |     little endian; the checksum covers
//!                           '-- length counts these --'  seq and payload
//! ```

use super::crc::crc32c;

const HEAD: usize = 8;
const SEQ: usize = 8;
/// A record longer than this is no record (an event is at most a ttrpc message).
const MAX: usize = 8 << 20;

/// Encodes one record.
pub fn encode(seq: u64, payload: &[u8]) -> Vec<u8> {
    let seq = seq.to_le_bytes();
    let mut bytes = Vec::with_capacity(HEAD + SEQ + payload.len());
    bytes.extend_from_slice(&((SEQ + payload.len()) as u32).to_le_bytes());
    bytes.extend_from_slice(&crc32c([&seq, payload]).to_le_bytes());
    bytes.extend_from_slice(&seq);
    bytes.extend_from_slice(payload);
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
/// checks out is looked for; records whose number does not grow are old bytes, not records.
pub fn scan(bytes: &[u8], mut found: impl FnMut(u64, &[u8])) -> End {
    let (mut at, mut good, mut last) = (0, 0, 0);
    let mut damaged = false;
    while at < bytes.len() {
        match record(&bytes[at..]).filter(|(seq, _)| *seq > last) {
            Some((seq, payload)) => {
                damaged |= at != good;
                found(seq, payload);
                at += HEAD + SEQ + payload.len();
                (good, last) = (at, seq);
            }
            None => at += 1,
        }
    }
    match () {
        () if damaged => End::Corrupt,
        () if good < bytes.len() => End::Torn(good),
        () => End::Whole,
    }
}

fn record(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let length = number(0)? as usize;
    if !(SEQ..=MAX).contains(&length) {
        return None;
    }
    let body = bytes.get(HEAD..HEAD + length)?;
    let (seq, payload) = body.split_at(SEQ);
    (number(4)? == crc32c([seq, payload])).then(|| {
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
}
