// SPDX-License-Identifier: Apache-2.0
//! Tests of a multiplexed pipe in an event loop.

use super::*;
use tokio::net::UnixStream;

fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(Default::default());
    runtime.unwrap().block_on(test);
}

/// Two links over a socket; they run until the first is closed.
fn pair() -> (Rc<Link>, Rc<Link>) {
    let (a, b) = UnixStream::pair().unwrap();
    let links = (Link::host(), Link::guest());
    for (link, socket) in [(&links.0, a), (&links.1, b)] {
        let link = Rc::clone(link);
        tokio::task::spawn_local(async move {
            let (reader, writer) = socket.into_split();
            tokio::select! {
                _ = link.run(reader, writer) => {}
                () = link.closed() => {}
            }
        });
    }
    links
}

#[test]
fn twenty_megabytes_go_there_and_back() {
    block_on(async {
        let (host, guest) = pair();
        let echo = tokio::task::spawn_local(async move {
            let mut stream = guest.accept().await.unwrap();
            let mut buffer = vec![0; 9000];
            loop {
                let n = stream.read(&mut buffer).await.unwrap();
                if n == 0 {
                    return stream.shutdown().await.unwrap();
                }
                stream.write_all(&buffer[..n]).await.unwrap();
            }
        });
        let data: Vec<u8> = (0..5_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let stream = host.open();
        let (mut reader, mut writer) = tokio::io::split(stream);
        let send = async {
            writer.write_all(&data).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        let mut back = Vec::new();
        let (_, n) = tokio::join!(send, reader.read_to_end(&mut back));
        n.unwrap();
        assert!(back == data);
        echo.await.unwrap();
    });
}

/// The host's end goes on in another link again and again, whatever is on its way.
#[test]
fn nothing_is_lost_where_another_link_takes_over() {
    const PIECE: usize = 300_000;
    block_on(async {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        for socket in [&ours, &theirs] {
            socket.set_nonblocking(true).unwrap();
        }
        let guest = Link::guest();
        let theirs = UnixStream::from_std(theirs).unwrap();
        let (running, accepting) = (Rc::clone(&guest), Rc::clone(&guest));
        tokio::task::spawn_local(async move {
            let (reader, writer) = tokio::io::split(theirs);
            running.run(reader, writer).await
        });
        tokio::task::spawn_local(async move {
            let stream = accepting.accept().await.unwrap();
            let (mut reader, mut writer) = tokio::io::split(stream);
            tokio::io::copy(&mut reader, &mut writer).await.unwrap();
            writer.shutdown().await.unwrap();
        });
        let data: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let (mut sent, mut back, mut buffer) = (0, Vec::new(), [0; 5000]);
        let first = Link::host();
        let opened = first.open();
        let (number, mut moved) = (opened.number(), first.hand_over());
        while back.len() < data.len() {
            let link = Link::take_over(moved);
            let stream = link.again(number).unwrap();
            let ours = UnixStream::from_std(ours.try_clone().unwrap()).unwrap();
            let (reader, writer) = tokio::io::split(ours);
            let until = data.len().min(back.len() + PIECE);
            let moving = async {
                while back.len() < until {
                    tokio::select! {
                        () = stream.writable(), if sent < data.len() => {
                            let rest = &data[sent..data.len().min(sent + 7000)];
                            sent += stream.try_write(rest).unwrap_or(0);
                        }
                        () = stream.readable() => {
                            let n = stream.try_read(&mut buffer).unwrap();
                            back.extend_from_slice(&buffer[..n]);
                        }
                    }
                }
            };
            tokio::select! {
                why = link.run(reader, writer) => panic!("{why}"),
                () = moving => {}
            }
            moved = link.hand_over();
        }
        assert!(back == data);
    });
}

#[test]
fn who_waits_hears_of_the_pipes_end() {
    block_on(async {
        let (host, guest) = pair();
        let mut stream = host.open();
        let mut other = guest.accept().await.unwrap();
        other.write_all(b"last").await.unwrap();
        let mut buffer = [0; 4];
        stream.read_exact(&mut buffer).await.unwrap();
        let waits = tokio::task::spawn_local(async move { stream.read(&mut [0; 8]).await });
        guest.close();
        let error = waits.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        host.closed().await;
        assert!(host.accept().await.is_none());
    });
}
