//! The client: many calls at once over one connection.

use super::frame::{Kind, read_frame, write_frame};
use super::wire;
use crate::status::{Code, Status};
use prost::Message;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, oneshot, watch};
use tokio::task::JoinHandle;

/// Why a call gave no answer.
#[derive(Debug)]
pub enum CallError {
    /// The connection closed before the answer came; whether the call ran is unknown.
    Closed,
    /// The server answered with a status, or the deadline passed here.
    Status(Status),
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed => f.write_str("ttrpc: closed"),
            Self::Status(status) => status.fmt(f),
        }
    }
}

impl std::error::Error for CallError {}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

/// A connection to a ttrpc server. Clones share it; it closes with the last one.
#[derive(Clone)]
pub struct Client {
    shared: Rc<Shared>,
}

struct Shared {
    writer: Mutex<OwnedWriteHalf>,
    pending: Rc<Pending>,
    next_stream: Cell<u32>,
    closed: watch::Receiver<bool>,
    reader: JoinHandle<()>,
}

type Pending = RefCell<HashMap<u32, oneshot::Sender<wire::Response>>>;

impl Drop for Shared {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Client {
    /// Connects to the unix socket at `path`.
    pub async fn connect(path: impl AsRef<Path>) -> io::Result<Self> {
        Ok(Self::new(UnixStream::connect(path).await?))
    }

    /// Speaks over a connection that is already there.
    pub fn new(stream: UnixStream) -> Self {
        let (reader, writer) = stream.into_split();
        let pending = Rc::<Pending>::default();
        let (closed_tx, closed) = watch::channel(false);
        let reader =
            tokio::task::spawn_local(read_responses(reader, Rc::clone(&pending), closed_tx));
        let shared = Shared {
            writer: Mutex::new(writer),
            pending,
            next_stream: Cell::new(1),
            closed,
            reader,
        };
        Self {
            shared: Rc::new(shared),
        }
    }

    /// Waits until the server's end is gone.
    pub async fn closed(&self) {
        let mut closed = self.shared.closed.clone();
        let _ = closed.wait_for(|&closed| closed).await;
    }

    /// Calls `service/method` with an encoded message; the answer's bytes come back.
    /// `timeout` is sent to the server, and kept here too.
    ///
    /// # Errors
    /// The server's status, `DeadlineExceeded`, or `Closed`.
    pub async fn call_raw(
        &self,
        service: &str,
        method: &str,
        payload: Vec<u8>,
        metadata: &[(&str, &str)],
        timeout: Option<Duration>,
    ) -> Result<Vec<u8>, CallError> {
        let call = self.exchange(service, method, payload, metadata, timeout);
        let response = match timeout {
            None => call.await?,
            Some(timeout) => tokio::time::timeout(timeout, call)
                .await
                .unwrap_or_else(|_| Err(Status::deadline_exceeded().into()))?,
        };
        match response.status {
            Some(status) if status.code != Code::Ok as i32 => {
                Err(Status::new(Code::from(status.code), status.message).into())
            }
            _ => Ok(response.payload),
        }
    }

    /// [`Client::call_raw`] with messages on both sides.
    ///
    /// # Errors
    /// As `call_raw`; an answer that does not decode is `Internal`.
    pub async fn call<A: Message + Default>(
        &self,
        service: &str,
        method: &str,
        request: &impl Message,
        timeout: Option<Duration>,
    ) -> Result<A, CallError> {
        let payload = request.encode_to_vec();
        let answer = self
            .call_raw(service, method, payload, &[], timeout)
            .await?;
        A::decode(answer.as_slice())
            .map_err(|e| Status::new(Code::Internal, format!("answer of {method}: {e}")).into())
    }

    async fn exchange(
        &self,
        service: &str,
        method: &str,
        payload: Vec<u8>,
        metadata: &[(&str, &str)],
        timeout: Option<Duration>,
    ) -> Result<wire::Response, CallError> {
        let request = wire::Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload,
            timeout_nano: timeout.map_or(0, |t| i64::try_from(t.as_nanos()).unwrap_or(i64::MAX)),
            metadata: metadata
                .iter()
                .map(|&(key, value)| wire::KeyValue {
                    key: key.to_owned(),
                    value: value.to_owned(),
                })
                .collect(),
        };
        let (answer_tx, answer) = oneshot::channel();
        // A task of its own: a caller that stops waiting must not leave half a frame behind.
        let sent = tokio::task::spawn_local(send(Rc::clone(&self.shared), request, answer_tx));
        let stream = sent
            .await
            .map_err(|_| CallError::Closed)?
            .ok_or(CallError::Closed)?;
        let _forget = Forget {
            pending: &self.shared.pending,
            stream,
        };
        answer.await.map_err(|_| CallError::Closed)
    }
}

/// Sends `request` and notes who waits for its answer; `None` if the connection is gone.
async fn send(
    shared: Rc<Shared>,
    request: wire::Request,
    answer: oneshot::Sender<wire::Response>,
) -> Option<u32> {
    // Under the lock, so that stream numbers go out in order: a server refuses a smaller one.
    let mut writer = shared.writer.lock().await;
    if *shared.closed.borrow() {
        return None;
    }
    let stream = shared.next_stream.get();
    shared.next_stream.set(stream + 2);
    shared.pending.borrow_mut().insert(stream, answer);
    let sent = write_frame(
        &mut *writer,
        stream,
        Kind::Request,
        &request.encode_to_vec(),
    )
    .await;
    if sent.is_err() {
        shared.pending.borrow_mut().remove(&stream);
        return None;
    }
    Some(stream)
}

/// Takes a call that nobody awaits any more off the list.
struct Forget<'a> {
    pending: &'a Pending,
    stream: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.pending.borrow_mut().remove(&self.stream);
    }
}

async fn read_responses(
    mut reader: OwnedReadHalf,
    pending: Rc<Pending>,
    closed: watch::Sender<bool>,
) {
    while let Ok(Some(frame)) = read_frame(&mut reader).await {
        if frame.kind != Kind::Response {
            continue;
        }
        let Some(waiter) = pending.borrow_mut().remove(&frame.stream) else {
            continue;
        };
        let response = wire::Response::decode(frame.payload.as_slice()).unwrap_or_else(|e| {
            let status = wire::Status {
                code: Code::Internal as i32,
                message: format!("unmarshal response error: {e}"),
                details: Vec::new(),
            };
            wire::Response {
                status: Some(status),
                payload: Vec::new(),
            }
        });
        let _ = waiter.send(response);
    }
    closed.send_replace(true);
    // Dropping the senders tells every waiter that no answer will come.
    pending.borrow_mut().clear();
}
