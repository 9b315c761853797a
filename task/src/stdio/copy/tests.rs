// SPDX-License-Identifier: Apache-2.0
//! Bytes through copies: between pipes, over handovers, over a link.

use super::*;
use protos::mux::Link;
use std::fs::File;
use std::io::{Read, Write};

fn pipe() -> (OwnedFd, OwnedFd) {
    let (read, write) = io::pipe().unwrap();
    (read.into(), write.into())
}

/// The same over a link: what a process in a VM writes, and what its client does. Both ends of
/// each stream end with the bytes.
#[test]
fn every_byte_arrives_in_order_over_a_link() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(Default::default())
        .unwrap();
    let (process, process_write) = pipe();
    let (client_read, client) = pipe();
    let data: Vec<u8> = (0..2_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let expected = data.clone();
    let writer = std::thread::spawn(move || File::from(process_write).write_all(&data).unwrap());
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        File::from(client_read).read_to_end(&mut all).unwrap();
        all
    });
    runtime.block_on(async {
        let (a, b) = tokio::net::UnixStream::pair().unwrap();
        let (host, guest) = (Link::host(), Link::guest());
        for (link, socket) in [(&host, a), (&guest, b)] {
            let (link, (read, write)) = (Rc::clone(link), socket.into_split());
            tokio::task::spawn_local(async move { link.run(read, write).await });
        }
        let (out, into) = (Copies::default(), Copies::default());
        let opened = Rc::new(host.open());
        let accepted = Rc::new(guest.accept().await.unwrap());
        let sink = Sink::pipe(client, None).unwrap();
        out.start(Source::Stream(opened), sink);
        into.start(Source::pipe(process).unwrap(), Sink::stream(accepted));
        out.finished().await;
        into.finished().await;
    });
    writer.join().unwrap();
    assert!(reader.join().unwrap() == expected);
}

/// I9: nothing is lost or reordered, also when copies are handed over half way.
#[test]
fn every_byte_arrives_in_order_also_across_handovers() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(Default::default())
        .unwrap();
    let (in_read, in_write) = pipe();
    let (out_read, out_write) = pipe();
    let data: Vec<u8> = (0..5_000_000u32)
        .flat_map(|i| (i % 251).to_le_bytes())
        .collect();
    let expected = data.clone();
    let writer = std::thread::spawn(move || File::from(in_write).write_all(&data).unwrap());
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        File::from(out_read).read_to_end(&mut all).unwrap();
        all
    });
    runtime.block_on(async {
        let mut copies = Copies::default();
        copies.start(
            Source::pipe(in_read).unwrap(),
            Sink::pipe(out_write, None).unwrap(),
        );
        for _ in 0..50 {
            tokio::task::yield_now().await;
            let mut kept = Kept::default();
            let described = copies.hand_over(&mut kept).unwrap();
            // The next image adopts the numbers; here they change hands within one image.
            kept.forget();
            drop(copies);
            copies = Copies::default();
            copies.take_over(described, None, None).unwrap();
        }
        copies.finished().await;
    });
    writer.join().unwrap();
    assert!(reader.join().unwrap() == expected);
}
