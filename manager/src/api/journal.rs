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
    let reader =
        Reader::open(&manager.intake.journal_dir(), request.since).map_err(io("journal"))?;
    Ok(Stream::new(Entries {
        reader,
        filters,
        since: request.since_time.map(|time| (time.seconds, time.nanos)),
        stored: VecDeque::new(),
        next: manager.intake.last() + 1,
        live,
    }))
}

struct Entries {
    reader: Reader,
    filters: Filters,
    /// Nothing older than this.
    since: Option<(i64, i32)>,
    /// What is left of the piece that was read last.
    stored: VecDeque<Entry>,
    /// The first that is not among the stored ones.
    next: u64,
    live: Option<Subscription>,
}

impl Entries {
    /// Reads on until there is something to tell; false at the end of what is stored.
    fn fill(&mut self) -> bool {
        while self.stored.is_empty() {
            let (stored, next) = (&mut self.stored, self.next);
            let (filters, since) = (&self.filters, self.since);
            let more = self.reader.next(|seq, record: Record| {
                let Some(envelope) = record.envelope.filter(|_| seq < next) else {
                    return;
                };
                let time = envelope.timestamp.map(|time| (time.seconds, time.nanos));
                if time >= since && filters.matches(&envelope) {
                    stored.push_back(Entry {
                        seq,
                        origin: record.origin,
                        envelope: Some(envelope),
                    });
                }
            });
            if !more {
                return false;
            }
        }
        true
    }
}

impl tokio_stream::Stream for Entries {
    type Item = Result<Entry, tonic::Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.fill() {
            return Poll::Ready(self.stored.pop_front().map(Ok));
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
