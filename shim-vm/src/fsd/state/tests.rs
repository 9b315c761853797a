// SPDX-License-Identifier: Apache-2.0
//! What a file server goes on with, if what it is given was not written by one, or the files are others.

use super::*;
use crate::fsd::tree::Tree;
use std::cell::Cell;

const FILE: u32 = libc::S_IFREG | 0o644;
const DIR: u32 = libc::S_IFDIR | 0o755;

/// What becomes of a file.
type Change = fn(&mut Attr);

fn at(id: u64, place: Place) -> File {
    File {
        id,
        times: 1,
        place,
        handle: None,
    }
}

fn is_in(parent: u64, id: u64, name: &str) -> File {
    let name = name.to_owned();
    at(id, Place::In { parent, name })
}

fn opened(id: u64, flags: i32) -> Open {
    Open {
        id: id + 100,
        file: id,
        source: How::Again { flags },
    }
}

fn served(files: Vec<File>, open: Vec<Open>) -> Served {
    let root = at(1, Place::Root);
    let known = Known {
        files: std::iter::once(root).chain(files).collect(),
        next_file: 1000,
        open,
        next_open: 1000,
        negotiated: [false; 4],
    };
    Served::Second(known, BTreeMap::new())
}

fn bytes(served: &Served) -> Vec<u8> {
    postcard::to_stdvec(served).unwrap()
}

fn tree() -> tree::Saved {
    Tree::new(8, 8).save()
}

/// What somebody else has written.
fn written(served: &[u8]) -> State {
    State {
        tree: tree(),
        seen: Vec::new(),
        served: served.to_vec(),
    }
}

fn attr(mode: u32, size: u64) -> Attr {
    Attr {
        mode,
        size,
        mtime: 5,
        mtimensec: 6,
        nlink: 1,
        ..Attr::default()
    }
}

/// The root filesystem of `c`, and two volumes: a directory and a file.
fn a_container() -> Served {
    let files = vec![
        is_in(1, 2, "c"),
        is_in(2, 3, "rootfs"),
        is_in(3, 4, "program"),
        is_in(1, 5, ".volumes"),
        is_in(5, 6, "0"),
        is_in(6, 7, "v"),
        is_in(7, 8, "changes"),
        is_in(5, 9, "1"),
        is_in(9, 10, "v"),
        is_in(1, 11, "own"),
    ];
    let flags = libc::O_RDWR | libc::O_TRUNC | libc::O_CREAT | libc::O_APPEND | libc::O_EXCL;
    served(files, vec![opened(4, flags), opened(4, 0), opened(8, 0)])
}

/// Files have so many bytes.
fn look(size: u64) -> impl Fn(u64) -> io::Result<Attr> {
    move |id| match id {
        4 | 8 | 10 | 11 => Ok(attr(FILE, size)),
        _ => Ok(attr(DIR, 0)),
    }
}

fn why<T>(result: io::Result<T>) -> String {
    result.err().expect("it is refused").to_string()
}

#[test]
fn what_is_saved_is_gone_on_with() {
    let state = State::of(tree(), &bytes(&a_container()), look(7)).unwrap();
    state.check().unwrap();
    state.verify(look(7)).unwrap();
    assert_eq!(state.open().unwrap(), [4, 4, 8]);
    let again: State = postcard::from_bytes(&postcard::to_stdvec(&state).unwrap()).unwrap();
    again.verify(look(7)).unwrap();
    // A file is opened, and neither made nor emptied.
    let read = Served::read(&state.served).unwrap();
    let flags = read.known().open.iter().map(|open| {
        let How::Again { flags } = open.source;
        flags
    });
    assert_eq!(flags.collect::<Vec<_>>(), [libc::O_RDWR, 0, 0]);
    // As it was the first time, and so a second checkpoint is what the first was.
    let second = State::of(tree(), &again.served, look(7)).unwrap();
    assert_eq!((second.seen, second.served), (again.seen, again.served));
}

#[test]
fn a_file_that_was_changed_is_named_by_its_way_in_the_share() {
    let state = State::of(tree(), &bytes(&a_container()), look(7)).unwrap();
    let changes: [(&str, Change); 4] = [
        ("longer", |file| file.size = 8),
        ("later", |file| file.mtime = 50),
        ("a moment later", |file| file.mtimensec = 60),
        ("before 1970", |file| file.mtime = u64::MAX),
    ];
    for (what, change) in changes {
        let changed = |of: u64| {
            move |id: u64| {
                let mut file = look(7)(id)?;
                if id == of {
                    change(&mut file);
                }
                Ok(file)
            }
        };
        let named = why(state.verify(changed(4)));
        let expected = "file \"c/rootfs/program\" is not what it was when it was saved";
        assert_eq!(named, expected, "{what}");
        let named = why(state.verify(changed(10)));
        assert!(named.contains("\".volumes/1/v\""), "{what}: {named}");
        // In a volume that is a directory anything may change, and the share itself is made anew.
        for of in [8, 11] {
            state.verify(changed(of)).unwrap();
        }
    }
    let gone = |id| match id {
        4 => Err(io::ErrorKind::NotFound.into()),
        id => look(7)(id),
    };
    let named = why(state.verify(gone));
    assert!(named.starts_with("file \"c/rootfs/program\": "), "{named}");
    let named = why(State::of(tree(), &bytes(&a_container()), gone));
    assert!(named.starts_with("file \"c/rootfs/program\": "), "{named}");
}

/// Another container may be called as volumes are, but for the dot.
#[test]
fn only_volumes_change_at_any_time() {
    for (dir, is_verified) in [
        (".volumes", false),
        (".volumesque", true),
        ("volumes", true),
    ] {
        let files = vec![
            is_in(1, 2, dir),
            is_in(2, 3, "0"),
            is_in(3, 5, "v"),
            is_in(5, 4, "program"),
        ];
        let state = State::of(tree(), &bytes(&served(files, Vec::new())), look(7)).unwrap();
        assert_eq!(!state.seen.is_empty(), is_verified, "{dir}");
        assert_eq!(state.verify(look(8)).is_err(), is_verified, "{dir}");
    }
}

/// A file that was removed, and one that has a name of other bytes, which virtiofsd does not find again.
#[test]
fn files_without_a_name_are_not_saved() {
    let lost = |links: &'static [u32]| {
        let ids = 20..20 + links.len() as u64;
        let files = ids.map(|id| at(id, Place::Gone)).collect();
        let looked = |id: u64| {
            let place = id.checked_sub(20).unwrap_or(u64::MAX) as usize;
            let nlink = links.get(place).copied().unwrap_or(1);
            Ok(Attr {
                nlink,
                ..attr(FILE, 7)
            })
        };
        why(State::of(
            tree(),
            &bytes(&served(files, Vec::new())),
            looked,
        ))
    };
    let removed = "2 files are removed, and open in the guest: ";
    assert!(
        lost(&[0, 0, 1]).starts_with(removed),
        "{}",
        lost(&[0, 0, 1])
    );
    let odd = "1 files have names that are no UTF-8, and are in use in the guest: ";
    assert!(lost(&[1]).starts_with(odd), "{}", lost(&[1]));
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let absolute = [
        "/etc/shadow",
        "..",
        ".",
        "",
        "../c",
        "a/b",
        "a/",
        "a\0b",
        "link/../../x",
    ];
    for name in absolute {
        let files = vec![is_in(1, 2, "c"), is_in(2, 3, name)];
        let refused = why(written(&bytes(&served(files, Vec::new()))).check());
        assert_eq!(refused, format!("{name:?} is no name in a directory"));
    }
    let name = "c/rootfs".to_owned();
    let whole = served(vec![at(2, Place::At { name })], Vec::new());
    assert!(why(written(&bytes(&whole)).check()).contains("no name in a directory"));
    let gone = served(vec![at(2, Place::Gone)], Vec::new());
    assert_eq!(why(written(&bytes(&gone)).check()), "file 2 has no name");
    let odd = ["...", "..data", "a b", "\n", "ä", "-rf", "\u{202e}"];
    let files = (2..).zip(odd).map(|(id, name)| is_in(1, id, name));
    let odd = served(files.collect(), Vec::new());
    written(&bytes(&odd)).check().unwrap();
}

#[test]
fn files_that_are_to_be_made_or_emptied_are_refused() {
    for flags in [libc::O_TRUNC, libc::O_CREAT | libc::O_RDWR, -1] {
        let files = vec![is_in(1, 2, "c")];
        let state = written(&bytes(&served(files, vec![opened(2, flags)])));
        assert_eq!(why(state.check()), "file 2 is to be made anew", "{flags:o}");
    }
}

#[test]
fn files_by_their_handles_are_refused() {
    let mut with_mounts = a_container();
    if let Served::Second(_, mounts) = &mut with_mounts {
        mounts.insert(1, "/".into());
    }
    let refused = why(written(&bytes(&with_mounts)).check());
    assert_eq!(refused, "it has files by their handles");
}

/// Bytes that are no state: cut, of other counts than there are, names that are no UTF-8.
#[test]
fn what_is_no_state_is_refused_and_takes_no_room() {
    let all = bytes(&a_container());
    for length in 0..all.len() {
        let state = written(&all[..length]);
        for refused in [
            why(state.check()),
            why(state.open()),
            why(state.verify(look(7))),
            why(State::of(tree(), &state.served, look(7))),
        ] {
            assert!(
                refused.starts_with("what it serves: "),
                "{length}: {refused}"
            );
        }
    }
    let name = all.windows(7).position(|seven| seven == b"program");
    let mut no_text = all.clone();
    no_text[name.expect("it is there")] = 0xff;
    assert!(why(written(&no_text).check()).starts_with("what it serves: "));
    // As many files as a number can say, and a name as long.
    let most = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
    for start in [&[1][..], &[1, 1, 2, 1, 1, 1]] {
        let huge = [start, &most].concat();
        assert!(why(written(&huge).check()).starts_with("what it serves: "));
    }
    assert!(postcard::from_bytes::<State>(&most).is_err());
}

/// Whatever is whose parent, a name ends; and what is not known has none.
#[test]
fn names_end() {
    let files = vec![
        is_in(3, 2, "a"),
        is_in(2, 3, "b"),
        is_in(4, 4, "own"),
        is_in(77, 5, "orphan"),
    ];
    let bytes = bytes(&served(files, Vec::new()));
    let places = Served::read(&bytes).unwrap();
    let places = places.known().places();
    assert_eq!(places.name(4), "own/own/own/own/own");
    assert_eq!(places.name(2).split('/').count(), 5);
    assert_eq!((&*places.name(5), &*places.name(99)), ("orphan", ""));
    let mut state = written(&bytes);
    state.seen = vec![Seen::of(99, &attr(FILE, 1))];
    let unknown = |_| Err(io::ErrorKind::NotFound.into());
    assert!(why(state.verify(unknown)).starts_with("file \"\": "));
}

/// A guest makes directories as deep as it likes: what is written of a file is as long, however deep it is.
#[test]
fn deep_directories_take_no_more_room() {
    const DEEP: u64 = 2000;
    let name = "n".repeat(255);
    let dirs = (2..DEEP).map(|id| is_in(id - 1, id, &name));
    let files = (DEEP..2 * DEEP).map(|id| is_in(DEEP - 1, id, &id.to_string()));
    let all = bytes(&served(dirs.chain(files).collect(), Vec::new()));
    let looked = Cell::new(0);
    let look = |id| {
        looked.set(looked.get() + 1);
        Ok(attr(if id < DEEP { DIR } else { FILE }, 7))
    };
    let state = State::of(tree(), &all, look).unwrap();
    assert_eq!(looked.get(), 2 * DEEP - 1, "each once");
    assert_eq!(state.seen.len() as u64, DEEP);
    let whole = postcard::to_stdvec(&state).unwrap().len();
    assert!(whole < all.len() + DEEP as usize * 16, "{whole}");
}
