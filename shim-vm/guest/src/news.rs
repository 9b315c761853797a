// SPDX-License-Identifier: Apache-2.0
//! What the host is told of its containers: every event, by number, kept until the host has it for
//! good. A host that takes the place of one that has died hears what that one had not. And who was killed
//! for want of memory, once.

use protos::Message;
use protos::guest::{self, Event, Heard, Notice, notice};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use task::oom::{Killed, Told};
use task::outbox::Outbox;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The most that the host says at once, in bytes.
const LONGEST: usize = 64;
/// The most of a name or a path that is told of who was killed, in characters: three of them have room in
/// a notice, whatever they are.
const NAME: usize = 256;

pub struct News {
    outbox: Rc<Outbox>,
    killed: Rc<Told>,
    /// What was said, and what the host may not have. A host that does not listen takes no more than
    /// its stream's window.
    said: RefCell<VecDeque<Event>>,
    /// The number of the last that was taken out of the outbox.
    last: Cell<u64>,
}

impl News {
    pub fn new(outbox: Rc<Outbox>, killed: Rc<Told>) -> Self {
        killed.begin();
        Self {
            outbox,
            killed,
            said: RefCell::default(),
            last: Cell::new(0),
        }
    }

    /// Tells the host every event after number `heard`, and of kills, for as long as it listens.
    pub async fn send(&self, to: &mut (impl AsyncWrite + Unpin), heard: u64) -> io::Error {
        self.forget(heard);
        let mut number = heard + 1;
        loop {
            let event = async {
                match self.said(number) {
                    Some(event) => event,
                    None => self.take().await,
                }
            };
            let notice = tokio::select! {
                biased;
                event = event => {
                    number += 1;
                    notice::Notice::Event(event)
                }
                killed = self.killed.next() => notice::Notice::Killed(told(killed)),
            };
            if let Err(e) = say(to, notice).await {
                return e;
            }
        }
    }

    fn said(&self, number: u64) -> Option<Event> {
        let said = self.said.borrow();
        said.iter().find(|event| event.number == number).cloned()
    }

    /// The next that has happened.
    async fn take(&self) -> Event {
        let (timestamp, event) = self.outbox.head().await;
        self.outbox.sent();
        self.last.set(self.last.get() + 1);
        let event = Event {
            timestamp: Some(timestamp),
            event: Some(event.envelope().1),
            number: self.last.get(),
        };
        self.said.borrow_mut().push_back(event.clone());
        event
    }

    /// Hears what the host has for good, for as long as it says so.
    pub async fn hear(&self, from: &mut (impl AsyncRead + Unpin)) -> io::Error {
        loop {
            match next(from).await {
                Ok(heard) => self.forget(heard.number),
                Err(e) => return e,
            }
        }
    }

    fn forget(&self, heard: u64) {
        let mut said = self.said.borrow_mut();
        while said.front().is_some_and(|event| event.number <= heard) {
            said.pop_front();
        }
        if said.is_empty() {
            *said = VecDeque::new();
        }
    }
}

/// A kill of a container's, as the host is told of it.
fn told((container_id, killed): (String, Killed)) -> guest::Killed {
    let short = |text: String| text.chars().take(NAME).collect();
    guest::Killed {
        container_id,
        exec_id: killed.exec,
        pid: killed.pid,
        program: short(killed.program),
        cgroup: short(killed.cgroup),
        exhausted: short(killed.exhausted),
        peak_bytes: killed.peak_bytes,
        limit_bytes: killed.limit_bytes,
        with_group: killed.with_group,
    }
}

/// Says something without being asked.
///
/// # Errors
/// If the host is gone.
pub async fn say(to: &mut (impl AsyncWrite + Unpin), notice: notice::Notice) -> io::Result<()> {
    let notice = Some(notice);
    let bytes = Notice { notice }.encode_length_delimited_to_vec();
    to.write_all(&bytes).await
}

/// The next that the host says.
///
/// # Errors
/// If it is gone, or says nothing that can be understood.
pub async fn next(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Heard> {
    let length = from.read_u8().await?.into();
    let mut bytes = [0; LONGEST];
    let bytes = bytes.get_mut(..length).ok_or(io::ErrorKind::InvalidData)?;
    from.read_exact(bytes).await?;
    Heard::decode(&*bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}
