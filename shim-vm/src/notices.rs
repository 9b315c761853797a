// SPDX-License-Identifier: Apache-2.0
//! What the guest says without being asked: its hello, and then every event.

use crate::image::AGENT;
use crate::word::{self, Doom};
use protos::Message;
use protos::guest::{Event, Heard, Hello, Killed, Notice, notice};
use protos::mux::{Link, MAX_NOTICE, Stream};
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use task::record;
use tokio::sync::Notify;

/// The version of what both sides speak.
const PROTOCOL: u32 = 2;
/// The bytes of a notice's length at most.
const LENGTH: usize = 4;

/// After so many events the guest hears that it need not keep them.
const KEPT: u64 = 16;

/// The guest's notices. What has come of one that is not whole yet is in `begun`, and nowhere else.
pub struct Notices {
    stream: Stream,
    begun: RefCell<Vec<u8>>,
    /// The number of the last event that was told here, and of the last that the guest knows this of.
    heard: Cell<u64>,
    acknowledged: Cell<u64>,
    /// What of that word is not sent yet.
    word: RefCell<Vec<u8>>,
    /// The guest has said hello, or need not.
    is_greeted: Cell<bool>,
    greeting: Notify,
}

impl Notices {
    /// Those on `stream`, of which one has `begun`, after event number `heard`.
    pub fn new(stream: Stream, begun: Vec<u8>, heard: u64) -> Self {
        Self {
            stream,
            begun: RefCell::new(begun),
            heard: Cell::new(heard),
            acknowledged: Cell::new(heard),
            word: RefCell::default(),
            is_greeted: Cell::new(true),
            greeting: Notify::new(),
        }
    }

    /// Those of another session, which begins with a hello.
    pub fn again(stream: Stream, heard: u64) -> Self {
        Self {
            is_greeted: Cell::new(false),
            ..Self::new(stream, Vec::new(), heard)
        }
    }

    /// Waits until the guest has said hello.
    pub async fn greeted(&self) {
        while !self.is_greeted.get() {
            self.greeting.notified().await;
        }
    }

    /// Begins another session, whose calls come over stream `calls`: a hello comes again, and every
    /// event that was not heard.
    pub fn begin(&self, calls: u32) {
        self.say(calls);
    }

    pub fn heard(&self) -> u64 {
        self.heard.get()
    }

    /// An event was told here.
    ///
    /// # Errors
    /// If it is not the next.
    fn hears(&self, number: u64) -> Result<(), String> {
        let next = self.heard.get() + 1;
        if number != next {
            return Err(format!("event {number}, where {next} is the next"));
        }
        self.heard.set(next);
        Ok(())
    }

    /// Lets the guest know that it need not keep what was heard, now and then.
    fn acknowledge(&self) {
        if self.heard.get() - self.acknowledged.get() >= KEPT {
            // It is where it outlives this process.
            record::now();
            self.say(0);
        }
    }

    /// Says how much was heard. A guest that does not listen is told later.
    fn say(&self, calls: u32) {
        let mut word = self.word.borrow_mut();
        if word.is_empty() {
            let number = self.heard.get();
            *word = Heard { number, calls }.encode_length_delimited_to_vec();
            self.acknowledged.set(number);
        }
        // Nobody else writes here, so that there is room but for a guest that does not read.
        let written = self.stream.try_write(&word).unwrap_or(0);
        word.drain(..written);
    }

    /// What another process image needs to go on, beside the stream.
    pub fn begun(&self) -> Vec<u8> {
        self.begun.borrow().clone()
    }

    /// The first that the guest says.
    ///
    /// # Errors
    /// If it is not heard, or is no agent that this shim can speak with.
    pub async fn hello(&self) -> Result<Hello, String> {
        match self.next().await {
            Ok(notice::Notice::Hello(hello)) if hello.version == PROTOCOL => {
                let ours = format!("{} {}", AGENT.0, AGENT.1);
                if hello.agent != ours {
                    let theirs = word::line(&hello.agent);
                    log::warn!("the agent in the VM is {theirs}, not {ours}");
                }
                Ok(hello)
            }
            Ok(notice::Notice::Hello(hello)) => Err(format!(
                "its agent {} speaks version {}, not {PROTOCOL}: make guest anew",
                word::line(&hello.agent),
                hello.version
            )),
            Ok(_) => Err("its agent did not say hello first".into()),
            Err(e) => Err(format!("its agent is not heard: {e}")),
        }
    }

    async fn next(&self) -> io::Result<notice::Notice> {
        loop {
            let wanted = wanted(&self.begun.borrow())?;
            let wanted = match wanted {
                Wanted::Bytes(wanted) => wanted,
                Wanted::Nothing { prefix } => {
                    let notice = self.begun.take();
                    let notice = Notice::decode(&notice[prefix..]);
                    let notice = notice.map_err(|e| bad(&e.to_string()))?;
                    return notice.notice.ok_or_else(|| bad("a notice of nothing"));
                }
            };
            self.stream.readable().await;
            let mut bytes = vec![0; wanted];
            match self.stream.try_read(&mut bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.begun.borrow_mut().extend_from_slice(&bytes[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// What is missing of a notice.
enum Wanted {
    Bytes(usize),
    Nothing { prefix: usize },
}

/// What is missing of the notice that begins so: its length, as protobuf writes numbers, and then
/// itself.
///
/// # Errors
/// If it is too long.
fn wanted(begun: &[u8]) -> io::Result<Wanted> {
    let mut length = 0_usize;
    for n in 0..LENGTH {
        let Some(byte) = begun.get(n) else {
            return Ok(Wanted::Bytes(1));
        };
        length |= usize::from(byte & 0x7f) << (7 * n);
        if length > MAX_NOTICE {
            break;
        }
        if byte & 0x80 == 0 {
            let prefix = n + 1;
            return Ok(match prefix + length - begun.len() {
                0 => Wanted::Nothing { prefix },
                missing => Wanted::Bytes(missing),
            });
        }
    }
    Err(bad("a notice that is too long"))
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

/// What it says after its hello.
pub enum News {
    Event(Event),
    /// Who was killed for want of memory.
    Killed(Killed),
}

/// Tells every event of the guest's, in order, for as long as there is a guest. What is no event, or
/// what `tell` finds wrong, ends the VM, and nothing is told any more.
pub async fn listen(
    notices: Rc<Notices>,
    link: Rc<Link>,
    doom: Doom,
    mut tell: impl FnMut(News) -> Result<(), String>,
) {
    if !notices.is_greeted.get() {
        match notices.hello().await {
            Ok(_) => notices.is_greeted.set(true),
            Err(_) if link.is_closed() => return,
            Err(e) => return doom.broke_word(&e),
        }
        notices.greeting.notify_waiters();
    }
    loop {
        let told = match notices.next().await {
            Ok(notice::Notice::Event(event)) => {
                let number = event.number;
                let told = notices.hears(number);
                let told = told.and_then(|()| tell(News::Event(event)));
                notices.acknowledge();
                told
            }
            Ok(notice::Notice::Killed(killed)) => tell(News::Killed(killed)),
            Ok(notice::Notice::Hello(_)) => Err("a second hello".into()),
            Err(e) if link.is_closed() => return log::debug!("no more events: {e}"),
            Err(e) => Err(format!("its notices: {e}")),
        };
        if let Err(how) = told {
            return doom.broke_word(&how);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is missing of a notice is known at each of its bytes, and never more than it has.
    #[test]
    fn a_notice_is_read_to_its_end_and_no_further() {
        for length in [0, 1, 127, 128, MAX_NOTICE] {
            let mut whole = Vec::new();
            let mut left = length;
            while left >= 0x80 {
                whole.push((left & 0x7f) as u8 | 0x80);
                left >>= 7;
            }
            whole.push(left as u8);
            let prefix = whole.len();
            whole.extend(vec![7; length]);
            for have in 0..prefix {
                let missing = wanted(&whole[..have]).unwrap();
                assert!(matches!(missing, Wanted::Bytes(1)), "{length}: {have}");
            }
            for have in prefix..whole.len() {
                let missing = wanted(&whole[..have]).unwrap();
                let is_rest = matches!(missing, Wanted::Bytes(n) if n == whole.len() - have);
                assert!(is_rest, "{length}: {have}");
            }
            let none = wanted(&whole).unwrap();
            assert!(
                matches!(none, Wanted::Nothing { prefix: p } if p == prefix),
                "{length}"
            );
        }
        for too_long in [&[0xff, 0xff][..], &[0x81, 0x20], &[0x80; LENGTH]] {
            assert!(wanted(too_long).is_err(), "{too_long:?}");
        }
    }
}
