//! The Journal service: events from any point on, for clients that keep a cursor.

use super::{Stream, service};
use crate::exchange::Entry as Live;
use crate::failure::{Failure, io};
use crate::filter::Filters;
use crate::journal;
use crate::manager::Manager;
use protos::services::dunnage::v1::{Entry, ReadRequest};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
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
    let since = request.since_time.map(|time| (time.seconds, time.nanos));
    let mut stored = VecDeque::new();
    let dir = manager.intake.journal_dir();
    let found = |seq, record: journal::Record| {
        let Some(envelope) = record.envelope else {
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
    };
    journal::read(&dir, request.since, found).map_err(io("journal"))?;
    let next = manager.intake.last() + 1;
    Ok(Stream::new(Entries { stored, next, live }))
}

struct Entries {
    stored: VecDeque<Entry>,
    /// The first that is not among the stored ones.
    next: u64,
    live: Option<mpsc::UnboundedReceiver<Live>>,
}

impl tokio_stream::Stream for Entries {
    type Item = Result<Entry, tonic::Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(entry) = self.stored.pop_front() {
            return Poll::Ready(Some(Ok(entry)));
        }
        let next = self.next;
        let Some(live) = &mut self.live else {
            return Poll::Ready(None);
        };
        loop {
            match std::task::ready!(live.poll_recv(context)) {
                None => return Poll::Ready(None),
                Some(entry) if entry.seq < next => {}
                Some(entry) => {
                    return Poll::Ready(Some(Ok(Entry {
                        seq: entry.seq,
                        origin: entry.origin.into(),
                        envelope: Some(entry.envelope),
                    })));
                }
            }
        }
    }
}
