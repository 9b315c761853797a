// SPDX-License-Identifier: Apache-2.0
//! Watches the memory.oom_control of a version 1 cgroup (contract O1).
//!
//! The kernel signals an eventfd when the cgroup *or one above it* is out of memory, before it
//! chooses whom to kill, and once more when the cgroup is removed. Whether one of the container's
//! processes was killed, only the counter `oom_kill` tells (since Linux 4.13), a little later:
//!
//! ```text
//!              signal                    counter has moved
//!  idle ──────────────────> expecting ──────────────────────> a kill to tell of ──> idle
//!   ^                       │     │
//!   └──── counter has not ──┘     └──── cgroup is removed ──> the end
//! ```
//!
//! Each cgroup has a counter for itself, those that the container makes below its own too, and one
//! that is removed takes its kills with it: so each is compared with what itself said before.
//! Of one that is removed before it was looked at only the kernel's log knows, which is asked when a
//! kill was expected and no counter has moved.

use super::kills::Kills as Log;
use super::read;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::unix::pipe::Receiver;

/// How long after a signal the counter is looked at again: the first wait is doubled up to the
/// last one, a second in all.
const FIRST_WAIT: Duration = Duration::from_millis(1);
const LAST_WAIT: Duration = Duration::from_millis(512);

#[derive(Debug)]
pub(super) struct Watch {
    dir: PathBuf,
    signal: Receiver,
    published: RefCell<Published>,
    /// How many kills were told of, those in cgroups that are gone too.
    told: Cell<u64>,
    /// While a kill is expected, how long to wait before the next look.
    expecting: Cell<Option<Duration>>,
}

/// The kills that were told of.
#[derive(Debug)]
enum Published {
    /// By another process image, in all.
    Sum(u64),
    Each(Kills),
}

/// The cgroups with kills: their inodes, and how many.
type Kills = Vec<(u64, u64)>;

fn sum(kills: &Kills) -> u64 {
    kills.iter().map(|(_, kills)| kills).sum()
}

/// What memory.oom_control says of the cgroup and of those below it.
struct Now {
    /// `None`: this kernel does not count.
    kills: Option<Kills>,
    /// Out of memory, and nobody will be killed: the processes wait for somebody to help.
    stuck: bool,
}

impl Watch {
    pub fn new(dir: &Path) -> io::Result<Self> {
        let signal = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let control = File::open(dir.join("memory.oom_control"))?;
        let request = format!("{} {}", signal.as_raw_fd(), control.as_raw_fd());
        // The kernel keeps the eventfd for as long as we do; it needs the file only now.
        File::options()
            .write(true)
            .open(dir.join("cgroup.event_control"))?
            .write_all(request.as_bytes())?;
        // tokio's name for anything that is read like a pipe.
        let signal = Receiver::from_owned_fd_unchecked(signal.into())?;
        Ok(Self {
            dir: dir.to_owned(),
            signal,
            published: RefCell::new(Published::Sum(0)),
            told: Cell::new(0),
            expecting: Cell::new(None),
        })
    }

    /// See [`super::OomWatch::next`].
    pub async fn next(&self, log: &Log) -> Option<()> {
        loop {
            if self.look()?.kills.is_some_and(|kills| self.is_news(kills)) {
                self.expecting.set(None);
                return Some(());
            }
            if let Some(wait) = self.expecting.get() {
                tokio::time::sleep(wait).await;
                self.expecting.set((wait < LAST_WAIT).then_some(wait * 2));
                if wait >= LAST_WAIT && self.is_news_of(log).await {
                    return Some(());
                }
                continue;
            }
            self.signalled().await?;
            let now = self.look()?;
            if now.stuck || now.kills.is_none() {
                return Some(());
            }
            self.expecting.set(Some(FIRST_WAIT));
        }
    }

    /// See [`super::OomWatch::flush`].
    pub fn flush(&self) -> bool {
        match self.look() {
            Some(Now {
                kills: Some(kills), ..
            }) => self.is_news(kills),
            Some(_) => nix::unistd::read(&self.signal, &mut [0; 8]).is_ok(),
            None => false,
        }
    }

    /// See [`super::OomWatch::told`].
    pub fn published(&self) -> u64 {
        match &*self.published.borrow() {
            Published::Sum(kills) => *kills,
            Published::Each(kills) => sum(kills),
        }
    }

    /// See [`super::OomWatch::set_published`].
    pub fn set_published(&self, published: u64) {
        self.told.set(published);
        self.published.replace(Published::Sum(published));
    }

    /// True if `kills` are more than were told of; from now on they were.
    fn is_news(&self, kills: Kills) -> bool {
        let news = match &*self.published.borrow() {
            Published::Sum(published) => sum(&kills).saturating_sub(*published),
            Published::Each(told) => kills
                .iter()
                .map(|(cgroup, kills)| {
                    let known = told.iter().find(|(known, _)| known == cgroup);
                    kills.saturating_sub(known.map_or(0, |(_, kills)| *kills))
                })
                .sum(),
        };
        self.published.replace(Published::Each(kills));
        self.told.set(self.told.get() + news);
        news > 0
    }

    /// The same for the kills that the kernel's log has.
    async fn is_news_of(&self, log: &Log) -> bool {
        let found = log.count().await.unwrap_or(0);
        let news = found > self.told.get();
        self.told.set(self.told.get().max(found));
        news
    }

    /// Waits for the kernel's signal, and takes it. `None`: none can come.
    async fn signalled(&self) -> Option<()> {
        loop {
            self.signal.readable().await.ok()?;
            match self.signal.try_read(&mut [0; 8]) {
                Ok(_) => return Some(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return None,
            }
        }
    }

    /// Reads the files; `None` if the cgroup is removed.
    fn look(&self) -> Option<Now> {
        let control = |dir: &Path| read::text(dir, "memory.oom_control").ok().flatten();
        let own = control(&self.dir)?;
        let stuck =
            number(&own, "oom_kill_disable ") == Some(1) && number(&own, "under_oom ") == Some(1);
        // The counter, unlike that of version 2, does not count what happens below.
        let kills = |dir: PathBuf| {
            let kills = number(&control(&dir)?, "oom_kill ").filter(|kills| *kills > 0)?;
            Some((fs::metadata(dir).ok()?.ino(), kills))
        };
        let kills = number(&own, "oom_kill ").map(|_| {
            read::tree(&self.dir)
                .into_iter()
                .filter_map(kills)
                .collect()
        });
        Some(Now { kills, stuck })
    }
}

/// The number in the line of `text` that starts with `name`.
fn number(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.parse().ok())
}
