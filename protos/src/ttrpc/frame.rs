// SPDX-License-Identifier: Apache-2.0
//! A ttrpc frame: ten bytes of header, then the payload (ttrpc PROTOCOL.md).
//!
//! ```text
//! 0        4         8     9      10
//! | length | stream  | kind| flags | payload ...
//! ```

use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Largest payload a peer may send, in bytes (ttrpc channel.go `messageLengthMax`).
pub const MAX_PAYLOAD: usize = 4 << 20;
const HEADER: usize = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Request,
    Response,
    /// Anything else: ignored by a server, as Go's does.
    Other(u8),
}

#[derive(Debug)]
pub struct Frame {
    pub stream: u32,
    pub kind: Kind,
    pub payload: Vec<u8>,
}

#[derive(Debug)]
pub enum ReadError {
    Io(io::Error),
    /// The payload is longer than it may be, and still to be read; see [`skip`].
    TooLong {
        stream: u32,
        length: usize,
    },
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The first bytes of a frame: the header, or as much of it as came at once.
pub struct Begun {
    header: [u8; HEADER],
    filled: usize,
}

/// Waits for a frame to begin; `Ok(None)` at the end of the connection. May be cancelled: then
/// nothing was read.
pub async fn begin_frame<R: AsyncRead + Unpin>(reader: &mut R) -> io::Result<Option<Begun>> {
    let mut header = [0; HEADER];
    let filled = reader.read(&mut header).await?;
    Ok((filled > 0).then_some(Begun { header, filled }))
}

/// Reads one frame; `Ok(None)` at the end of the connection.
pub async fn read_frame<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Option<Frame>, ReadError> {
    match begin_frame(reader).await? {
        Some(begun) => end_frame(reader, begun, MAX_PAYLOAD).await.map(Some),
        None => Ok(None),
    }
}

/// Reads past a payload that is too long.
pub async fn skip<R: AsyncRead + Unpin>(reader: &mut R, length: usize) -> io::Result<()> {
    let skipped = tokio::io::copy(&mut reader.take(length as u64), &mut tokio::io::sink()).await?;
    match skipped == length as u64 {
        true => Ok(()),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Reads the rest of a frame, with a payload of at most `most` bytes.
pub async fn end_frame<R: AsyncRead + Unpin>(
    reader: &mut R,
    begun: Begun,
    most: usize,
) -> Result<Frame, ReadError> {
    let Begun { mut header, filled } = begun;
    reader.read_exact(&mut header[filled..]).await?;
    let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let stream = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    let kind = match header[8] {
        1 => Kind::Request,
        2 => Kind::Response,
        other => Kind::Other(other),
    };
    if length > most {
        return Err(ReadError::TooLong { stream, length });
    }
    let mut payload = vec![0; length];
    reader.read_exact(&mut payload).await?;
    Ok(Frame {
        stream,
        kind,
        payload,
    })
}

/// Writes one frame in a single write.
pub async fn write_frame<W: AsyncWrite + Unpin>(
    writer: &mut W,
    stream: u32,
    kind: Kind,
    payload: &[u8],
) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.push(match kind {
        Kind::Request => 1,
        Kind::Response => 2,
        Kind::Other(other) => other,
    });
    bytes.push(0);
    bytes.extend_from_slice(payload);
    writer.write_all(&bytes).await
}
