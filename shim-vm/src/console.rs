// SPDX-License-Identifier: Apache-2.0
//! What the guest's console and the machine's process say: the end of it is kept, and the first lines of
//! a failure; and it may go to the log, as far as a log bears it.

use crate::fsd::FULL;
use crate::word::Allowance;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use task::handover::Kept;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, watch};

/// How many lines are kept, and how long they may be, in bytes.
const LINES: usize = 20;
const LENGTH: usize = 400;
/// How many are kept of those with which a kernel begins to tell that it fails: what comes after them, such
/// as registers and whoever called whom, is longer than what is kept of the end.
const FAILURE: usize = 12;
/// What is in the first of those.
const FAILS: [&str; 7] = [
    "BUG: ",
    "kernel BUG at",
    "Kernel panic",
    "Oops: ",
    "general protection fault",
    "VFS: Busy inodes",
    "agent: panicked at",
];
/// How many lines go to the log at once, and a second after that: enough for a boot that tells all.
const LOGGED: (u32, u32) = (500, 20);

/// The last lines, and the first of a failure; clones share them.
#[derive(Clone, Default)]
pub struct Console {
    lines: Rc<RefCell<Lines>>,
    sources: Rc<RefCell<Vec<Weak<Source>>>>,
    /// How many are still read.
    open: Rc<watch::Sender<usize>>,
    /// The file server has said [`FULL`].
    full: Rc<Notify>,
    said: Rc<Notify>,
}

#[derive(Default)]
struct Lines {
    last: VecDeque<String>,
    /// From the first that tells of a failure on, but for those.
    failure: Vec<String>,
    /// How many there have been.
    count: u64,
}

impl Lines {
    fn add(&mut self, line: String) {
        self.count += 1;
        self.last.push_back(line);
        if self.last.len() <= LINES {
            return;
        }
        let Some(line) = self.last.pop_front() else {
            return;
        };
        let begins = |line: &str| FAILS.iter().any(|fails| line.contains(fails));
        let goes_on = (1..FAILURE).contains(&self.failure.len());
        if goes_on || self.failure.is_empty() && begins(&line) {
            self.failure.push(line);
        }
    }

    /// Those after number `after`, or all that are kept; the number of the last.
    fn since(&self, after: u64) -> (Vec<String>, u64) {
        let owned = |lines: Vec<&str>| lines.into_iter().map(str::to_owned).collect();
        let new = usize::try_from(self.count.saturating_sub(after)).unwrap_or(usize::MAX);
        let lines = match (after, self.last.len().checked_sub(new)) {
            (1.., Some(known)) => self.last.iter().skip(known).cloned().collect(),
            _ => owned(self.kept()),
        };
        (lines, self.count)
    }

    /// Those that are kept, in their order.
    fn kept(&self) -> Vec<&str> {
        let gap = (self.failure.len() == FAILURE).then_some("…");
        let failure = self.failure.iter().map(String::as_str);
        let last = self.last.iter().map(String::as_str);
        failure.chain(gap).chain(last).collect()
    }
}

/// A pipe or a socket that is read.
struct Source {
    fd: AsyncFd<OwnedFd>,
    to_log: bool,
}

/// A console, for another process image: its lines, and the fds of its sources.
#[derive(Debug, Serialize, Deserialize)]
pub struct Moved {
    lines: VecDeque<String>,
    #[serde(default)]
    failure: Vec<String>,
    #[serde(default)]
    count: u64,
    sources: Vec<(i32, bool)>,
}

impl Console {
    /// Reads a pipe or a socket to its end. `to_log`: every line goes to the log too.
    ///
    /// # Errors
    /// If it can't be waited for.
    pub fn read(&self, from: impl Into<OwnedFd>, to_log: bool) -> io::Result<()> {
        let fd = from.into();
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let fd = task::sys::watch(fd, Interest::READABLE)?;
        let source = Rc::new(Source { fd, to_log });
        self.sources.borrow_mut().push(Rc::downgrade(&source));
        self.open.send_modify(|open| *open += 1);
        let console = self.clone();
        tokio::task::spawn_local(async move {
            let mut line = Vec::new();
            let mut log = to_log.then(Log::new);
            let mut buffer = [0; 512];
            while let Ok(n @ 1..) = source.read(&mut buffer).await {
                for &byte in &buffer[..n] {
                    if byte == b'\n' || line.len() >= LENGTH {
                        console.line(&line, log.as_mut());
                        line.clear();
                    }
                    if byte != b'\n' {
                        line.push(byte);
                    }
                }
            }
            console.line(&line, log.as_mut());
            console.open.send_modify(|open| *open -= 1);
        });
        Ok(())
    }

    /// Describes it for another process image, but for a line that has begun.
    ///
    /// # Errors
    /// If no fd is free.
    pub fn hand_over(&self, kept: &mut Kept) -> io::Result<Moved> {
        let sources = self.sources.borrow();
        let sources = sources.iter().filter_map(Weak::upgrade);
        let sources = sources.map(|source| Ok((kept.keep(source.fd.get_ref())?, source.to_log)));
        Ok(Moved {
            lines: self.lines.borrow().last.clone(),
            failure: self.lines.borrow().failure.clone(),
            count: self.lines.borrow().count,
            sources: sources.collect::<io::Result<_>>()?,
        })
    }

    /// Goes on with that of another process image.
    ///
    /// # Errors
    /// If an fd is not what it is said to be.
    pub fn take_over(moved: Moved) -> io::Result<Self> {
        let console = Self::default();
        console.lines.replace(Lines {
            last: moved.lines,
            failure: moved.failure,
            count: moved.count,
        });
        for (fd, to_log) in moved.sources {
            console.read(task::sys::adopt(fd)?, to_log)?;
        }
        Ok(console)
    }

    /// Waits until all that was said is here: who said it has ended.
    pub async fn read_to_end(&self) {
        let mut open = self.open.subscribe();
        // Who sends is there for as long as this is.
        let _ = open.wait_for(|open| *open == 0).await;
    }

    /// Waits until the file server has said that the guest knows many files, since the last time.
    pub async fn full(&self) {
        self.full.notified().await;
    }

    fn line(&self, line: &[u8], log: Option<&mut Log>) {
        let line = String::from_utf8_lossy(line);
        let line = line.trim();
        if line.is_empty() {
            return;
        }
        if line == FULL {
            self.full.notify_one();
            return;
        }
        // What a terminal would obey is no more than text.
        let line: String = line
            .chars()
            .map(|c| if c.is_control() { '?' } else { c })
            .collect();
        if let Some(log) = log {
            log.line(&line);
        }
        self.lines.borrow_mut().add(line);
        self.said.notify_waiters();
    }

    /// The lines after number `after`, and the number of the last.
    pub fn since(&self, after: u64) -> (Vec<String>, u64) {
        self.lines.borrow().since(after)
    }

    /// Waits until there is a line after number `after`.
    pub async fn said_after(&self, after: u64) {
        loop {
            let said = self.said.notified();
            if self.lines.borrow().count > after {
                return;
            }
            said.await;
        }
    }

    /// What is kept, on one line.
    pub fn last(&self) -> String {
        self.lines.borrow().kept().join(" | ")
    }
}

impl Source {
    async fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.fd.readable().await?;
            match nix::unistd::read(self.fd.get_ref(), into) {
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                read => return Ok(read?),
            }
        }
    }
}

/// The way of a console into the log.
struct Log {
    allowance: Allowance,
    left_out: u64,
}

impl Log {
    fn new() -> Self {
        let (most, a_second) = LOGGED;
        Self {
            allowance: Allowance::new(most, a_second),
            left_out: 0,
        }
    }

    fn line(&mut self, line: &str) {
        if !self.allowance.take() {
            self.left_out += 1;
            return;
        }
        if self.left_out > 0 {
            log::warn!("guest: {} lines are left out", self.left_out);
            self.left_out = 0;
        }
        log::info!("guest: {line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(said: &[String]) -> Vec<String> {
        let mut lines = Lines::default();
        for line in said {
            lines.add(line.clone());
        }
        lines.kept().into_iter().map(str::to_owned).collect()
    }

    fn lines(many: usize) -> Vec<String> {
        (0..many).map(|n| format!("line {n}")).collect()
    }

    #[test]
    fn the_last_lines_are_kept_and_the_first_of_a_failure() {
        assert_eq!(kept(&lines(LINES)), lines(LINES));
        assert_eq!(kept(&lines(LINES + 5)), lines(LINES + 5)[5..]);
        for (before, after) in [(3, 2), (3, LINES - 1), (3, LINES + 4), (0, 99)] {
            let mut said = lines(before);
            said.push("Kernel panic - not syncing".into());
            said.extend(lines(after));
            let kept = kept(&said);
            let panic = kept.iter().filter(|line| line.contains("panic")).count();
            assert_eq!(panic, 1, "{before} {after}: {kept:?}");
            let end = &kept[kept.len() - LINES.min(said.len())..];
            assert_eq!(end, &said[said.len().saturating_sub(LINES)..]);
            assert!(kept.len() <= FAILURE + 1 + LINES);
        }
        let many: Vec<String> = (0..999).map(|n| format!("BUG: {n}")).collect();
        let kept = kept(&many);
        assert_eq!((kept.len(), &*kept[0]), (FAILURE + 1 + LINES, "BUG: 0"));
    }
}
