// SPDX-License-Identifier: Apache-2.0
//! Zstandard: frames, one after the other. The crate reads one; those who make layers that can be
//! fetched in parts write many, and some to be skipped.

use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};
use std::io::{self, Error, ErrorKind, Read};

/// Reads all frames of `R`, whose clones read on where the last stopped.
pub struct Frames<R: Read + Clone> {
    from: R,
    frame: Option<StreamingDecoder<R, FrameDecoder>>,
    ended: bool,
}

impl<R: Read + Clone> Frames<R> {
    pub fn new(from: R) -> Self {
        Self {
            from,
            frame: None,
            ended: false,
        }
    }

    /// The next frame with data; none at the end.
    fn next(&mut self) -> io::Result<Option<StreamingDecoder<R, FrameDecoder>>> {
        loop {
            match StreamingDecoder::new(self.from.clone()) {
                Ok(frame) => return Ok(Some(frame)),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = u64::from(length);
                    let skipped = io::copy(&mut self.from.clone().take(length), &mut io::sink())?;
                    if skipped < length {
                        return Err(ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(FrameDecoderError::ReadFrameHeaderError(
                    ReadFrameHeaderError::MagicNumberReadError(e),
                )) if e.kind() == ErrorKind::UnexpectedEof => return Ok(None),
                Err(e) => return Err(Error::new(ErrorKind::InvalidData, e.to_string())),
            }
        }
    }
}

impl<R: Read + Clone> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !self.ended && !buffer.is_empty() {
            if let Some(frame) = &mut self.frame {
                let read = frame.read(buffer)?;
                if read > 0 {
                    return Ok(read);
                }
            }
            self.frame = self.next()?;
            self.ended = self.frame.is_none();
        }
        Ok(0)
    }
}
