// SPDX-License-Identifier: Apache-2.0
//! The guest's numbers of files, and how many it may know.

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
fn the_guest_is_asked_once_each_time_that_half_is_full_and_an_eighth_more() {
    let mut tree = two_roots(8);
    let now = Instant::now();
    assert!(tree.asks(now, false) && !tree.asks(now, false));
    assert!(!tree.asks(now, true), "too soon");
    assert!(tree.asks(now + AGAIN, true), "it was of no help");
    tree.forget(21, 1);
    assert!(!tree.asks(now, false));
    enter(&mut tree, 20, c"f", entry(21, 9, FILE, 0)).unwrap();
    assert!(tree.asks(now, false));
    assert!(!tree.asks(now, false));
    enter(&mut tree, 20, c"g", entry(22, 10, FILE, 0)).unwrap();
    assert!(tree.asks(now, false), "an eighth more");
}
