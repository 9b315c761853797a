// SPDX-License-Identifier: Apache-2.0
//! One connection of a server: it reads requests, runs each as its own task, and writes answers.

use super::calls::{Call, Ongoing};
use super::frame::{
    Frame, Kind, MAX_PAYLOAD, ReadError, begin_frame, end_frame, skip, write_frame,
};
use super::server::{Busy, MovedCall, MovedConnection, Services, Shared};
use super::service::{Answer, Context, Request};
use super::trace::Trace;
use super::wire;
use crate::status::{Code, Status};
use prost::Message;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use tokio::io::{AsyncRead, AsyncWrite, WriteHalf};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{Mutex, Notify, watch};
use tokio::time::Instant;

/// What the calls of one connection may hold together until they are answered, in bytes: those that
/// only wait, some 4,000 of them, and all.
const MOST_WAITING: usize = 16 << 20;
const MOST: usize = 32 << 20;
/// What a call takes beside its payload, which one that only waits has twice.
const CALL: usize = 4 << 10;
/// So many bytes of answers may lie unsent; then nothing more is read until the peer has read.
const UNSENT: usize = 1 << 20;

pub(super) struct Connection {
    reader: Mutex<Box<dyn AsyncRead + Unpin>>,
    /// `None` once the connection belongs to another process image.
    writer: Mutex<Option<Box<dyn Writer>>>,
    last_stream: Cell<u32>,
    /// What goes on, by stream.
    calls: RefCell<BTreeMap<u32, Call>>,
    /// How many bytes calls hold, and how many answers.
    held: Cell<usize>,
    unsent: Cell<usize>,
    sent: Notify,
    closed: watch::Sender<bool>,
}

/// The way back to the peer.
pub(super) trait Writer: AsyncWrite + Unpin {
    /// What can be handed to another process image; not every way is the kernel's.
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Drops it without an end that the peer would see, where somebody else has it too.
    fn forget(self: Box<Self>) {}
}

impl Writer for OwnedWriteHalf {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        let stream: &UnixStream = self.as_ref();
        Some(stream.as_fd())
    }

    fn forget(self: Box<Self>) {
        (*self).forget();
    }
}

impl<T: AsyncRead + AsyncWrite> Writer for WriteHalf<T> {}

/// Serves a connection to the kernel's socket, which may come from another process image.
pub(super) fn start_connection(
    stream: UnixStream,
    moved: Option<MovedConnection>,
    services: &Rc<Services>,
    shared: &Rc<Shared>,
) {
    let (reader, writer) = stream.into_split();
    start_over(Box::new(reader), Box::new(writer), moved, services, shared);
}

/// Serves what comes over `reader`, and answers over `writer`.
pub(super) fn start_over(
    reader: Box<dyn AsyncRead + Unpin>,
    writer: Box<dyn Writer>,
    moved: Option<MovedConnection>,
    services: &Rc<Services>,
    shared: &Rc<Shared>,
) {
    let connection = Rc::new(Connection {
        reader: Mutex::new(reader),
        writer: Mutex::new(Some(writer)),
        last_stream: Cell::new(moved.as_ref().map_or(0, |moved| moved.last_stream)),
        calls: RefCell::default(),
        held: Cell::new(0),
        unsent: Cell::new(0),
        sent: Notify::new(),
        closed: watch::channel(false).0,
    });
    let mut connections = shared.connections.borrow_mut();
    connections.retain(|known| known.strong_count() > 0);
    connections.push(Rc::downgrade(&connection));
    for call in moved.into_iter().flat_map(|moved| moved.calls) {
        let stream = call.stream;
        let call = Call::new(call.service, call.method, call.payload, call.timeout);
        let started = start_call(call, stream, true, services, &connection, shared);
        if let Err(status) = started {
            let connection = Rc::clone(&connection);
            tokio::task::spawn_local(async move {
                connection.respond(stream, Err(status)).await;
            });
        }
    }
    let (services, shared) = (Rc::clone(services), Rc::clone(shared));
    tokio::task::spawn_local(async move {
        connection.serve(&services, &shared).await;
        connection.closed.send_replace(true);
    });
}

impl Connection {
    /// Describes the connection while the server is frozen; `keep` is shown its fd.
    ///
    /// # Errors
    /// `keep`'s, or if an answer is being written after all.
    pub(super) fn describe(
        &self,
        keep: &mut impl FnMut(BorrowedFd<'_>, MovedConnection) -> io::Result<()>,
    ) -> io::Result<()> {
        let now = Instant::now();
        let left = |deadline: Instant| deadline.saturating_duration_since(now).as_nanos();
        let left = |deadline| u64::try_from(left(deadline)).unwrap_or(u64::MAX);
        let calls = self.calls.borrow();
        let waiting = |call: &Call| call.only_waits && !call.is_answered;
        let calls = calls.iter().filter(|(_, call)| waiting(call));
        let calls = calls.map(|(&stream, call)| MovedCall {
            stream,
            service: call.service.clone(),
            method: call.method.clone(),
            payload: call.payload.clone(),
            timeout: call.deadline.map(left),
        });
        let moved = MovedConnection {
            last_stream: self.last_stream.get(),
            calls: calls.collect(),
        };
        let writer = self.writer.try_lock().map_err(io::Error::other)?;
        if let Some(fd) = writer.as_ref().and_then(|writer| writer.fd()) {
            keep(fd, moved)?;
        }
        Ok(())
    }

    /// The calls that go on, oldest first.
    pub(super) fn calls(&self) -> Vec<Ongoing> {
        self.calls.borrow().values().map(Call::tell).collect()
    }

    /// The connection lives on elsewhere: to drop it here shall not shut it down.
    pub(super) fn let_go(&self) {
        let writer = self.writer.try_lock();
        if let Some(writer) = writer.ok().and_then(|mut writer| writer.take()) {
            writer.forget();
        }
    }

    /// Reads requests until the peer closes.
    async fn serve(self: &Rc<Self>, services: &Services, shared: &Rc<Shared>) {
        let mut reader = self.reader.lock().await;
        loop {
            while shared.frozen.get() {
                shared.freeze.notified().await;
            }
            while self.unsent.get() > UNSENT {
                self.sent.notified().await;
            }
            // Waits between two frames, where it may be frozen.
            let begun = tokio::select! {
                begun = begin_frame(&mut *reader) => begun,
                () = shared.freeze.notified() => continue,
            };
            let Ok(Some(begun)) = begun else { return };
            let busy = Busy::new(shared);
            let refusal = match end_frame(&mut *reader, begun, MAX_PAYLOAD).await {
                Ok(frame) if frame.kind != Kind::Request => None,
                Ok(frame) => {
                    let stream = frame.stream;
                    let started = self.start(frame, services, shared);
                    started.err().map(|status| (stream, status))
                }
                Err(ReadError::Io(_)) => return,
                Err(ReadError::TooLong { stream, length }) => {
                    if skip(&mut *reader, length).await.is_err() {
                        return;
                    }
                    Some((stream, too_long(length)))
                }
            };
            // Here, and not beside: who only sends and never reads is read no further.
            if let Some((stream, status)) = refusal {
                self.respond(stream, Err(status)).await;
            }
            drop(busy);
        }
    }

    fn start(
        self: &Rc<Self>,
        frame: Frame,
        services: &Services,
        shared: &Rc<Shared>,
    ) -> Result<(), Status> {
        // Client streams are odd and increase (ttrpc server.go).
        let invalid = |text| Err(Status::new(Code::InvalidArgument, text));
        if frame.stream % 2 != 1 {
            return invalid("StreamID must be odd for client initiated streams");
        }
        if frame.stream <= self.last_stream.get() {
            return invalid("StreamID cannot be re-used and must increment");
        }
        self.last_stream.set(frame.stream);
        let envelope = wire::Request::decode(frame.payload.as_slice()).map_err(|e| {
            Status::new(
                Code::InvalidArgument,
                format!("unmarshal request error: {e}"),
            )
        })?;
        let timeout = u64::try_from(envelope.timeout_nano)
            .ok()
            .filter(|&nanos| nanos > 0);
        let (service, method) = (envelope.service, envelope.method);
        let mut call = Call::new(service, method, envelope.payload, timeout);
        call.trace = Trace::of(&envelope.metadata).map(Rc::new);
        start_call(call, frame.stream, false, services, self, shared)
    }

    async fn respond(&self, stream: u32, answer: Answer) {
        let answer = match answer {
            Ok(payload) if payload.len() > MAX_PAYLOAD => Err(too_long(payload.len())),
            other => other,
        };
        let response = match answer {
            Ok(payload) => wire::Response {
                status: None,
                payload,
            },
            Err(status) => wire::Response {
                status: Some(wire::Status {
                    code: status.code as i32,
                    message: status.message,
                    details: Vec::new(),
                }),
                payload: Vec::new(),
            },
        };
        let length = response.encoded_len();
        self.unsent.set(self.unsent.get() + length);
        let mut writer = self.writer.lock().await;
        if let Some(writer) = &mut *writer {
            // The reader of this connection notices a broken pipe; there is no one else to tell.
            let response = response.encode_to_vec();
            let _ = write_frame(writer, stream, Kind::Response, &response).await;
        }
        self.unsent.set(self.unsent.get() - length);
        self.sent.notify_one();
    }
}

/// What a call holds of its connection's share, until it is dropped.
struct Hold {
    connection: Rc<Connection>,
    bytes: usize,
}

impl Hold {
    /// # Errors
    /// `ResourceExhausted`.
    fn new(connection: &Rc<Connection>, payload: usize, most: usize) -> Result<Self, Status> {
        let bytes = CALL + 2 * payload;
        let held = connection.held.get() + bytes;
        if held > most {
            let text = format!("calls of this connection hold {held} bytes, {most} is the most");
            return Err(Status::new(Code::ResourceExhausted, text));
        }
        connection.held.set(held);
        Ok(Self {
            connection: Rc::clone(connection),
            bytes,
        })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let held = &self.connection.held;
        held.set(held.get() - self.bytes);
    }
}

fn too_long(length: usize) -> Status {
    let text = format!("message length {length} exceed maximum message size of {MAX_PAYLOAD}");
    Status::new(Code::ResourceExhausted, text)
}

fn start_call(
    mut call: Call,
    stream: u32,
    moved: bool,
    services: &Services,
    connection: &Rc<Connection>,
    shared: &Rc<Shared>,
) -> Result<(), Status> {
    let no_service = || Status::new(Code::Unimplemented, format!("service {}", call.service));
    let service = services.get(call.service.as_str()).ok_or_else(no_service)?;
    call.only_waits = service.only_waits(&call.method);
    let most = if call.only_waits { MOST_WAITING } else { MOST };
    let hold = Hold::new(connection, call.payload.len(), most)?;
    let context = Context {
        deadline: call.deadline,
        closed: connection.closed.subscribe(),
        trace: call.trace.clone(),
        waits: Some(Rc::clone(&call.waits)),
    };
    let service = Rc::clone(service);
    let busy = (!call.only_waits).then(|| Busy::new(shared));
    let (method, payload) = (call.method.clone(), call.take_payload());
    connection.calls.borrow_mut().insert(stream, call);
    let running = service.call(Request {
        method,
        payload,
        context: context.clone(),
        moved,
    });
    let run = run_call(running, context, stream, hold, busy, Rc::clone(shared));
    tokio::task::spawn_local(run);
    Ok(())
}

async fn run_call(
    running: Pin<Box<dyn Future<Output = Answer>>>,
    context: Context,
    stream: u32,
    hold: Hold,
    busy: Option<Busy>,
    shared: Rc<Shared>,
) {
    let connection = &hold.connection;
    let mut running = pin!(running);
    let (answer, ended) = tokio::select! {
        biased;
        answer = &mut running => (answer, true),
        status = context.cancelled() => (Err(status), false),
    };
    // From here on it does not only wait.
    let _busy = busy.unwrap_or_else(|| Busy::new(&shared));
    if let Some(call) = connection.calls.borrow_mut().get_mut(&stream) {
        call.is_answered = true;
    }
    // On a closed connection this write fails, and nobody minds.
    connection.respond(stream, answer).await;
    if !ended {
        let _ = running.await;
    }
    connection.calls.borrow_mut().remove(&stream);
}
