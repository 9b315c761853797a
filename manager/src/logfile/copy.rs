// SPDX-License-Identifier: Apache-2.0
//! The logger itself. Each container has one, so it takes as little memory as can be: it waits with
//! poll(2), and needs no runtime for that.

use super::audience::{Audience, PART};
use super::orders::Orders;
use super::writer::Writer;
use super::{Entry, format};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use task::sys::program::wait_long;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const STDOUT: i32 = 3;
const STDERR: i32 = 4;
const READY: i32 = 5;
/// A line that is longer is written in parts.
const LONGEST: usize = 16 << 10;
/// Milliseconds that a stream may stay open and silent once the logger is told to end.
const SILENCE: u16 = 1000;
/// Milliseconds after which a container that says nothing is taken for one that will not soon.
const QUIET: u16 = 1000;

/// Copies both streams to where it is told until they end.
///
/// # Errors
/// A text; then the shim sees that its logger did not get ready.
pub fn run(orders: &Orders) -> Result<(), String> {
    let path = orders.file.as_path();
    let failed = |e: io::Error| format!("log {}: {e}", path.display());
    let inherited = |fd| task::sys::adopt(fd).map_err(failed);
    let (stdout, stderr, ready) = (inherited(STDOUT)?, inherited(STDERR)?, inherited(READY)?);
    let mut writer = Writer::open(path, orders.limits()).map_err(failed)?;
    let is_json = path.extension().is_some_and(|it| it == "json");
    let audience = Audience::open(path);
    let mut audience = audience.inspect_err(|e| log::error!("log {}: {e}", path.display()));
    let mut log = |entry: &Entry| {
        // A full disk must not stop the container.
        if let Err(e) = writer.write(&format(is_json, entry)) {
            log::error!("log {}: {e}", path.display());
        }
    };
    let term = SigSet::from(Signal::SIGTERM);
    term.thread_block().map_err(|e| failed(e.into()))?;
    let term = SignalFd::new(&term).map_err(|e| failed(e.into()))?;
    drop(ready);
    let mut streams = vec![Stream::new(stdout, false), Stream::new(stderr, true)];
    let mut patience = None;
    while !streams.is_empty() {
        let pipes = streams.iter().map(|stream| stream.pipe.as_fd());
        let newcomer = audience.as_ref().ok().map(Audience::newcomer);
        // Told to end, it hears no more of that.
        let told = patience.is_none().then(|| term.as_fd());
        let mut fds: Vec<PollFd> = pipes
            .chain(newcomer)
            .chain(told)
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        let ready = match poll(&mut fds, patience.unwrap_or(QUIET)) {
            Ok(0) if patience.is_none() => wait_long(&mut fds),
            ready => ready,
        };
        match ready {
            // All that was written has been read.
            Ok(0) => break,
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(failed(e.into())),
        }
        let has_news: Vec<bool> = fds.iter().map(|fd| fd.any() == Some(true)).collect();
        let mut others = has_news[streams.len()..].iter();
        if let Ok(audience) = &mut audience
            && others.next() == Some(&true)
        {
            // Who came before something was said hears it.
            audience.admit();
        }
        if others.next() == Some(&true) {
            patience = Some(SILENCE);
        }
        let mut hear = |is_stderr, said: &[u8]| {
            if let Ok(audience) = &mut audience {
                audience.tell(is_stderr, said);
            }
        };
        let mut has_news = has_news.into_iter();
        streams.retain_mut(|stream| {
            has_news.next() != Some(true) || stream.pass_on(&mut hear, &mut log)
        });
    }
    if let Ok(audience) = audience {
        audience.dismiss();
    }
    Ok(())
}

struct Stream {
    pipe: File,
    is_stderr: bool,
    /// The begin of a line.
    rest: Vec<u8>,
}

impl Stream {
    fn new(pipe: impl Into<File>, is_stderr: bool) -> Self {
        Self {
            pipe: pipe.into(),
            is_stderr,
            rest: Vec::new(),
        }
    }

    /// Passes on what there is now. False at its end.
    fn pass_on(
        &mut self,
        hear: &mut impl FnMut(bool, &[u8]),
        log: &mut impl FnMut(&Entry),
    ) -> bool {
        let mut part = [0; PART];
        let n = self.pipe.read(&mut part).unwrap_or(0);
        if n > 0 {
            hear(self.is_stderr, &part[..n]);
        }
        self.rest.extend_from_slice(&part[..n]);
        while let Some(end) = end_of_line(&self.rest, n == 0) {
            let time = OffsetDateTime::now_utc().format(&Rfc3339);
            log(&Entry {
                time: time.unwrap_or_default(),
                is_stderr: self.is_stderr,
                text: self.rest.drain(..end).collect(),
            });
        }
        n > 0
    }
}

fn end_of_line(bytes: &[u8], is_last: bool) -> Option<usize> {
    match bytes.iter().position(|&byte| byte == b'\n') {
        Some(end) if end < LONGEST => Some(end + 1),
        _ if bytes.len() >= LONGEST => Some(between_characters(bytes, LONGEST)),
        _ => (is_last && !bytes.is_empty()).then_some(bytes.len()),
    }
}

/// The last place up to `end` that is not inside a character.
fn between_characters(bytes: &[u8], end: usize) -> usize {
    // None is longer than four bytes, the first of which tells how many they are.
    for back in 1..=3 {
        let length = bytes[end - back].leading_ones() as usize;
        if length != 1 {
            let is_cut = (2..=4).contains(&length) && length > back;
            return if is_cut { end - back } else { end };
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_come_in_parts() {
        assert_eq!(end_of_line(b"ab\ncd", false), Some(3));
        assert_eq!(end_of_line(b"cd", false), None);
        assert_eq!(end_of_line(b"cd", true), Some(2));
        assert_eq!(end_of_line(&[b'x'; LONGEST + 5], false), Some(LONGEST));
        for (character, cuts) in [("\u{e4}", 1), ("\u{65b9}", 2), ("\u{1f600}", 3)] {
            for before in 0..=cuts + 1 {
                let mut bytes = vec![b'x'; LONGEST - before];
                bytes.extend_from_slice(character.as_bytes());
                bytes.extend_from_slice(b"xxxxxx");
                let cut = if before <= cuts {
                    LONGEST - before
                } else {
                    LONGEST
                };
                assert_eq!(
                    end_of_line(&bytes, false),
                    Some(cut),
                    "{character} {before}"
                );
            }
        }
        for no_character in [b"\x80\x80\x80\x80", b"xxx\xff", b"\xff\x80\x80\x80"] {
            let bytes = [&[b'x'; LONGEST - 4], &no_character[..], b"x"].concat();
            assert_eq!(end_of_line(&bytes, false), Some(LONGEST));
        }
    }
}
