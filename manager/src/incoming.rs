// SPDX-License-Identifier: Apache-2.0
//! Connections to our gRPC socket: so many at once, and so many calls on each.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// How many clients are connected at once; further ones wait until one has gone. Each costs an fd
/// and some 20 KiB.
const CONNECTIONS: usize = 512;
/// How many calls one connection may have open: a client of containerd's has one for each task that
/// it waits for.
pub const CALLS: u32 = 8192;

/// How long after a failure the next is accepted.
const PAUSE: Duration = Duration::from_secs(1);

/// One client; it counts for as long as it is there.
pub struct Connection {
    stream: UnixStream,
    _turn: OwnedSemaphorePermit,
}

/// Accepts clients, for ever.
pub fn accept(listener: UnixListener) -> impl Stream<Item = io::Result<Connection>> {
    let (accepted, connections) = mpsc::channel(1);
    let turns = Arc::new(Semaphore::new(CONNECTIONS));
    tokio::task::spawn_local(async move {
        // It is never closed.
        while let Ok(turn) = Arc::clone(&turns).acquire_owned().await {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                // Out of files, most likely: that passes.
                Err(e) => {
                    log::warn!("accept: {e}");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let connection = Connection {
                stream,
                _turn: turn,
            };
            if accepted.send(Ok(connection)).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(connections)
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
