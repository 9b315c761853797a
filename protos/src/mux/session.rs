// SPDX-License-Identifier: Apache-2.0
//! A pipe that goes on although one end has died: another host connects, and both begin a session anew.
//!
//! What is still in the pipe then may be half a frame of the session before. So each side sends the
//! [`Mark`] first, 32 bytes that nobody else knows, and takes nothing for a frame before it has found
//! it. The guest keeps its streams, and what of them was not sent: the host names those that it goes
//! on with (kind 6, again), and hears of each how much it may send, and whether it has ended.
//!
//! What the host that died had taken out of the pipe is lost, and so is what was on its way in it.

use super::frame::{Frame, WINDOW, put, take};
use super::streams::{One, Streams};

/// What a session begins with.
pub const MARK: usize = 32;

/// Finds the mark in what comes.
#[derive(Debug)]
pub struct Mark {
    bytes: [u8; MARK],
    /// The last bytes that came, fewer than a mark has.
    last: Vec<u8>,
    /// What comes is of no session.
    pub lost: bool,
}

impl Mark {
    pub fn new(bytes: [u8; MARK], lost: bool) -> Self {
        let last = Vec::with_capacity(2 * MARK);
        Self { bytes, last, lost }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What follows the mark, if `bytes` end it or have it in them.
    fn after<'a>(&mut self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let before = self.last.len();
        let head = bytes.len().min(MARK - 1);
        self.last.extend_from_slice(&bytes[..head]);
        let over = find(&self.last, &self.bytes).map(|end| end - before);
        let end = match over {
            Some(end) => Some(end),
            None => find(bytes, &self.bytes),
        };
        self.last.truncate(before);
        let rest = &bytes[end.unwrap_or(0)..];
        if end.is_some() {
            self.last.clear();
        }
        let keep = rest.len().min(MARK - 1);
        self.last.extend_from_slice(&rest[rest.len() - keep..]);
        let surplus = self.last.len().saturating_sub(MARK - 1);
        self.last.drain(..surplus);
        end.map(|end| &bytes[end..])
    }
}

/// Where the first `wanted` in `bytes` ends.
fn find(bytes: &[u8], wanted: &[u8; MARK]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|byte| *byte == wanted[0]) {
        from += at;
        if bytes[from..].starts_with(wanted) {
            return Some(from + MARK);
        }
        from += 1;
    }
    None
}

impl Streams {
    /// The host's, which goes on with `numbers` of a session that has ended; a new stream is `next`.
    pub fn adopt(numbers: &[u32], next: u32, mark: [u8; MARK]) -> Self {
        let mut new = Self::host();
        new.out.extend_from_slice(&mark);
        for &number in numbers {
            // The guest says how much it takes.
            let one = One {
                credit: 0,
                is_left: true,
                ..One::new()
            };
            new.all.insert(number, one);
            put(&mut new.out, number, Frame::Again);
        }
        new.next = next;
        new.mark = Some(Mark::new(mark, true));
        new
    }

    /// From now on another session may begin. Said to the guest's alone.
    pub fn set_mark(&mut self, mark: [u8; MARK]) {
        self.mark = Some(Mark::new(mark, false));
    }

    pub fn is_marked(&self) -> bool {
        self.mark.is_some()
    }

    /// What has come is of no session: nothing that comes is believed before the mark.
    pub(super) fn lose(&mut self) {
        self.begun.clear();
        if let Some(mark) = &mut self.mark {
            mark.lost = true;
        }
    }

    /// What of `bytes` is of this session, which they may begin; `None` of what is of none.
    pub(super) fn of_session<'a>(&mut self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let Some(mark) = &mut self.mark else {
            return Some(bytes);
        };
        match mark.after(bytes) {
            Some(rest) => {
                self.begin_anew();
                Some(rest)
            }
            None if mark.lost => None,
            None => Some(bytes),
        }
    }

    fn begin_anew(&mut self) {
        self.begun.clear();
        if self.is_host {
            // It has begun this session itself.
            self.mark = None;
            return;
        }
        let Some(mark) = &mut self.mark else { return };
        mark.lost = false;
        let mut out = mark.bytes.to_vec();
        for number in std::mem::take(&mut self.waiting) {
            self.all.remove(&number);
        }
        self.all.insert(0, One::new());
        self.owing.clear();
        for (&number, one) in &mut self.all {
            one.is_left = number != 0;
            one.credit = WINDOW;
            one.uncredited = 0;
            one.owes = false;
        }
        self.requeue(&mut out);
        self.sending.clear();
        self.sent = 0;
        self.out = out;
        self.touched.extend(self.all.keys());
        self.began = true;
    }

    /// Puts the data of frames that are not whole in the pipe into `out` again.
    fn requeue(&mut self, out: &mut Vec<u8>) {
        let (sent, mut at) = (self.sent, 0);
        let mark = self.mark.as_ref().map_or(&[][..], Mark::bytes);
        let unsent = [self.sending.as_slice(), self.out.as_slice()].concat();
        while at < unsent.len() {
            if unsent[at..].starts_with(mark) {
                at += mark.len();
                continue;
            }
            let Ok(Some((stream, frame, length))) = take(&unsent[at..]) else {
                return;
            };
            at += length;
            if at <= sent || stream == 0 {
                continue;
            }
            match (frame, self.all.get_mut(&stream)) {
                (Frame::Data(data), Some(one)) => {
                    one.credit -= data.len() as u32;
                    put(out, stream, frame);
                }
                // Nobody here can say any more that it has ended.
                (Frame::Data(_) | Frame::End, None) => put(out, stream, frame),
                _ => {}
            }
        }
    }

    /// The host goes on with a stream.
    pub(super) fn again(&mut self, stream: u32) {
        let Some(one) = self.all.get_mut(&stream).filter(|one| one.is_left) else {
            return put(&mut self.out, stream, Frame::Reset);
        };
        one.is_left = false;
        if one.reset {
            return put(&mut self.out, stream, Frame::Reset);
        }
        // What has come is still to be read.
        one.granted = WINDOW - (one.received.len() as u32).min(WINDOW);
        put(&mut self.out, stream, Frame::Credit(one.granted));
        if one.closed {
            put(&mut self.out, stream, Frame::End);
        }
    }

    /// The host has named all that it goes on with: the others are gone, with what has come over them,
    /// which nobody waits for any more.
    pub fn end_what_is_left(&mut self) {
        for (&number, one) in &mut self.all {
            if std::mem::take(&mut one.is_left) {
                one.reset = true;
                one.received.clear();
                self.touched.push(number);
            }
        }
    }

    /// The host's: streams of the session before that nobody has taken are of no use.
    pub fn forget_what_is_left(&mut self) {
        let left = self.all.iter().filter(|(_, one)| one.is_left);
        let left: Vec<u32> = left.map(|(number, _)| *number).collect();
        for stream in left {
            self.forget(stream);
        }
    }

    /// True once after another session has begun.
    pub fn began(&mut self) -> bool {
        std::mem::take(&mut self.began)
    }
}

#[cfg(test)]
mod tests {
    use super::super::streams::Gone;
    use super::*;

    const BYTES: [u8; MARK] = *b"abcabcabcabcabcabcabcabcabcabcab";

    /// Wherever the reads cut it, and whatever comes before.
    #[test]
    fn a_mark_is_found_however_it_comes() {
        let mut all = b"abcabcabc##abcab".to_vec();
        all.extend(BYTES);
        let end = all.len();
        all.extend(b"rest");
        for first in 0..all.len() {
            for second in first..all.len() {
                let mut mark = Mark::new(BYTES, false);
                let (mut read, mut found) = (0, None);
                for part in [&all[..first], &all[first..second], &all[second..]] {
                    if let Some(rest) = mark.after(part) {
                        assert_eq!(found, None);
                        found = Some(read + part.len() - rest.len());
                    }
                    read += part.len();
                }
                assert_eq!(found, Some(end), "{first} {second}");
            }
        }
    }

    fn read(streams: &mut Streams, stream: u32) -> Vec<u8> {
        let mut buffer = vec![0; 4 * WINDOW as usize];
        let mut all = Vec::new();
        while let Ok(Some(n @ 1..)) = streams.read(stream, &mut buffer) {
            all.extend_from_slice(&buffer[..n]);
        }
        all
    }

    /// The host dies at each byte of what the guest sends, and of what it sends itself: streams that
    /// the next host names go on, with what was not in the pipe; the others end.
    #[test]
    fn streams_go_on_with_another_host_wherever_one_died() {
        for cut in 0..120 {
            let (mut host, mut guest) = (Streams::host(), Streams::guest());
            let (calls, out, input, over) = (host.open(), host.open(), host.open(), host.open());
            guest.receive(&host.outgoing()).unwrap();
            while guest.accept().is_some() {}
            guest.set_mark(BYTES);
            for (stream, text) in [
                (0, "notice"),
                (calls, "answer"),
                (out, "lost"),
                (out, "kept"),
            ] {
                guest.write(stream, text.as_bytes()).unwrap();
            }
            guest.write(over, b"all of it").unwrap();
            guest.end(over);
            guest.forget(over);
            let sent = guest.to_send().len().min(cut);
            guest.sent(sent);
            host.write(input, b"half a frame that nobody ends").unwrap();
            let bytes = host.outgoing();
            guest.receive(&bytes[..bytes.len().min(cut)]).unwrap();
            if cut % 2 == 0 {
                guest.lose();
            }
            let got = read(&mut guest, input);

            let mut host = Streams::adopt(&[out, input, over], 1000, BYTES);
            let calls_now = host.open();
            assert_eq!(calls_now, 1000);
            assert_eq!(host.write(input, b"x"), Ok(0), "it waits for credit");
            // What is left of the session before comes first.
            host.receive(b"the end of a frame").unwrap();
            guest.receive(&host.outgoing()).unwrap();
            assert!(guest.began() && !guest.began());
            assert_eq!(guest.accept(), Some(calls_now));
            guest.end_what_is_left();
            assert_eq!(guest.write(calls, b"x"), Err(Gone));
            guest.write(0, b"hello").unwrap();
            host.receive(&guest.outgoing()).unwrap();
            assert_eq!(read(&mut host, 0), b"hello");
            let text = String::from_utf8(read(&mut host, out)).unwrap();
            assert!("lostkept".ends_with(&text), "{cut}: {text}");
            let all = read(&mut host, over);
            if cut == 0 {
                assert_eq!(
                    (text.as_str(), all.as_slice()),
                    ("lostkept", &b"all of it"[..])
                );
            }
            let ended = host.read(over, &mut [0; 8]);
            assert!(matches!(ended, Ok(Some(0)) | Err(Gone)), "{cut}: {ended:?}");
            assert_eq!(host.write(input, b"more"), Ok(4));
            guest.receive(&host.outgoing()).unwrap();
            let all = [got, read(&mut guest, input)].concat();
            assert!(all.ends_with(b"more"), "{cut}");
            // As much as ever may be on its way.
            let data = vec![1; 2 * WINDOW as usize];
            let mut moved = 0;
            while moved < data.len() {
                moved += guest.write(out, &data[moved..]).unwrap();
                host.receive(&guest.outgoing()).unwrap();
                read(&mut host, out);
                guest.receive(&host.outgoing()).unwrap();
            }
        }
    }
}
