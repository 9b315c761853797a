// SPDX-License-Identifier: Apache-2.0
//! What a fuzzer, and a test with random inputs, do to frames and to the server.

use super::connection::start_connection;
use super::server::{Services, Shared};
use super::{Answer, Frame, Kind, Request, Service, read_frame, wire, write_frame};
use prost::Message;
use std::future::Future;
use std::io::Cursor;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Whatever is read is at most what came, and is written back as it was.
pub fn frame(input: &[u8]) {
    let mut reader = Cursor::new(input);
    let Some(Ok(Some(frame))) = now(read_frame(&mut reader)) else {
        return;
    };
    let Frame {
        stream,
        kind,
        payload,
    } = frame;
    let mut written = Vec::new();
    let done = now(write_frame(&mut written, stream, kind, &payload));
    assert!(matches!(done, Some(Ok(()))));
    // Flags are read past and written as zero.
    let end = reader.position() as usize;
    assert_eq!(
        (&written[..9], &written[10..]),
        (&input[..9], &input[10..end])
    );
}

/// The result of a future that has nothing to wait for.
fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => Some(result),
        Poll::Pending => None,
    }
}

struct Echo;

impl Service for Echo {
    fn call(self: Rc<Self>, request: Request) -> Pin<Box<dyn Future<Output = Answer>>> {
        Box::pin(async move {
            // However far a caller's deadline, and ours.
            let context = request.context.at_most(Duration::from_nanos(u64::MAX));
            let _ = (
                context.remaining(),
                context.at_most(Duration::MAX).remaining(),
            );
            Ok(request.payload)
        })
    }
}

/// A connection on which `input` arrives: every answer is a frame of its own that decodes, on a
/// stream that asked, and the connection ends when its peer is done.
pub async fn server(input: &[u8]) {
    let services: Services = [("echo", Rc::new(Echo) as Rc<dyn Service>)].into();
    let Ok((mut client, server)) = UnixStream::pair() else {
        return;
    };
    start_connection(server, None, &Rc::new(services), &Rc::<Shared>::default());
    // The server hangs up on what it can't read.
    let _ = client.write_all(input).await;
    let _ = client.shutdown().await;
    let mut answers = Vec::new();
    let _ = client.read_to_end(&mut answers).await;
    let mut answers = Cursor::new(answers);
    while let Some(Ok(Some(frame))) = now(read_frame(&mut answers)) {
        assert_eq!(frame.kind, Kind::Response);
        let decoded = wire::Response::decode(frame.payload.as_slice());
        assert!(decoded.is_ok(), "{decoded:?}");
    }
    assert_eq!(answers.position() as usize, answers.get_ref().len());
}
