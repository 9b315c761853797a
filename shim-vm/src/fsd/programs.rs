// SPDX-License-Identifier: Apache-2.0
//! What the guest keeps of the host's programs from one execution to the next.
//!
//! When a file is opened, a guest forgets what it has read of it, unless the file server says that
//! it is as it was: so a change is seen, and each exec reads its whole program again. Of programs
//! we say so when their size and times are those of the last time they were opened. Of other files
//! we don't: those that somebody has mapped into memory change without a change of their times.

use crate::fsd::Inode;
use std::collections::HashMap;
use std::time::{Duration, SystemTime};
use virtiofsd::fuse::Attr;

/// A file that changed so lately may change again without its times telling: a filesystem's clock
/// ticks some hundred times a second, that of another machine may be behind, and FAT counts by two
/// seconds.
const SETTLED: Duration = Duration::from_secs(3);

/// Each program as it was when the guest opened it last.
#[derive(Default)]
pub struct Programs(HashMap<Inode, State>);

/// What changes with a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    size: u64,
    /// Since the epoch.
    modified: Duration,
    changed: Duration,
}

impl State {
    /// None if it isn't a program's, or may change unnoticed.
    fn of(file: &Attr, now: Duration) -> Option<Self> {
        let executable = file.mode & libc::S_IFMT == libc::S_IFREG && file.mode & 0o111 != 0;
        let state = Self {
            size: file.size,
            modified: Duration::new(file.mtime, file.mtimensec),
            changed: Duration::new(file.ctime, file.ctimensec),
        };
        let last = state.modified.max(state.changed);
        (executable && last.saturating_add(SETTLED) < now).then_some(state)
    }
}

impl Programs {
    /// Whether `inode`, which is opened now and is `file`, is as it was when it was opened before.
    pub fn is_as_it_was(&mut self, inode: Inode, file: Option<&Attr>) -> bool {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let state = file.and_then(|file| State::of(file, now));
        let before = match state {
            Some(state) => self.0.insert(inode, state),
            None => self.0.remove(&inode),
        };
        state.is_some() && before == state
    }

    pub fn forget(&mut self, inode: Inode) {
        self.0.remove(&inode);
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_000_000);

    /// A file of this mode, modified this many seconds before now.
    fn state(mode: u32, ago: u64) -> Option<State> {
        let file = Attr {
            mode,
            size: 7,
            mtime: NOW.as_secs() - ago,
            ctime: NOW.as_secs() - ago,
            ..Attr::default()
        };
        State::of(&file, NOW)
    }

    #[test]
    fn programs_that_have_settled_have_a_state() {
        assert!(state(libc::S_IFREG | 0o755, 60).is_some());
        assert_ne!(
            state(libc::S_IFREG | 0o755, 60),
            state(libc::S_IFREG | 0o755, 61)
        );
        for other in [
            state(libc::S_IFREG | 0o644, 60),
            state(libc::S_IFDIR | 0o755, 60),
            state(libc::S_IFREG | 0o755, 3),
        ] {
            assert_eq!(other, None);
        }
    }

    /// A guest may say of a file what it likes.
    #[test]
    fn times_before_the_epoch_and_to_come_are_times() {
        let file = |mtime| Attr {
            mode: libc::S_IFREG | 0o755,
            mtime,
            ..Attr::default()
        };
        for mtime in [-1_i64 as u64, NOW.as_secs() + 60] {
            assert_eq!(State::of(&file(mtime), NOW), None);
        }
    }
}
