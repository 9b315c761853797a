//! A multiplexed pipe in an event loop: it moves the bytes, and wakes who waits for them.

use super::frame::Violation;
use super::stream::Stream;
use super::streams::Streams;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::task::Waker;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

/// What one read takes from the pipe.
const BUFFER: usize = 32 << 10;

/// Who waits for a stream.
#[derive(Default)]
pub(super) struct Waiting {
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
}

/// One end of a multiplexed pipe.
pub struct Link {
    pub(super) streams: RefCell<Streams>,
    pub(super) waiting: RefCell<HashMap<u32, Waiting>>,
    /// There is something to send.
    pub(super) outgoing: Notify,
    /// There was nothing left to send.
    sent: Notify,
    accepted: Notify,
    pub(super) closed: Cell<bool>,
    closing: Notify,
}

impl Link {
    /// The end that opens the streams.
    pub fn host() -> Rc<Self> {
        Self::of(Streams::host())
    }

    /// The end that accepts them.
    pub fn guest() -> Rc<Self> {
        Self::of(Streams::guest())
    }

    fn of(streams: Streams) -> Rc<Self> {
        Rc::new(Self {
            streams: RefCell::new(streams),
            waiting: RefCell::default(),
            outgoing: Notify::new(),
            sent: Notify::new(),
            accepted: Notify::new(),
            closed: Cell::new(false),
            closing: Notify::new(),
        })
    }

    /// Moves bytes until the pipe ends; from then on every stream is gone.
    ///
    /// # Errors
    /// Why it ended: `UnexpectedEof` if the peer closed it, `InvalidData` if it broke the protocol.
    pub async fn run(
        &self,
        reader: impl AsyncRead + Unpin,
        writer: impl AsyncWrite + Unpin,
    ) -> io::Error {
        let why = tokio::select! {
            why = self.receive(reader) => why,
            why = self.send(writer) => why,
        };
        self.close();
        why
    }

    async fn receive(&self, mut reader: impl AsyncRead + Unpin) -> io::Error {
        let mut buffer = vec![0; BUFFER];
        loop {
            let n = match reader.read(&mut buffer).await {
                Ok(0) => return io::ErrorKind::UnexpectedEof.into(),
                Ok(n) => n,
                Err(e) => return e,
            };
            if let Err(Violation(why)) = self.take(&buffer[..n]) {
                return io::Error::new(io::ErrorKind::InvalidData, why);
            }
            if n == buffer.len() {
                // A peer that floods us must not keep everybody else from running.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Takes what came, and wakes whoever waits for it.
    fn take(&self, bytes: &[u8]) -> Result<(), Violation> {
        let received = self.streams.borrow_mut().receive(bytes);
        let touched = self.streams.borrow_mut().touched();
        let mut waiting = self.waiting.borrow_mut();
        for stream in touched {
            if let Some(waiting) = waiting.remove(&stream) {
                waiting.wake();
            }
        }
        self.accepted.notify_one();
        received
    }

    async fn send(&self, mut writer: impl AsyncWrite + Unpin) -> io::Error {
        loop {
            let bytes = self.streams.borrow_mut().outgoing();
            if bytes.is_empty() {
                self.sent.notify_one();
                self.outgoing.notified().await;
                continue;
            }
            // Now there is room for more.
            for waiting in self.waiting.borrow_mut().values_mut() {
                if let Some(writer) = waiting.writer.take() {
                    writer.wake();
                }
            }
            let written = async {
                writer.write_all(&bytes).await?;
                writer.flush().await
            };
            if let Err(e) = written.await {
                return e;
            }
        }
    }

    /// Waits until all that was written before [`Link::run`] is in the pipe; to be asked for once.
    pub async fn sent(&self) {
        self.sent.notified().await;
    }

    /// Every stream is gone; what has come may still be read.
    pub fn close(&self) {
        self.closed.set(true);
        for (_, waiting) in self.waiting.borrow_mut().drain() {
            waiting.wake();
        }
        self.closing.notify_waiters();
        self.accepted.notify_one();
    }

    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Waits until the pipe has ended.
    pub async fn closed(&self) {
        let closing = self.closing.notified();
        if !self.closed.get() {
            closing.await;
        }
    }

    /// Opens a stream.
    pub fn open(self: &Rc<Self>) -> Stream {
        let number = self.streams.borrow_mut().open();
        self.outgoing.notify_one();
        self.stream(number)
    }

    /// The stream that is there from the start; to be asked for once.
    pub fn first(self: &Rc<Self>) -> Stream {
        self.stream(0)
    }

    /// Waits for the peer to open a stream; `None` once the pipe has ended.
    pub async fn accept(self: &Rc<Self>) -> Option<Stream> {
        loop {
            if let Some(stream) = self.try_accept() {
                return Some(stream);
            }
            if self.closed.get() {
                return None;
            }
            self.accepted.notified().await;
        }
    }

    /// A stream that the peer has opened, if one waits to be accepted.
    pub fn try_accept(self: &Rc<Self>) -> Option<Stream> {
        let number = self.streams.borrow_mut().accept()?;
        Some(self.stream(number))
    }

    fn stream(self: &Rc<Self>, number: u32) -> Stream {
        Stream {
            link: Rc::clone(self),
            number,
        }
    }
}

impl Waiting {
    fn wake(self) {
        self.reader
            .into_iter()
            .chain(self.writer)
            .for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
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
}
