// SPDX-License-Identifier: Apache-2.0
//! The streams of one end of a multiplexed pipe: bytes in, bytes out, no clock and no fd.

use super::frame::{Frame, MAX_DATA, Violation, WINDOW, put, take};
use super::session::Mark;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};

/// While so many bytes wait for the pipe, no stream adds data to them.
const ENOUGH: usize = 128 << 10;
/// A reader's progress is told once it is worth a frame.
const WORTH_TELLING: u32 = WINDOW / 4;
/// The most streams that a peer may open before anybody accepts one.
const MAX_WAITING: usize = 1024;

/// The stream was reset, or the whole pipe is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// The host's streams, for another process image.
#[derive(Debug, Serialize, Deserialize)]
pub struct Moved {
    all: Vec<(u32, One)>,
    next: u32,
    begun: Vec<u8>,
    /// What is not in the pipe yet.
    out: Vec<u8>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct One {
    pub(super) received: VecDeque<u8>,
    /// The peer sends no more.
    pub(super) ended: bool,
    pub(super) reset: bool,
    /// We send no more.
    pub(super) closed: bool,
    /// What we may send.
    pub(super) credit: u32,
    /// What the peer may send.
    pub(super) granted: u32,
    /// What was read and not told of.
    #[serde(rename = "untold")]
    pub(super) uncredited: u32,
    /// That is worth telling, at the next chance.
    pub(super) owes: bool,
    /// It is of a session that has ended.
    #[serde(default)]
    pub(super) is_left: bool,
}

impl One {
    pub(super) fn new() -> Self {
        Self {
            credit: WINDOW,
            granted: WINDOW,
            ..Self::default()
        }
    }
}

/// One end's streams.
pub struct Streams {
    pub(super) all: HashMap<u32, One>,
    /// It opens the streams; the peer may not.
    pub(super) is_host: bool,
    pub(super) next: u32,
    /// Opened by the peer, and not accepted yet.
    pub(super) waiting: VecDeque<u32>,
    /// Half a frame.
    pub(super) begun: Vec<u8>,
    /// What is to be sent, and what of it is in the pipe already.
    pub(super) sending: Vec<u8>,
    pub(super) sent: usize,
    /// What is to be sent after that.
    pub(super) out: Vec<u8>,
    /// Streams whose reader's progress is to be told.
    pub(super) owing: Vec<u32>,
    /// Streams with news for whoever waits.
    pub(super) touched: Vec<u32>,
    /// What another session begins with, if there may be one.
    pub(super) mark: Option<Mark>,
    /// One has begun.
    pub(super) began: bool,
}

impl Streams {
    /// Those of the side that opens them.
    pub fn host() -> Self {
        Self::new(true)
    }

    /// Those of the side that accepts them.
    pub fn guest() -> Self {
        Self::new(false)
    }

    fn new(is_host: bool) -> Self {
        Self {
            all: HashMap::from([(0, One::new())]),
            is_host,
            next: 1,
            waiting: VecDeque::new(),
            begun: Vec::new(),
            sending: Vec::new(),
            sent: 0,
            out: Vec::new(),
            owing: Vec::new(),
            touched: Vec::new(),
            mark: None,
            began: false,
        }
    }

    /// Describes those of the host for another process image.
    pub fn hand_over(&self) -> Moved {
        Moved {
            all: self
                .all
                .iter()
                .map(|(&number, one)| (number, one.clone()))
                .collect(),
            next: self.next,
            begun: self.begun.clone(),
            out: [&self.sending[self.sent..], &self.out].concat(),
        }
    }

    /// The number of the next that is opened.
    pub fn next(&self) -> u32 {
        self.next
    }

    /// Goes on with those of another process image.
    pub fn take_over(moved: Moved) -> Self {
        let owing = moved.all.iter().filter(|(_, one)| one.owes);
        Self {
            owing: owing.map(|(number, _)| *number).collect(),
            all: moved.all.into_iter().collect(),
            next: moved.next,
            begun: moved.begun,
            out: moved.out,
            ..Self::host()
        }
    }

    /// Whether it is there: opened, and not forgotten. From now on somebody has it.
    pub fn has(&mut self, stream: u32) -> bool {
        let one = self.all.get_mut(&stream).map(|one| one.is_left = false);
        one.is_some()
    }

    /// Every stream that is there, in order.
    pub fn numbers(&self) -> Vec<u32> {
        let mut numbers: Vec<u32> = self.all.keys().copied().collect();
        numbers.sort_unstable();
        numbers
    }

    /// Opens a stream; its number is new to both sides.
    pub fn open(&mut self) -> u32 {
        let stream = self.next;
        self.next += 1;
        self.all.insert(stream, One::new());
        put(&mut self.out, stream, Frame::Open);
        stream
    }

    /// A stream that the peer has opened.
    pub fn accept(&mut self) -> Option<u32> {
        self.waiting.pop_front()
    }

    /// Sends what there is room for; 0: wait.
    ///
    /// # Errors
    /// If nobody will read it.
    pub fn write(&mut self, stream: u32, bytes: &[u8]) -> Result<usize, Gone> {
        let one = self.all.get_mut(&stream).ok_or(Gone)?;
        if one.reset || one.closed {
            return Err(Gone);
        }
        let mut written = 0;
        while self.out.len() < ENOUGH {
            let n = (bytes.len() - written)
                .min(one.credit as usize)
                .min(MAX_DATA);
            if n == 0 {
                break;
            }
            put(
                &mut self.out,
                stream,
                Frame::Data(&bytes[written..written + n]),
            );
            one.credit -= n as u32;
            written += n;
        }
        Ok(written)
    }

    /// Reads what has come; `None`: wait, 0: the end.
    ///
    /// # Errors
    /// If no more will come, and no end.
    pub fn read(&mut self, stream: u32, into: &mut [u8]) -> Result<Option<usize>, Gone> {
        let one = self.all.get_mut(&stream).ok_or(Gone)?;
        let (front, _) = one.received.as_slices();
        let n = front.len().min(into.len());
        into[..n].copy_from_slice(&front[..n]);
        one.received.drain(..n);
        if n == 0 {
            return match (one.ended, one.reset) {
                (true, _) => Ok(Some(0)),
                (false, true) => Err(Gone),
                (false, false) => Ok(None),
            };
        }
        if one.received.is_empty() {
            // Most streams are idle.
            one.received = VecDeque::new();
        }
        one.uncredited += n as u32;
        if one.uncredited >= WORTH_TELLING && !one.ended && !one.owes {
            one.owes = true;
            self.owing.push(stream);
        }
        Ok(Some(n))
    }

    /// How many bytes have come that were not read.
    pub fn unread(&self, stream: u32) -> usize {
        self.all.get(&stream).map_or(0, |one| one.received.len())
    }

    /// True if reading need not wait: for bytes, the end, or that there will be none.
    pub fn is_readable(&self, stream: u32) -> bool {
        let one = self.all.get(&stream);
        one.is_none_or(|one| !one.received.is_empty() || one.ended || one.reset)
    }

    /// True if writing need not wait: for room, or that nobody will read.
    pub fn is_writable(&self, stream: u32) -> bool {
        let room = self.out.len() < ENOUGH;
        let one = self.all.get(&stream);
        one.is_none_or(|one| one.reset || one.closed || room && one.credit > 0)
    }

    /// Sends no more on it.
    pub fn end(&mut self, stream: u32) {
        if let Some(one) = self.all.get_mut(&stream)
            && !one.closed
            && !one.reset
        {
            one.closed = true;
            put(&mut self.out, stream, Frame::End);
        }
    }

    /// Nobody here uses it any more; what the peer still sends is forgotten.
    pub fn forget(&mut self, stream: u32) {
        if let Some(one) = self.all.remove(&stream)
            && !(one.reset || one.ended && one.closed)
        {
            put(&mut self.out, stream, Frame::Reset);
        }
    }

    /// Takes what came over the pipe.
    ///
    /// # Errors
    /// If the peer broke the protocol.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        let Some(bytes) = self.of_session(bytes) else {
            return Ok(());
        };
        let received = self.receive_frames(bytes);
        if received.is_err() && !self.is_host && self.mark.is_some() {
            // It may be what was left of a session, where the next one begins.
            self.lose();
            return Ok(());
        }
        received
    }

    fn receive_frames(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        let mut begun = std::mem::take(&mut self.begun);
        let mut rest = bytes;
        if !begun.is_empty() {
            begun.extend_from_slice(bytes);
            rest = &begun;
        }
        while let Some((stream, frame, length)) = take(rest)? {
            self.frame(stream, frame)?;
            rest = &rest[length..];
        }
        self.begun = rest.to_vec();
        Ok(())
    }

    fn frame(&mut self, stream: u32, frame: Frame<'_>) -> Result<(), Violation> {
        let broken = |what: &str| Err(Violation(format!("stream {stream}: {what}")));
        if frame == Frame::Open {
            if self.is_host {
                return broken("opened by the side that may not");
            }
            if self.all.contains_key(&stream) {
                return broken("opened twice");
            }
            if self.waiting.len() >= MAX_WAITING {
                return broken("too many are open");
            }
            self.all.insert(stream, One::new());
            self.waiting.push_back(stream);
            return Ok(());
        }
        if frame == Frame::Again {
            if self.is_host {
                return broken("gone on with by the side that may not");
            }
            self.again(stream);
            self.touched.push(stream);
            return Ok(());
        }
        let may_repeat = self.mark.is_some() && !self.is_host;
        let Some(one) = self.all.get_mut(&stream) else {
            if self.is_host && stream >= self.next {
                return broken("was never opened");
            }
            // One that was forgotten here is still known there, for a while.
            return Ok(());
        };
        match frame {
            _ if one.reset => return broken("a frame after its reset"),
            // A host that goes on with it does not know how far it had come.
            Frame::Data(_) | Frame::End if one.ended && may_repeat => {}
            Frame::Data(_) | Frame::End if one.ended => return broken("data after its end"),
            Frame::Data(data) => {
                let Some(left) = one.granted.checked_sub(data.len() as u32) else {
                    return broken("more data than it has credit");
                };
                one.granted = left;
                one.received.extend(data);
            }
            Frame::End => one.ended = true,
            Frame::Reset => one.reset = true,
            Frame::Credit(more) => match one.credit.checked_add(more) {
                Some(credit) if credit <= WINDOW => one.credit = credit,
                _ => return broken("more credit than it can have"),
            },
            Frame::Open | Frame::Again => {}
        }
        self.touched.push(stream);
        Ok(())
    }

    /// Streams that came to have news since this was last asked.
    pub fn touched(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.touched)
    }

    /// What is to go over the pipe now. A peer that does not read is given no more credit either, and
    /// nothing waits here for it but what was written.
    pub fn to_send(&mut self) -> &[u8] {
        if self.is_sent() {
            for stream in std::mem::take(&mut self.owing) {
                let Some(one) = self.all.get_mut(&stream) else {
                    continue;
                };
                one.owes = false;
                if !one.ended && !one.reset {
                    one.granted += one.uncredited;
                    put(&mut self.out, stream, Frame::Credit(one.uncredited));
                    one.uncredited = 0;
                }
            }
            self.sending = std::mem::take(&mut self.out);
        }
        &self.sending[self.sent..]
    }

    /// True if all that was taken to be sent is in the pipe.
    pub fn is_sent(&self) -> bool {
        self.sent == self.sending.len()
    }

    /// So many bytes of [`Streams::to_send`] are in the pipe.
    pub fn sent(&mut self, bytes: usize) {
        self.sent += bytes;
        if self.is_sent() {
            // Most of the time there is nothing to send.
            (self.sent, self.sending) = (0, Vec::new());
        }
    }
}

#[cfg(test)]
#[path = "streams_tests.rs"]
mod tests;
