//! The link to the guest: the pipe, and ttrpc over one of its streams. Whatever the guest does there
//! that is not the protocol ends the VM.

use crate::word::Doom;
use protos::mux::{Link, MAX_ANSWER};
use protos::ttrpc::Client;
use std::io;
use std::rc::Rc;
use tokio::net::UnixStream;

/// Speaks over the guest's serial port.
///
/// # Errors
/// If it is no socket that can be waited for.
pub fn connect(socket: std::os::unix::net::UnixStream, doom: &Doom) -> io::Result<Rc<Link>> {
    socket.set_nonblocking(true)?;
    let (reader, writer) = UnixStream::from_std(socket)?.into_split();
    let link = Link::host();
    let (running, doom) = (Rc::clone(&link), doom.clone());
    tokio::task::spawn_local(async move {
        let why = running.run(reader, writer).await;
        if why.kind() == io::ErrorKind::InvalidData {
            doom.broke_word(&why.to_string());
        }
        log::debug!("the link has ended: {why}");
    });
    Ok(link)
}

/// The guest's ttrpc, over a stream of its own.
pub fn client(link: &Rc<Link>, doom: &Doom) -> Client {
    let (reader, writer) = tokio::io::split(link.open());
    let client = Client::over(reader, writer, MAX_ANSWER);
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
