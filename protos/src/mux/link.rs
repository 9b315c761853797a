//! A multiplexed pipe in an event loop: it moves the bytes, and wakes who waits for them.

use super::frame::Violation;
use super::stream::Stream;
use super::streams::{Moved, Streams};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
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
    /// What they had to say, and is not in the pipe yet.
    sending: RefCell<VecDeque<u8>>,
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

    /// Describes the host's end for another process image, which goes on with the same pipe.
    pub fn hand_over(&self) -> Moved {
        let mut moved = self.streams.borrow().hand_over();
        let mut out: Vec<u8> = self.sending.borrow().iter().copied().collect();
        out.append(&mut moved.out);
        moved.out = out;
        moved
    }

    /// Goes on with the host's end of another process image.
    pub fn take_over(moved: Moved) -> Rc<Self> {
        Self::of(Streams::take_over(moved))
    }

    fn of(streams: Streams) -> Rc<Self> {
        Rc::new(Self {
            streams: RefCell::new(streams),
            sending: RefCell::default(),
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

    /// Whenever it waits, what is not in the pipe yet is in `sending` and nowhere else.
    async fn send(&self, mut writer: impl AsyncWrite + Unpin) -> io::Error {
        loop {
            if self.sending.borrow().is_empty() {
                let bytes = self.streams.borrow_mut().outgoing();
                if bytes.is_empty() {
                    self.sent.notify_one();
                    self.outgoing.notified().await;
                    continue;
                }
                self.sending.replace(bytes.into());
                // Now there is room for more.
                for waiting in self.waiting.borrow_mut().values_mut() {
                    if let Some(writer) = waiting.writer.take() {
                        writer.wake();
                    }
                }
            }
            let written = poll_fn(|context| {
                let sending = self.sending.borrow();
                Pin::new(&mut writer).poll_write(context, sending.as_slices().0)
            });
            match written.await {
                Ok(0) => return io::ErrorKind::WriteZero.into(),
                Ok(n) => drop(self.sending.borrow_mut().drain(..n)),
                Err(e) => return e,
            }
            if self.sending.borrow().is_empty() {
                // Most of the time there is nothing to send.
                self.sending.take();
                if let Err(e) = writer.flush().await {
                    return e;
                }
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

    /// The stream `number` of another process image; `None` if there is no such stream. To be asked for
    /// once.
    pub fn again(self: &Rc<Self>, number: u32) -> Option<Stream> {
        let has = self.streams.borrow().has(number);
        has.then(|| self.stream(number))
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
}
