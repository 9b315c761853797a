//! The log FIFO of a bundle: made before the shim starts, and copied to our own log.

use crate::bundles::Bundle;
use crate::failure::{Failure, io};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use std::io::Write;
use tokio::net::unix::pipe::{OpenOptions, Receiver};
use tokio::task::AbortHandle;

/// Makes the FIFO, or opens the one that is there; it stays open until the handle is aborted.
///
/// # Errors
/// From the file system.
pub fn open(bundle: &Bundle) -> Result<AbortHandle, Failure> {
    let path = bundle.log();
    let failed = || io(format!("log of {}/{}", bundle.namespace, bundle.id));
    match mkfifo(&path, Mode::S_IRWXU) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
        Err(e) => return Err(failed()(e.into())),
    }
    // Both ends: a shim must never find it without a reader, nor we the end of it.
    let mut options = OpenOptions::new();
    let receiver = options
        .read_write(true)
        .open_receiver(&path)
        .map_err(failed())?;
    Ok(tokio::task::spawn_local(drain(receiver)).abort_handle())
}

async fn drain(receiver: Receiver) {
    while receiver.readable().await.is_ok() {
        copy(&receiver);
    }
}

/// Apart, so that the buffer is on the stack only while there is something to copy.
fn copy(receiver: &Receiver) {
    /// So many reads at a time: a shim that never stops must not stop us.
    const TURN: usize = 16;
    let mut buffer = [0; 4096];
    for _ in 0..TURN {
        match receiver.try_read(&mut buffer) {
            Ok(n @ 1..) => {
                let text = String::from_utf8_lossy(&buffer[..n]);
                let _ = std::io::stderr().write_all(task::printable(&text).as_bytes());
            }
            _ => return,
        }
    }
}
