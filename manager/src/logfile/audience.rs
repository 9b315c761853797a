// SPDX-License-Identifier: Apache-2.0
//! Who hears what a container says while it says it: clients at a socket beside the log.
//!
//! ```text
//!  client: 'w' or 'd', and a byte that stays    logger: a byte, then of each read
//!                                               [1 stdout, 2 stderr] [length, two bytes] bytes
//! ```
//! For who waits ('w', as `run` does) the container waits, too, as for a pipe. Who is just there ('d',
//! as `attach`) and does not read is cut off: the byte that stays makes that an error for him
//! (unix(7): ECONNRESET), and not the end.

use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{MsgFlags, send, setsockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// How many may be there: each costs a copy of all that is said.
const MOST: usize = 16;
/// Seconds that a client may take to say who it is.
const PATIENCE: i64 = 1;
/// What one read of a stream has at most.
pub const PART: usize = 4096;

/// The socket beside a log.
pub fn socket(log: &Path) -> PathBuf {
    beside(log, ".attach")
}

/// The FIFO beside a log by which a container gets its input.
pub fn stdin(log: &Path) -> PathBuf {
    beside(log, ".stdin")
}

fn beside(log: &Path, what: &str) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(what);
    name.into()
}

/// A path for a socket that may be longer than such a path can be (unix(7)): by the directory's number.
fn short(socket: &Path) -> io::Result<(File, PathBuf)> {
    let dir = File::open(socket.parent().unwrap_or(Path::new("/")))?;
    let name = socket.file_name().unwrap_or_default();
    let path = Path::new("/proc/self/fd")
        .join(dir.as_raw_fd().to_string())
        .join(name);
    Ok((dir, path))
}

/// Joins the audience of a log: its frames follow.
///
/// # Errors
/// From the socket: `NotFound` and `ConnectionRefused` if nobody writes that log.
pub fn join(log: &Path, waits: bool) -> io::Result<UnixStream> {
    let (_dir, path) = short(&socket(log))?;
    let mut client = UnixStream::connect(path)?;
    client.write_all(if waits { b"w-" } else { b"d-" })?;
    client.read_exact(&mut [0])?;
    Ok(client)
}

/// Reads a frame: whether it is of stderr, and its bytes. None at the end.
///
/// # Errors
/// If one was cut off.
pub fn next<'a>(
    client: &mut UnixStream,
    part: &'a mut [u8; PART],
) -> io::Result<Option<(bool, &'a [u8])>> {
    let mut head = [0; 3];
    if client.read(&mut head[..1])? == 0 {
        return Ok(None);
    }
    client.read_exact(&mut head[1..])?;
    let length = usize::from(u16::from_be_bytes([head[1], head[2]])).min(PART);
    client.read_exact(&mut part[..length])?;
    Ok(Some((head[0] == 2, &part[..length])))
}

struct Client {
    socket: UnixStream,
    waits: bool,
}

/// The logger's side.
pub struct Audience {
    listener: UnixListener,
    clients: Vec<Client>,
}

impl Audience {
    /// # Errors
    /// From bind(2): then nobody hears it, but the log is written.
    pub fn open(log: &Path) -> io::Result<Self> {
        let socket = socket(log);
        // One of a logger before us.
        let _ = std::fs::remove_file(&socket);
        let (_dir, path) = short(&socket)?;
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            clients: Vec::new(),
        })
    }

    pub fn newcomer(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Lets in who has come.
    pub fn admit(&mut self) {
        while let Ok((mut socket, _)) = self.listener.accept() {
            let mut word = [0];
            let patience = TimeVal::seconds(PATIENCE);
            let asked = setsockopt(&socket, ReceiveTimeout, &patience).is_ok()
                && socket.read_exact(&mut word).is_ok();
            if asked && self.clients.len() < MOST && socket.write_all(b"+").is_ok() {
                let waits = &word == b"w";
                self.clients.push(Client { socket, waits });
            }
        }
    }

    /// Tells them what was said; who can't hear it goes.
    pub fn tell(&mut self, is_stderr: bool, said: &[u8]) {
        if self.clients.is_empty() {
            return;
        }
        let length = u16::try_from(said.len()).unwrap_or(u16::MAX).to_be_bytes();
        let head = [1 + u8::from(is_stderr), length[0], length[1]];
        let frame = [&head[..], said].concat();
        self.clients.retain(|client| client.tell(&frame));
    }

    /// All was told: that is the end, and no error.
    pub fn dismiss(self) {
        for mut client in self.clients {
            let _ = client.socket.read(&mut [0]);
        }
    }
}

impl Client {
    fn tell(&self, frame: &[u8]) -> bool {
        let mut flags = MsgFlags::MSG_NOSIGNAL;
        flags.set(MsgFlags::MSG_DONTWAIT, !self.waits);
        let mut rest = frame;
        while !rest.is_empty() {
            match send(self.socket.as_raw_fd(), rest, flags) {
                Ok(n) => rest = &rest[n..],
                Err(nix::errno::Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audience_hears_all_or_is_told() {
        let dir = tempfile::tempdir().unwrap();
        // As long as an id may be, in a directory whose path no socket's could have.
        let dir = dir.path().join("d".repeat(200));
        std::fs::create_dir(&dir).unwrap();
        let log = dir.join("x".repeat(76)).with_extension("json");
        let mut audience = Audience::open(&log).unwrap();
        let at = log.clone();
        let joining =
            std::thread::spawn(move || [join(&at, true).unwrap(), join(&at, false).unwrap()]);
        while audience.clients.len() < 2 {
            audience.admit();
        }
        let [mut waits, mut idles] = joining.join().unwrap();
        audience.tell(false, b"one");
        let reading = std::thread::spawn(move || {
            let (mut part, mut heard) = ([0; PART], 0);
            while let Some((is_stderr, said)) = next(&mut waits, &mut part).unwrap() {
                assert_eq!(is_stderr, heard > 0);
                heard += said.len();
            }
            heard
        });
        for _ in 0..1000 {
            audience.tell(true, &[b'x'; PART]);
        }
        assert_eq!(audience.clients.len(), 1);
        audience.dismiss();
        assert_eq!(reading.join().unwrap(), 3 + 1000 * PART);
        let mut part = [0; PART];
        assert_eq!(
            next(&mut idles, &mut part).unwrap(),
            Some((false, &b"one"[..]))
        );
        let end = loop {
            match next(&mut idles, &mut part) {
                Ok(Some(_)) => {}
                end => break end.map(|_| ()),
            }
        };
        assert!(end.is_err(), "{end:?}");
        drop(std::fs::remove_file(socket(&log)));
        assert!(join(&log, true).is_err());
    }
}
