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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
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
    /// The guest was asked to forget.
    asked: Option<Instant>,
}

struct Known {
    /// The topmost of its superblock.
    top: Inode,
    mark: Mark,
    /// On the host.
    number: u64,
    /// How often the guest was told of it, and has not forgotten that.
    times: u64,
}

impl Tree {
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
        let asks = match self.asked {
            Some(asked) => refused && now.duration_since(asked) >= AGAIN,
            None => true,
        };
        if asks {
            self.asked = Some(now);
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
mod tests {
    use super::*;
    use virtiofsd::fuse::Attr;

    const DIR: u32 = libc::S_IFDIR | 0o755;
    const FILE: u32 = libc::S_IFREG | 0o644;

    fn entry(inode: Inode, number: u64, mode: u32, flags: u32) -> Entry {
        Entry {
            inode,
            generation: 0,
            attr: Attr {
                ino: number,
                mode,
                flags,
                ..Attr::default()
            },
            attr_timeout: Duration::from_secs(1),
            entry_timeout: Duration::from_secs(1),
        }
    }

    /// What the guest sees of it: its number, or the errno.
    fn enter(tree: &mut Tree, parent: Inode, name: &CStr, mut entry: Entry) -> Result<u64, i32> {
        let entered = tree.enter(parent, name, &mut entry);
        let in_share = entry.entry_timeout.is_zero();
        assert!(
            in_share || entry.attr.flags == 0,
            "the guest hears of no mount further in"
        );
        entered.map_err(|e| e.raw_os_error().unwrap_or_default())?;
        Ok(entry.attr.ino)
    }

    /// Two containers' roots, each a mount in a directory of the share.
    fn two_roots(most: usize) -> Tree {
        let mut tree = Tree::new(most, 4);
        for (n, name) in [(0, c"a"), (1, c"b")] {
            let dir = 10 + n;
            enter(&mut tree, ROOT_ID, name, entry(dir, 5 + n, DIR, 0)).unwrap();
            let root = entry(dir + 10, 2, DIR, ATTR_SUBMOUNT);
            assert_eq!(enter(&mut tree, dir, c"rootfs", root), Ok(2));
        }
        tree
    }

    #[test]
    fn files_of_two_mounts_in_one_superblock_never_have_the_same_number() {
        let mut tree = two_roots(100);
        for (n, name) in [(0, c"x"), (1, c"y")] {
            let mount = entry(30 + n, 2, DIR, ATTR_SUBMOUNT);
            enter(&mut tree, 20, name, mount).unwrap();
        }
        let mut file =
            |parent, inode| enter(&mut tree, parent, c"f", entry(inode, 77, FILE, 0)).unwrap();
        let numbers = [file(20, 40), file(30, 41), file(31, 42), file(10, 43)];
        assert_eq!(numbers[0], 77, "the host's");
        let different: BTreeSet<u64> = numbers.into();
        assert_eq!(different.len(), 4, "{numbers:?}");
        assert!(numbers.iter().all(|number| number & 0xffff_ffff == 77));
        assert_eq!(file(21, 44), 77, "another superblock's");
        assert_eq!(tree.mounts(20), [20, 30, 31]);
        assert_eq!(tree.mounts(ROOT_ID), [ROOT_ID, 43]);
        // Whenever the guest hears of it again.
        for inode in [30, 41] {
            tree.forget(inode, 1);
        }
        enter(&mut tree, 20, c"x", entry(50, 2, DIR, ATTR_SUBMOUNT)).unwrap();
        let again = enter(&mut tree, 50, c"f", entry(51, 77, FILE, 0));
        assert_eq!(again, Ok(numbers[1]));
    }

    #[test]
    fn names_of_the_hosts_are_asked_for_each_time() {
        let mut tree = two_roots(100);
        let mut named = |parent, inode| {
            let mut entry = entry(inode, 9, FILE, 0);
            tree.enter(parent, c"n", &mut entry).unwrap();
            entry.entry_timeout.is_zero()
        };
        assert!(named(ROOT_ID, 50) && named(10, 51));
        assert!(!named(20, 52));
    }

    /// What is mounted further in may be somebody else's, and so may another superblock.
    #[test]
    fn what_changes_through_the_guest_alone_is_one_mount() {
        let mut tree = two_roots(100);
        tree.leave_alone(20);
        let mount = entry(30, 2, DIR, ATTR_SUBMOUNT);
        enter(&mut tree, 20, c"x", mount).unwrap();
        for (parent, inode) in [(20, 40), (30, 41), (21, 42)] {
            enter(&mut tree, parent, c"f", entry(inode, 77, FILE, 0)).unwrap();
        }
        let alone = [20, 40, 30, 41, 21, 42, 10, ROOT_ID].map(|inode| tree.is_alone(inode));
        assert_eq!(
            alone,
            [true, true, false, false, false, false, false, false]
        );
        assert!(tree.is_share(10) && tree.is_share(ROOT_ID) && !tree.is_share(20));
        tree.forget(20, 1);
        assert!(!tree.is_alone(40), "nobody knows any more");
    }

    #[test]
    fn who_fills_one_superblock_leaves_room_in_the_others() {
        let mut tree = two_roots(16);
        let file = |inode| entry(inode, inode, FILE, 0);
        let mut known = 1;
        while enter(&mut tree, 20, c"f", file(100 + known)).is_ok() {
            known += 1;
        }
        assert_eq!(known, 12);
        assert_eq!(enter(&mut tree, 20, c"f", file(200)), Err(libc::ENFILE));
        assert!(tree.has_room(20).is_err() && tree.has_room(21).is_ok());
        assert!(enter(&mut tree, 21, c"f", file(201)).is_ok());
        assert!(
            enter(&mut tree, 21, c"f", file(202)).is_err(),
            "all is full"
        );
        // What is known is told again all the same.
        assert!(enter(&mut tree, 20, c"f", file(101)).is_ok());
        tree.forget(101, 1);
        assert!(tree.has_room(21).is_err());
        tree.forget(101, 1);
        assert!(tree.has_room(21).is_ok());
    }

    #[test]
    fn who_opens_many_leaves_others_some() {
        let mut tree = two_roots(16);
        for _ in 0..3 {
            tree.has_room_to_open(20).unwrap();
            tree.opened(20);
        }
        assert!(tree.has_room_to_open(20).is_err());
        tree.has_room_to_open(21).unwrap();
        tree.opened(21);
        assert!(tree.has_room_to_open(21).is_err(), "all is full");
        tree.closed(20);
        assert!(tree.has_room_to_open(20).is_ok());
        tree.closed(99);
    }

    #[test]
    fn the_guest_is_asked_once_each_time_that_half_is_full() {
        let mut tree = two_roots(8);
        let now = Instant::now();
        assert!(tree.asks(now, false) && !tree.asks(now, false));
        assert!(!tree.asks(now, true), "too soon");
        assert!(tree.asks(now + AGAIN, true), "it was of no help");
        tree.forget(21, 1);
        assert!(!tree.asks(now, false));
        enter(&mut tree, 20, c"f", entry(21, 9, FILE, 0)).unwrap();
        assert!(tree.asks(now, false));
    }
}
