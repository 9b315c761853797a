// SPDX-License-Identifier: Apache-2.0
//! Connections to a shim that say what no client would say.

use crate::shim::Shim;
use crate::wait;
use protos::ttrpc::{Kind, read_frame, wire, write_frame};
use protos::{Code, Message, Status};
use std::path::Path;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

/// One connection, frame by frame.
pub struct Raw {
    stream: UnixStream,
}

impl Raw {
    pub async fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).await;
        Self {
            stream: stream.unwrap_or_else(|e| panic!("{}: {e}", socket.display())),
        }
    }

    pub async fn to(shim: &Shim) -> Self {
        Self::connect(&shim.socket()).await
    }

    /// Bytes as they are; the shim may hang up while they are sent.
    pub async fn bytes(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// A request on `stream`, with the deadline it tells the shim.
    pub async fn request(
        &mut self,
        stream: u32,
        (service, method): (&str, &str),
        message: &impl Message,
        timeout: Option<Duration>,
    ) {
        let request = wire::Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload: message.encode_to_vec(),
            timeout_nano: timeout.map_or(0, |t| t.as_nanos() as i64),
            metadata: Vec::new(),
        };
        let payload = request.encode_to_vec();
        let sent = write_frame(&mut self.stream, stream, Kind::Request, &payload).await;
        sent.expect("request");
    }

    /// The next answer: its stream, and its payload or status. `None` when the shim hung up.
    pub async fn answer(&mut self) -> Option<(u32, Result<Vec<u8>, Status>)> {
        let frame = wait::soon("answer on a raw connection", read_frame(&mut self.stream)).await;
        let frame = frame.ok().flatten()?;
        let response = wire::Response::decode(frame.payload.as_slice()).expect("response");
        let result = match response.status {
            Some(s) if s.code != 0 => Err(Status::new(Code::from(s.code), s.message)),
            _ => Ok(response.payload),
        };
        Some((frame.stream, result))
    }

    /// The status of the next answer, which must be a refusal on `stream`.
    pub async fn refusal(&mut self, stream: u32) -> Status {
        match self.answer().await {
            Some((at, Err(status))) if at == stream => status,
            other => panic!("not a refusal on stream {stream}: {other:?}"),
        }
    }
}
