// SPDX-License-Identifier: Apache-2.0
//! The files that the guest knows: of which mount each is, its number there, and how many there are.
//!
//! What the shim shows in the share, a root filesystem or a volume, is a superblock of its own in the
//! guest, which its agent holds (`guest/src/roots.rs` says why). What is mounted further in is no other
//! one: it would be whose process is the first to look, and end with him. Files of two mounts may have the same
//! number, and programs take such of one superblock for one file. So those that are further in differ from
//! others in the upper half.

use crate::fsd::Inode;
use crate::fsd::room::Room;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::ffi::CStr;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::time::{Duration, Instant};
use virtiofsd::filesystem::Entry;
use virtiofsd::fuse::{ATTR_SUBMOUNT, ROOT_ID};

/// The bits in which the files of mounts differ.
const UPPER: u64 = 0x3fff_ffff << 32;
/// How soon the guest is asked again to forget what it does not use, if that was of no help.
const AGAIN: Duration = Duration::from_secs(1);

/// What the numbers of a mount's files are changed by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mark(u64);

impl Mark {
    /// The guest's number of a file that has `number` on the host.
    pub fn of(self, number: u64) -> u64 {
        self.0 ^ number
    }
}

pub struct Tree {
    known: HashMap<Inode, Known>,
    /// For files that the guest knows, and for those that it has open.
    room: Room,
    room_to_open: Room,
    /// The topmost file of each mount further in.
    inner: BTreeSet<Inode>,
    /// The topmost file of each superblock that changes only through the guest.
    alone: BTreeSet<Inode>,
    /// The guest was asked to forget: when, and how many files it knew.
    asked: Option<(Instant, usize)>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Known {
    /// The topmost of its superblock.
    top: Inode,
    mark: Mark,
    /// On the host.
    number: u64,
    /// How often the guest was told of it, and has not forgotten that.
    times: u64,
}

/// A tree, for another file server that goes on with it.
#[derive(Serialize, Deserialize)]
pub struct Saved {
    known: Vec<(Inode, Known)>,
    inner: BTreeSet<Inode>,
    alone: BTreeSet<Inode>,
}

impl Tree {
    pub fn save(&self) -> Saved {
        let known = self.known.iter();
        Saved {
            known: known.map(|(id, known)| (*id, known.clone())).collect(),
            inner: self.inner.clone(),
            alone: self.alone.clone(),
        }
    }

    /// Goes on with what was saved, and with the files that are `open`.
    pub fn restore(&mut self, saved: Saved, open: impl IntoIterator<Item = Inode>) {
        self.clear();
        for (inode, known) in saved.known {
            self.room.take(known.top);
            self.known.insert(inode, known);
        }
        self.inner = saved.inner;
        self.alone = saved.alone;
        open.into_iter().for_each(|inode| self.opened(inode));
    }

    /// With room for so many files that the guest knows, and has open.
    pub fn new(known: usize, open: usize) -> Self {
        Self {
            known: HashMap::new(),
            room: Room::new(known),
            room_to_open: Room::new(open),
            inner: BTreeSet::new(),
            alone: BTreeSet::new(),
            asked: None,
        }
    }

    pub fn mark(&self, inode: Inode) -> Mark {
        let known = self.known.get(&inode);
        known.map_or_else(Mark::default, |known| known.mark)
    }

    /// The topmost of its superblock; the share's own is not among those that are known.
    fn top(&self, inode: Inode) -> Inode {
        self.known.get(&inode).map_or(ROOT_ID, |known| known.top)
    }

    /// Whether what is looked for in the directory `parent` may be a superblock of the share's.
    pub fn is_share(&self, parent: Inode) -> bool {
        self.top(parent) == ROOT_ID
    }

    /// The superblock of this topmost file changes only through the guest.
    pub fn leave_alone(&mut self, top: Inode) {
        self.alone.insert(top);
    }

    /// Whether this file changes only through the guest; none of a mount further in does.
    pub fn is_alone(&self, inode: Inode) -> bool {
        let is_alone =
            |known: &Known| known.mark == Mark::default() && self.alone.contains(&known.top);
        !self.alone.is_empty() && self.known.get(&inode).is_some_and(is_alone)
    }

    /// The guest is told of the file `name` in `parent`, as `entry`, which becomes the guest's.
    ///
    /// # Errors
    /// ENFILE if there is no room: it is not told, and nothing has changed.
    pub fn enter(&mut self, parent: Inode, name: &CStr, entry: &mut Entry) -> io::Result<()> {
        let number = entry.attr.ino;
        let is_mount = entry.attr.flags & ATTR_SUBMOUNT != 0;
        let is_in_share = self.top(parent) == ROOT_ID;
        if is_in_share {
            // The host makes these names, and removes them.
            entry.entry_timeout = Duration::ZERO;
        } else {
            entry.attr.flags &= !ATTR_SUBMOUNT;
        }
        if entry.inode == ROOT_ID {
            return Ok(());
        }
        if let Some(known) = self.known.get_mut(&entry.inode) {
            known.times += 1;
            entry.attr.ino = known.mark.of(number);
            return Ok(());
        }
        let is_dir = entry.attr.mode & libc::S_IFMT == libc::S_IFDIR;
        // A file in the share itself is a mount, too, but no superblock.
        let is_inner = if is_in_share { !is_dir } else { is_mount };
        let (top, mark) = match is_in_share && is_mount {
            true => (entry.inode, Mark::default()),
            false if is_inner => (self.top(parent), self.mark_of_mount(parent, name)),
            false => (self.top(parent), self.mark(parent)),
        };
        self.room.is_for(top)?;
        let known = Known {
            top,
            mark,
            number,
            times: 1,
        };
        self.known.insert(entry.inode, known);
        self.room.take(top);
        if is_inner {
            self.inner.insert(entry.inode);
        }
        entry.attr.ino = mark.of(number);
        Ok(())
    }

    /// It is made of where the mount is, so that it is the same whenever the guest is told of it.
    fn mark_of_mount(&self, parent: Inode, name: &CStr) -> Mark {
        let mut hasher = DefaultHasher::new();
        let known = self.known.get(&parent);
        known
            .map(|known| (known.mark, known.number))
            .hash(&mut hasher);
        name.hash(&mut hasher);
        // Not 0, which others have.
        Mark((hasher.finish() & UPPER).max(1 << 32))
    }

    /// Whether the guest may know one more in the directory `parent`.
    ///
    /// # Errors
    /// ENFILE
    pub fn has_room(&self, parent: Inode) -> io::Result<()> {
        self.room.is_for(self.top(parent))
    }

    /// Whether the guest may open one more file of this one's superblock.
    ///
    /// # Errors
    /// ENFILE
    pub fn has_room_to_open(&self, inode: Inode) -> io::Result<()> {
        self.room_to_open.is_for(self.top(inode))
    }

    pub fn opened(&mut self, inode: Inode) {
        self.room_to_open.take(self.top(inode));
    }

    pub fn closed(&mut self, inode: Inode) {
        self.room_to_open.give_back(self.top(inode));
    }

    /// Whether the guest is to be asked now to forget what it does not use.
    pub fn asks(&mut self, now: Instant, refused: bool) -> bool {
        if !refused && self.room.all < self.room.most / 2 {
            self.asked = None;
            return false;
        }
        let Room { most, all, .. } = self.room;
        let asks = match self.asked {
            Some((asked, _)) if refused => now.duration_since(asked) >= AGAIN,
            // It may look at many while it forgets.
            Some((_, known)) => all >= known + (most / 8).max(1),
            None => true,
        };
        if asks {
            self.asked = Some((now, all));
        }
        asks
    }

    /// The guest has forgotten that it was told of a file so many times.
    pub fn forget(&mut self, inode: Inode, count: u64) {
        let Some(known) = self.known.get_mut(&inode) else {
            return;
        };
        known.times = known.times.saturating_sub(count);
        if known.times > 0 {
            return;
        }
        let top = known.top;
        self.known.remove(&inode);
        self.inner.remove(&inode);
        self.alone.remove(&inode);
        self.room.give_back(top);
    }

    /// What must be written back for the superblock of `top`: it, and the mounts further in.
    pub fn mounts(&self, top: Inode) -> Vec<Inode> {
        let inner = self.inner.iter().copied();
        let inner = inner.filter(|&inode| self.top(inode) == top);
        std::iter::once(top).chain(inner).collect()
    }

    pub fn clear(&mut self) {
        *self = Self::new(self.room.most, self.room_to_open.most);
    }
}

#[cfg(test)]
mod tests;
