// SPDX-License-Identifier: Apache-2.0
//! The Journal service: events from any point on, for clients that keep a cursor.

use super::{Stream, service};
use crate::failure::{Failure, io};
use crate::filter::Filters;
use crate::journal::{Reader, Record};
use crate::manager::Manager;
use crate::subscription::Subscription;
use protos::services::dunnage::v1::{Entry, ReadRequest};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use task::aside;
use tokio::sync::mpsc;

service! {
    crate::services::dunnage::v1::journal_server::Journal,
    namespaced: false;
    [type ReadStream = Stream<Entry>]
    read(ReadRequest) -> Stream<Entry>;
}

async fn read(
    manager: Rc<Manager>,
    _: String,
    request: ReadRequest,
) -> Result<Stream<Entry>, Failure> {
    let filters = Filters::parse(&request.filters)?;
    // First the live ones, so that nothing falls in between.
    let live = match request.follow {
        true => Some(manager.intake.subscribe(&request.filters, false)?),
        false => None,
    };
    let (dir, since) = (manager.intake.journal_dir(), request.since);
    let reader = aside::run(move || Reader::open(&dir, since)).await;
    let next = manager.intake.last() + 1;
    let wanted = Wanted {
        filters,
        since: request.since_time.map(|time| (time.seconds, time.nanos)),
        next,
    };
    let (found, stored) = mpsc::channel(1);
    let reader = reader.map_err(io("journal"))?;
    tokio::task::spawn_local(read_stored(reader, wanted, found));
    Ok(Stream::new(Entries {
        stored: Some(stored),
        piece: VecDeque::new(),
        next,
        live,
    }))
}

/// Which of the stored entries are told.
struct Wanted {
    filters: Filters,
    /// Nothing older than this.
    since: Option<(i64, i32)>,
    /// The first that is not among the stored ones.
    next: u64,
}

impl Wanted {
    fn entry(&self, seq: u64, record: Record) -> Option<Entry> {
        let envelope = record.envelope.filter(|_| seq < self.next)?;
        let time = envelope.timestamp.map(|time| (time.seconds, time.nanos));
        (time >= self.since && self.filters.matches(&envelope)).then_some(Entry {
            seq,
            origin: record.origin,
            envelope: Some(envelope),
        })
    }
}

/// Reads what is stored beside the loop, a piece whenever the client has taken the one before.
async fn read_stored(mut reader: Reader, wanted: Wanted, found: mpsc::Sender<VecDeque<Entry>>) {
    loop {
        let Ok(room) = found.reserve().await else {
            return;
        };
        let read = move || {
            let mut records = Vec::new();
            let more = reader.next(|seq, record| records.push((seq, record)));
            (reader, records, more)
        };
        let (again, records, more) = aside::run(read).await;
        reader = again;
        let entries = records.into_iter();
        room.send(
            entries
                .filter_map(|(seq, record)| wanted.entry(seq, record))
                .collect(),
        );
        if !more {
            return;
        }
    }
}

struct Entries {
    /// None once all that is stored has been told.
    stored: Option<mpsc::Receiver<VecDeque<Entry>>>,
    /// What is left of the piece that was read last.
    piece: VecDeque<Entry>,
    /// The first that is not among the stored ones.
    next: u64,
    live: Option<Subscription>,
}

impl Entries {
    /// The next of what is stored; none at its end.
    fn poll_stored(&mut self, context: &mut Context<'_>) -> Poll<Option<Entry>> {
        loop {
            if let Some(entry) = self.piece.pop_front() {
                return Poll::Ready(Some(entry));
            }
            let Some(stored) = &mut self.stored else {
                return Poll::Ready(None);
            };
            match std::task::ready!(stored.poll_recv(context)) {
                Some(piece) => self.piece = piece,
                None => self.stored = None,
            }
        }
    }
}

impl tokio_stream::Stream for Entries {
    type Item = Result<Entry, tonic::Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(entry) = std::task::ready!(self.poll_stored(context)) {
            return Poll::Ready(Some(Ok(entry)));
        }
        let next = self.next;
        let Some(live) = &self.live else {
            return Poll::Ready(None);
        };
        loop {
            match std::task::ready!(live.poll_next(context)) {
                None => return Poll::Ready(None),
                Some(Err(end)) => return Poll::Ready(Some(Err(super::refused(end)))),
                Some(Ok(entry)) if entry.seq < next => {}
                Some(Ok(entry)) => {
                    return Poll::Ready(Some(Ok(Entry {
                        seq: entry.seq,
                        origin: entry.origin.into(),
                        envelope: Some(entry.envelope.clone()),
                    })));
                }
            }
        }
    }
}
