// SPDX-License-Identifier: Apache-2.0
//! Waiting until clients have read what a process wrote before it ended.
//!
//! ctr stops to read as soon as it hears of an exit, whatever its FIFOs still hold; it is worth some
//! milliseconds that the exit comes after the output.

use super::fifo::Watch;
use crate::sys;
use nix::sys::inotify::AddWatchFlags;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{sleep, timeout};

/// Who reads nothing for so long is not waited for: nobody has to read.
const STILL: Duration = Duration::from_millis(100);
/// Nor is anybody for longer than this: what the process has started may write for ever.
const LIMIT: Duration = Duration::from_secs(1);

/// So many wait at once, the others for their turn: a user has only so many inotify instances
/// (`max_user_instances` of inotify(7)), 128 unless told.
static TURNS: Semaphore = Semaphore::const_new(8);

/// Waits while `is_unread`, as long as somebody reads from `fifos`, or takes what `moved` tells of.
pub async fn read_out(fifos: &[Rc<OwnedFd>], moved: &Notify, is_unread: impl Fn() -> bool) {
    let all_read = async {
        if fifos.is_empty() {
            let goes_on = async || timeout(STILL, moved.notified()).await.is_ok();
            while is_unread() && goes_on().await {}
            return;
        }
        let _turn = TURNS.acquire().await;
        // poll(2) knows when a FIFO is not full, but not when it is empty.
        match Watch::of(fifos.iter().map(Rc::as_ref), AddWatchFlags::IN_ACCESS) {
            Ok(reads) => {
                while is_unread() && matches!(timeout(STILL, reads.next()).await, Ok(Ok(()))) {}
            }
            Err(e) => log::warn!("nobody waits until output is read: {e}"),
        }
    };
    tokio::select! {
        () = all_read => {}
        () = sleep(LIMIT) => {}
    }
}

/// How many bytes a pipe or FIFO holds, as far as can be known.
pub fn bytes(pipe: &OwnedFd) -> usize {
    sys::bytes_to_read(pipe).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::copy::Copies;
    use super::super::ends::{Sink, Source};
    use super::*;
    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::Mode;
    use nix::unistd::{mkfifo, read, write};
    use std::cell::Cell;
    use std::io;
    use std::path::Path;
    use std::task::Poll;
    use tokio::time::{Instant, pause};

    /// A copy of what is written into a pipe to a FIFO, and the client's end of that.
    struct Stream {
        written: OwnedFd,
        client: OwnedFd,
        copies: Copies,
    }

    impl Stream {
        fn new(dir: &Path) -> Self {
            let path = dir.join("out");
            mkfifo(&path, Mode::S_IRWXU).unwrap();
            let end = |mode| open(&path, mode | OFlag::O_NONBLOCK, Mode::empty()).unwrap();
            let (client, own) = (end(OFlag::O_RDONLY), end(OFlag::O_RDONLY));
            let sink = Sink::pipe(end(OFlag::O_WRONLY), Some(own)).unwrap();
            let (source, written) = io::pipe().unwrap();
            let copies = Copies::default();
            copies.start(Source::pipe(source.into()).unwrap(), sink);
            Self {
                written: written.into(),
                client,
                copies,
            }
        }
    }

    /// Runs `test` with a clock that goes on only when nothing else does.
    fn run(test: impl AsyncFnOnce(Stream)) {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(Default::default())
            .unwrap();
        runtime.block_on(async {
            pause();
            test(Stream::new(dir.path())).await;
        });
    }

    /// I9: bytes on their way and bytes in the FIFO, also when the copy is done; each read is news.
    #[test]
    fn output_is_unread_until_the_client_has_read_the_last_byte() {
        run(async |stream| {
            let Stream {
                written,
                client,
                copies,
            } = stream;
            assert!(!copies.is_unread());
            write(&written, b"last words").unwrap();
            assert!(copies.is_unread(), "on the way");
            drop(written);
            copies.finished().await;
            assert!(copies.is_unread(), "in the FIFO");

            let before = Instant::now();
            let (mut reads, done) = (0, Cell::new(false));
            let mut reading = std::pin::pin!(async {
                copies.read_out().await;
                done.set(true);
            });
            // The wait first, then a read.
            std::future::poll_fn(|context| {
                if reading.as_mut().poll(context).is_ready() {
                    return Poll::Ready(());
                }
                if reads < 2 {
                    read(&client, &mut [0; 5]).unwrap();
                    reads += 1;
                }
                Poll::Pending
            })
            .await;
            assert!(done.get() && reads == 2 && !copies.is_unread());
            assert_eq!(before.elapsed(), Duration::ZERO);
        });
    }

    #[test]
    fn nobody_has_to_read() {
        run(async |stream| {
            write(&stream.written, b"unheard").unwrap();
            let before = Instant::now();
            stream.copies.read_out().await;
            assert!(stream.copies.is_unread());
            assert!(before.elapsed() >= STILL && before.elapsed() < LIMIT);
        });
    }

    /// A writer that outlives the process, and a client that reads it all.
    #[test]
    fn what_never_ends_is_not_waited_for() {
        run(async |stream| {
            let before = Instant::now();
            let mut reading = std::pin::pin!(stream.copies.read_out());
            write(&stream.written, b"first").unwrap();
            loop {
                tokio::select! {
                    biased;
                    () = &mut reading => break,
                    () = sleep(STILL / 2) => {
                        write(&stream.written, b"more").unwrap();
                        read(&stream.client, &mut [0; 4]).unwrap();
                    }
                }
            }
            assert!(before.elapsed() >= LIMIT && before.elapsed() < LIMIT + STILL);
        });
    }
}
