// SPDX-License-Identifier: Apache-2.0
//! One frame of a multiplexed pipe, to bytes and back.

/// The bytes of a frame before its payload.
pub const HEADER: usize = 8;
/// The most data in one frame: many streams take turns, and a guest's driver copies each write.
pub const MAX_DATA: usize = 16 << 10;
/// How many bytes may be on their way in one direction of a stream.
pub const WINDOW: u32 = 128 << 10;

/// What one side tells the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    Open,
    Data(&'a [u8]),
    End,
    Reset,
    Credit(u32),
    Again,
}

/// The peer does not keep to the protocol: nothing after this can be trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub String);

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the peer broke the protocol: {}", self.0)
    }
}

impl std::error::Error for Violation {}

/// Appends a frame; data is at most [`MAX_DATA`].
pub fn put(out: &mut Vec<u8>, stream: u32, frame: Frame<'_>) {
    let credit;
    let (kind, payload): (u8, &[u8]) = match frame {
        Frame::Open => (1, &[]),
        Frame::Data(data) => (2, data),
        Frame::End => (3, &[]),
        Frame::Reset => (4, &[]),
        Frame::Credit(more) => {
            credit = more.to_be_bytes();
            (5, &credit)
        }
        Frame::Again => (6, &[]),
    };
    debug_assert!(payload.len() <= MAX_DATA);
    let length = (payload.len() as u32).to_be_bytes();
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(&[kind, length[1], length[2], length[3]]);
    out.extend_from_slice(payload);
}

/// The frame that `bytes` begin with: its stream, itself, and its length; `None` if it is not
/// whole yet.
///
/// # Errors
/// If no frame begins so.
pub fn take(bytes: &[u8]) -> Result<Option<(u32, Frame<'_>, usize)>, Violation> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let [a, b, c, d, kind, x, y, z] = *header;
    let stream = u32::from_be_bytes([a, b, c, d]);
    let length = u32::from_be_bytes([0, x, y, z]) as usize;
    let allowed = match kind {
        1 | 3 | 4 | 6 => length == 0,
        2 => length <= MAX_DATA,
        5 => length == 4,
        _ => return Err(Violation(format!("frame of kind {kind}"))),
    };
    if !allowed {
        return Err(Violation(format!(
            "frame of kind {kind} with {length} bytes"
        )));
    }
    let Some(payload) = rest.get(..length) else {
        return Ok(None);
    };
    let frame = match (kind, payload) {
        (1, _) => Frame::Open,
        (2, data) => Frame::Data(data),
        (3, _) => Frame::End,
        (4, _) => Frame::Reset,
        (6, _) => Frame::Again,
        (_, &[a, b, c, d]) => Frame::Credit(u32::from_be_bytes([a, b, c, d])),
        _ => return Err(Violation(format!("frame of kind {kind}"))),
    };
    Ok(Some((stream, frame, HEADER + length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_pipe() {
        let long = vec![7; MAX_DATA];
        #[rustfmt::skip]
        let table: &[(u32, Frame<'_>, &[u8])] = &[
            (1, Frame::Open, &[0, 0, 0, 1, 1, 0, 0, 0]),
            (0x0102_0304, Frame::Data(b"hi"), &[1, 2, 3, 4, 2, 0, 0, 2, b'h', b'i']),
            (0, Frame::End, &[0, 0, 0, 0, 3, 0, 0, 0]),
            (2, Frame::Reset, &[0, 0, 0, 2, 4, 0, 0, 0]),
            (3, Frame::Credit(258), &[0, 0, 0, 3, 5, 0, 0, 4, 0, 0, 1, 2]),
            (7, Frame::Again, &[0, 0, 0, 7, 6, 0, 0, 0]),
        ];
        for (stream, frame, bytes) in table {
            let mut out = Vec::new();
            put(&mut out, *stream, *frame);
            assert_eq!(out, *bytes);
            for cut in 0..out.len() {
                assert_eq!(take(&out[..cut]), Ok(None), "{frame:?} cut at {cut}");
            }
            out.push(9);
            assert_eq!(take(&out), Ok(Some((*stream, *frame, bytes.len()))));
        }
        let mut out = Vec::new();
        put(&mut out, 1, Frame::Data(&long));
        assert_eq!(take(&out), Ok(Some((1, Frame::Data(&long), out.len()))));
    }

    #[test]
    fn what_is_no_frame_is_named() {
        let table: &[(&[u8], &str)] = &[
            (&[0, 0, 0, 1, 0, 0, 0, 0], "frame of kind 0"),
            (&[0, 0, 0, 1, 7, 0, 0, 0], "frame of kind 7"),
            (&[0, 0, 0, 1, 1, 0, 0, 1], "frame of kind 1 with 1 bytes"),
            (
                &[0, 0, 0, 1, 2, 0, 0x40, 1],
                "frame of kind 2 with 16385 bytes",
            ),
            (&[0, 0, 0, 1, 5, 0, 0, 3], "frame of kind 5 with 3 bytes"),
        ];
        for (bytes, text) in table {
            assert_eq!(take(bytes), Err(Violation((*text).to_owned())));
        }
    }
}
