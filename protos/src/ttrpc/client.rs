// SPDX-License-Identifier: Apache-2.0
//! The client: many calls at once over one connection.

use super::api::Call;
use super::frame::{Kind, MAX_PAYLOAD, ReadError, begin_frame, end_frame, write_frame};
use super::pending::{Forget, Partial, Pending};
use super::trace::CALLER;
use super::wire;
use crate::status::{Code, Status};
use prost::Message;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
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
    writer: Mutex<Box<dyn AsyncWrite + Unpin>>,
    pending: Rc<Pending>,
    /// Why no answer comes any more.
    closed: watch::Receiver<Option<String>>,
    reader: JoinHandle<()>,
}

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
        Self::with_limit(stream, MAX_PAYLOAD)
    }

    /// [`Client::new`], with a server whose answers have at most `most` bytes: it closes at more.
    pub fn with_limit(stream: UnixStream, most: usize) -> Self {
        let (reader, writer) = stream.into_split();
        Self::over(reader, writer, most)
    }

    /// Speaks over any two ways of bytes, with a server whose answers have at most `most` bytes.
    pub fn over(
        reader: impl AsyncRead + Unpin + 'static,
        writer: impl AsyncWrite + Unpin + 'static,
        most: usize,
    ) -> Self {
        Self::take_over(reader, writer, most, 0)
    }

    /// [`Client::over`], with what another process image has made so many calls over.
    pub fn take_over(
        mut reader: impl AsyncRead + Unpin + 'static,
        writer: impl AsyncWrite + Unpin + 'static,
        most: usize,
        made: u32,
    ) -> Self {
        let pending = Rc::<Pending>::default();
        pending.made.set(made);
        let (closing, closed) = watch::channel(None);
        let known = Rc::clone(&pending);
        let reader = tokio::task::spawn_local(async move {
            let why = read_responses(&mut reader, &known, most).await;
            closing.send_replace(Some(why));
            // Dropping the senders tells every waiter that no answer will come.
            known.waiting.borrow_mut().clear();
        });
        let shared = Shared {
            writer: Mutex::new(Box::new(writer)),
            pending,
            closed,
            reader,
        };
        Self {
            shared: Rc::new(shared),
        }
    }

    /// How many calls were made, for another process image, once the client is idle.
    pub fn made(&self) -> u32 {
        self.shared.pending.made.get()
    }

    /// True if nobody waits for an answer, and no frame is half sent or half read.
    pub fn is_idle(&self) -> bool {
        self.shared.pending.is_idle()
    }

    /// Waits until it is idle.
    pub async fn idle(&self) {
        let pending = &self.shared.pending;
        while !pending.is_idle() {
            pending.changed.notified().await;
        }
    }

    /// Waits until the server's end is gone, or has said what no server may.
    pub async fn closed(&self) {
        self.why_closed().await;
    }

    /// [`Client::closed`], and tells why.
    pub async fn why_closed(&self) -> String {
        let mut closed = self.shared.closed.clone();
        let why = closed.wait_for(Option::is_some).await;
        why.ok().and_then(|why| why.clone()).unwrap_or_default()
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

    /// [`Client::call_raw`] with messages on both sides; the request says which method it is for.
    ///
    /// # Errors
    /// As `call_raw`; an answer that does not decode is `Internal`.
    pub async fn call<C: Call>(
        &self,
        request: &C,
        timeout: Option<Duration>,
    ) -> Result<C::Answer, CallError> {
        self.call_as(C::SERVICE, request, timeout).await
    }

    /// [`Client::call`], of a server that knows the service by another name: the Task API has two.
    ///
    /// # Errors
    /// As `call`.
    pub async fn call_as<C: Call>(
        &self,
        service: &str,
        request: &C,
        timeout: Option<Duration>,
    ) -> Result<C::Answer, CallError> {
        let payload = request.encode_to_vec();
        let answer = self
            .call_raw(service, C::METHOD, payload, &[], timeout)
            .await?;
        C::Answer::decode(answer.as_slice()).map_err(|e| {
            let text = format!("answer of {}: {e}", C::METHOD);
            Status::new(Code::Internal, text).into()
        })
    }

    async fn exchange(
        &self,
        service: &str,
        method: &str,
        payload: Vec<u8>,
        metadata: &[(&str, &str)],
        timeout: Option<Duration>,
    ) -> Result<wire::Response, CallError> {
        let caller = CALLER.try_with(Clone::clone).ok().flatten();
        let traced = caller.map(|trace| trace.pairs()).unwrap_or_default();
        let traced = traced.iter().map(|(key, value)| (*key, value.as_str()));
        let request = wire::Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload,
            timeout_nano: timeout.map_or(0, |t| i64::try_from(t.as_nanos()).unwrap_or(i64::MAX)),
            metadata: metadata
                .iter()
                .copied()
                .chain(traced)
                .map(|(key, value)| wire::KeyValue {
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
    let _partial = Partial::new(&shared.pending);
    // Under the lock, so that stream numbers go out in order: a server refuses a smaller one.
    let mut writer = shared.writer.lock().await;
    if shared.closed.borrow().is_some() {
        return None;
    }
    let made = shared.pending.made.get();
    shared.pending.made.set(made + 1);
    let stream = 2 * made + 1;
    shared.pending.waiting.borrow_mut().insert(stream, answer);
    let sent = write_frame(
        &mut *writer,
        stream,
        Kind::Request,
        &request.encode_to_vec(),
    )
    .await;
    if sent.is_err() {
        shared.pending.waiting.borrow_mut().remove(&stream);
        return None;
    }
    Some(stream)
}

/// Hands out answers until no more will come, and says why.
async fn read_responses(
    reader: &mut (impl AsyncRead + Unpin),
    pending: &Pending,
    most: usize,
) -> String {
    loop {
        let begun = match begin_frame(reader).await {
            Ok(Some(begun)) => begun,
            Ok(None) => return "the connection has ended".into(),
            Err(e) => return e.to_string(),
        };
        let _partial = Partial::new(pending);
        let frame = match end_frame(reader, begun, most).await {
            Ok(frame) => frame,
            Err(ReadError::Io(e)) => return e.to_string(),
            Err(ReadError::TooLong { length, .. }) => {
                return format!("an answer of {length} bytes");
            }
        };
        if frame.kind != Kind::Response {
            return format!("{:?} in place of an answer", frame.kind);
        }
        let waiter = match pending.take(frame.stream) {
            Ok(waiter) => waiter,
            Err(why) => return why,
        };
        match wire::Response::decode(frame.payload.as_slice()) {
            Ok(response) => drop(waiter.map(|waiter| waiter.send(response))),
            Err(e) => return format!("an answer that is none: {e}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    /// What a client says of a server that sends `frames` of (stream, kind, length, payload) while
    /// it waits for an answer on stream 1.
    fn said_of(frames: &[(u32, u8, u32, &[u8])]) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(Default::default());
        runtime.unwrap().block_on(async {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let client = Client::with_limit(ours, 1000);
            let asking = client.clone();
            let call = tokio::task::spawn_local(async move {
                asking.call_raw("s", "m", Vec::new(), &[], None).await
            });
            // It has been asked.
            theirs.readable().await.unwrap();
            for (stream, kind, length, payload) in frames {
                let header = [
                    &length.to_be_bytes()[..],
                    &stream.to_be_bytes(),
                    &[*kind, 0],
                ];
                theirs.write_all(&header.concat()).await.unwrap();
                theirs.write_all(payload).await.unwrap();
            }
            let why = client.why_closed().await;
            assert!(matches!(call.await.unwrap(), Err(CallError::Closed)));
            let again = client.call_raw("s", "m", Vec::new(), &[], None).await;
            assert!(matches!(again, Err(CallError::Closed)));
            why
        })
    }

    /// A server that breaks the protocol is left at once, and whoever waits hears so; of an answer
    /// that is too long not a byte is read.
    #[test]
    fn a_server_that_breaks_the_protocol_is_left() {
        let why = said_of(&[(1, 2, 1001, b"")]);
        assert_eq!(why, "an answer of 1001 bytes");
        assert_eq!(
            said_of(&[(1, 2, u32::MAX, b"")]),
            "an answer of 4294967295 bytes"
        );
        for stream in [0, 2, 3, 0xffff_ffff] {
            let why = said_of(&[(stream, 2, 0, b"")]);
            assert_eq!(why, format!("an answer on stream {stream}, to no call"));
        }
        assert_eq!(said_of(&[(1, 1, 0, b"")]), "Request in place of an answer");
        let why = said_of(&[(1, 2, 1, b"\xff")]);
        assert!(why.starts_with("an answer that is none: "), "{why}");
    }
}
