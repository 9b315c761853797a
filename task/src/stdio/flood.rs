// SPDX-License-Identifier: Apache-2.0
//! Moving much from one pipe to another: spliced, so that the bytes never enter our memory.

use super::ends::note_full;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SpliceFFlags, fcntl, splice};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;

/// Who writes as much at once is worth to be spliced; what is spliced goes by pages.
pub const PAGE: usize = 4 << 10;
/// The most that one splice moves, and that is moved before others have their turn.
const SPLICE: usize = 1 << 20;
/// What pipes hold while a flood goes through them: with the usual 64 KiB whoever writes, we and
/// whoever reads wake each other for every such bit of it.
const WIDE: i32 = 256 << 10;
/// A flood that pauses for so long is over.
const CALM: Duration = Duration::from_secs(1);

/// How a flood ended.
pub enum Flood {
    Eof,
    Trickle,
}

/// Splices until the source ends, gives only little at a time, or nothing for a while; `taken`
/// counts the bytes, and `full_since` is when the other pipe became full, while it is.
pub async fn splice_flood(
    from: &AsyncFd<OwnedFd>,
    to: &AsyncFd<OwnedFd>,
    taken: &Cell<u64>,
    full_since: &Cell<Option<Instant>>,
) -> io::Result<Flood> {
    let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
    let mut moved = 0;
    let mut wide = None;
    loop {
        let spliced = splice(from.get_ref(), None, to.get_ref(), None, SPLICE, flags);
        taken.set(taken.get() + spliced.unwrap_or(0) as u64);
        match spliced {
            Ok(0) => return Ok(Flood::Eof),
            Ok(n) if n < PAGE => return Ok(Flood::Trickle),
            Ok(n) => {
                moved += n;
                full_since.set(None);
                if moved >= SPLICE {
                    moved = 0;
                    wide.get_or_insert_with(|| [from, to].map(|pipe| Wide::make(pipe.get_ref())));
                    // A firehose must not keep everybody else from running.
                    tokio::task::yield_now().await;
                }
            }
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let mut there = from.readable().await?;
                if is_ready(from, PollFlags::POLLIN)? {
                    let mut room = to.writable().await?;
                    if !is_ready(to, PollFlags::POLLOUT)? {
                        room.clear_ready();
                        note_full(full_since);
                        to.writable().await?.retain_ready();
                    }
                } else {
                    there.clear_ready();
                    match tokio::time::timeout(CALM, from.readable()).await {
                        Ok(ready) => ready?.retain_ready(),
                        Err(_) => return Ok(Flood::Trickle),
                    }
                }
            }
            Err(e) => return Err(e.into()),
        }
    }
}

/// A pipe that has more room than usual, until this is dropped.
struct Wide<'a> {
    pipe: &'a OwnedFd,
    usual: Option<i32>,
}

impl<'a> Wide<'a> {
    /// Without the right to more (`pipe-user-pages-soft` of pipe(7)) it stays as it is.
    fn make(pipe: &'a OwnedFd) -> Self {
        let usual = fcntl(pipe, FcntlArg::F_GETPIPE_SZ);
        let usual = usual.ok().filter(|&size| size < WIDE);
        let usual = usual.filter(|_| fcntl(pipe, FcntlArg::F_SETPIPE_SZ(WIDE)).is_ok());
        Self { pipe, usual }
    }
}

impl Drop for Wide<'_> {
    fn drop(&mut self) {
        if let Some(usual) = self.usual {
            // One that holds more than that stays wide, and nobody minds.
            let _ = fcntl(self.pipe, FcntlArg::F_SETPIPE_SZ(usual));
        }
    }
}

/// splice(2) does not say which side made it stop, and either may be ready again by now; poll(2)
/// tells of each.
fn is_ready(fd: &AsyncFd<OwnedFd>, events: PollFlags) -> io::Result<bool> {
    let mut fds = [PollFd::new(fd.get_ref().as_fd(), events)];
    Ok(poll(&mut fds, PollTimeout::ZERO)? > 0)
}

#[cfg(test)]
mod tests {
    use super::super::copy::Copies;
    use super::super::ends::{Sink, Source};
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};

    /// A flood widens the pipe it goes through; when it has become a trickle, that is undone.
    #[test]
    fn a_pipe_is_wide_while_a_flood_lasts() {
        const FLOOD: usize = 16 << 20;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(Default::default())
            .unwrap();
        let (in_read, in_write) = io::pipe().unwrap();
        let (out_read, out_write) = io::pipe().unwrap();
        let (arrived, all_arrived) = std::sync::mpsc::channel();
        let writer = std::thread::spawn(move || {
            let mut file = File::from(OwnedFd::from(in_write));
            file.write_all(&vec![1; FLOOD]).unwrap();
            all_arrived.recv().unwrap();
            file.write_all(b"x").unwrap();
        });
        let size = |pipe: &File| fcntl(pipe, FcntlArg::F_GETPIPE_SZ).unwrap();
        let reader = std::thread::spawn(move || {
            let mut file = File::from(OwnedFd::from(out_read));
            let (usual, mut widest, mut seen) = (size(&file), 0, 0);
            let mut buffer = vec![0; 1 << 16];
            while seen < FLOOD {
                seen += file.read(&mut buffer).unwrap();
                widest = widest.max(size(&file));
            }
            arrived.send(()).unwrap();
            file.read_to_end(&mut buffer).unwrap();
            (usual, widest, size(&file))
        });
        runtime.block_on(async {
            let copies = Copies::default();
            let sink = Sink::pipe(out_write.into(), None).unwrap();
            copies.start(Source::pipe(in_read.into()).unwrap(), sink);
            copies.finished().await;
        });
        writer.join().unwrap();
        let (usual, widest, last) = reader.join().unwrap();
        assert!(usual < WIDE && widest == WIDE, "{usual}, {widest}");
        assert_eq!(last, usual);
    }
}
