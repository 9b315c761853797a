// SPDX-License-Identifier: Apache-2.0
//! Tests of relays.

use super::*;
use std::os::unix::net::UnixStream as Socket;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(Default::default());
    runtime.unwrap().block_on(test);
}

fn sockets() -> (Socket, Socket) {
    let (one, other) = Socket::pair().unwrap();
    for socket in [&one, &other] {
        socket.set_nonblocking(true).unwrap();
    }
    (one, other)
}

fn run(link: &Rc<Link>, socket: &Socket) -> tokio::task::JoinHandle<io::Error> {
    let (link, socket) = (Rc::clone(link), socket.try_clone().unwrap());
    let socket = UnixStream::from_std(socket).unwrap();
    tokio::task::spawn_local(async move {
        let (reader, writer) = tokio::io::split(socket);
        link.carry(reader, writer).await
    })
}

/// A client, a relay, a link, a relay, and a server that says everything again, to its end.
struct Echo {
    pipe: Socket,
    host: Rc<Link>,
    relays: Relays,
    client: UnixStream,
    runs: tokio::task::JoinHandle<io::Error>,
    server: tokio::task::JoinHandle<()>,
}

impl Echo {
    async fn new(at_once: bool) -> Self {
        let (pipe, other) = sockets();
        let (host, guest) = (Link::host(), Link::guest());
        let runs = run(&host, &pipe);
        run(&guest, &other);
        let relays = Relays::new(1);
        let (ours, client) = sockets();
        let slot = relays.slot().unwrap();
        relays.start(slot, ours.into(), host.open()).unwrap();
        let stream = guest.accept().await.unwrap();
        let (ours, server) = sockets();
        tokio::task::spawn_local(async move {
            Relay::new(ours.into(), stream).unwrap().run().await;
        });
        let server = tokio::task::spawn_local(async move {
            let mut server = UnixStream::from_std(server).unwrap();
            if at_once {
                let (mut reader, mut writer) = server.split();
                tokio::io::copy(&mut reader, &mut writer).await.unwrap();
            } else {
                let mut all = Vec::new();
                server.read_to_end(&mut all).await.unwrap();
                server.write_all(&all).await.unwrap();
            }
        });
        Self {
            client: UnixStream::from_std(client).unwrap(),
            pipe,
            host,
            relays,
            runs,
            server,
        }
    }
}

fn data() -> Vec<u8> {
    (0..500_000_u32).flat_map(u32::to_le_bytes).collect()
}

/// The server answers once it has heard the end: the other way goes on. Then there is room for another.
#[test]
fn each_way_ends_by_itself() {
    block_on(async {
        let mut echo = Echo::new(false).await;
        assert!(echo.relays.slot().is_none(), "there is room for one");
        echo.client.write_all(&data()).await.unwrap();
        echo.client.shutdown().await.unwrap();
        let mut back = Vec::new();
        echo.client.read_to_end(&mut back).await.unwrap();
        assert!(back == data());
        echo.server.await.unwrap();
        while echo.relays.count() != (0, 1) {
            tokio::task::yield_now().await;
        }
    });
}

/// A client that goes away resets the server, and a server that goes away the client.
#[test]
fn what_is_no_end_is_a_reset() {
    block_on(async {
        let mut echo = Echo::new(true).await;
        echo.client.write_all(b"word").await.unwrap();
        let mut word = [0; 4];
        echo.client.read_exact(&mut word).await.unwrap();
        echo.server.abort();
        let mut rest = Vec::new();
        // What is not read makes of a close a reset.
        let _ = echo.client.read_to_end(&mut rest).await;
        drop(echo.client);
        while echo.relays.count() != (0, 1) {
            tokio::task::yield_now().await;
        }
    });
}

/// So it is when the client has said that it is at its end, and the server has not: who is left hears of it.
#[test]
fn a_relay_that_goes_ends_the_other_whatever_was_said_before() {
    block_on(async {
        let mut echo = Echo::new(false).await;
        echo.client.shutdown().await.unwrap();
        drop(echo.relays);
        let mut rest = Vec::new();
        let _ = echo.client.read_to_end(&mut rest).await;
        // The server reads its end, and nobody hears what it says.
        echo.server.await.unwrap();
    });
}

/// Another process image goes on with it again and again, wherever its bytes are.
#[test]
fn nothing_is_lost_where_another_image_goes_on() {
    block_on(async {
        let mut echo = Echo::new(true).await;
        let data = data();
        let (mut sent, mut back, mut buffer) = (0, Vec::new(), [0; 5000]);
        while back.len() < data.len() {
            let until = data.len().min(back.len() + 90_000);
            while back.len() < until {
                tokio::select! {
                    ready = echo.client.writable(), if sent < data.len() => {
                        ready.unwrap();
                        let rest = &data[sent..data.len().min(sent + 7000)];
                        sent += echo.client.try_write(rest).unwrap_or(0);
                    }
                    ready = echo.client.readable() => {
                        ready.unwrap();
                        let n = echo.client.try_read(&mut buffer).unwrap_or(0);
                        back.extend_from_slice(&buffer[..n]);
                    }
                }
            }
            echo.runs.abort();
            let mut kept = Kept::default();
            let relays = echo.relays.hand_over(&mut kept).unwrap();
            let link = echo.host.hand_over();
            kept.forget();
            echo.relays = Relays::new(1);
            // The tasks of the old one end.
            tokio::task::yield_now().await;
            echo.host = Link::take_over(link);
            echo.relays.take_over(relays, &echo.host).unwrap();
            echo.runs = run(&echo.host, &echo.pipe);
        }
        assert!(back == data);
    });
}
