// SPDX-License-Identifier: Apache-2.0
//! The link to the guest: the pipe, and ttrpc over one of its streams. Whatever the guest does there
//! that is not the protocol ends the VM.

use crate::word::Doom;
use protos::mux::{Link, MAX_ANSWER, Stream};
use protos::ttrpc::Client;
use std::io;
use std::os::unix::net::UnixStream;
use std::rc::Rc;

/// Speaks over the guest's serial port, for `link`.
///
/// # Errors
/// If it is no socket that can be waited for.
pub fn run(link: &Rc<Link>, socket: &UnixStream, doom: &Doom) -> io::Result<()> {
    let socket = socket.try_clone()?;
    socket.set_nonblocking(true)?;
    let socket = tokio::net::UnixStream::from_std(socket)?;
    // Two halves of a socket's own would shut it down when they go, and another process image may have
    // it then.
    let (reader, writer) = tokio::io::split(socket);
    let (running, doom) = (Rc::clone(link), doom.clone());
    tokio::task::spawn_local(async move {
        let why = running.run(reader, writer).await;
        if why.kind() == io::ErrorKind::InvalidData {
            doom.broke_word(&why.to_string());
        }
        log::debug!("the link has ended: {why}");
    });
    Ok(())
}

/// The guest's ttrpc, over a stream of its own, over which so many calls were made.
pub fn client(link: &Rc<Link>, stream: Stream, made: u32, doom: &Doom) -> Client {
    let (reader, writer) = tokio::io::split(stream);
    let client = Client::take_over(reader, writer, MAX_ANSWER, made);
    let (watched, link, doom) = (client.clone(), Rc::clone(link), doom.clone());
    tokio::task::spawn_local(async move {
        let why = watched.why_closed().await;
        // With the link everything ends.
        if !link.is_closed() {
            doom.broke_word(&format!("its ttrpc: {why}"));
        }
    });
    client
}
