// SPDX-License-Identifier: Apache-2.0
//! Templates that are kept, found, spoilt and removed.

use super::*;

fn identity(key: &str, family: &str) -> Identity {
    Identity {
        about: format!("about {key}"),
        key: key.to_owned(),
        family: family.to_owned(),
        boot: "this".to_owned(),
    }
}

/// Keeps one of these bytes, after a hole.
fn keep(store: &Store, identity: &Identity, bytes: &[u8]) {
    let state = store.nameless().unwrap();
    state.write_all_at(bytes, 1 << 20).unwrap();
    let hello = Hello {
        version: 2,
        ..Hello::default()
    };
    store.keep(identity, &state, "10.0.0", &hello).unwrap();
}

fn names(store: &Store) -> Vec<String> {
    let entries = fs::read_dir(&store.0).unwrap().flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn only_what_is_as_it_was_made_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store(dir.path().to_owned());
    let ours = identity("k", "f");
    assert!(matches!(store.find(&ours), Found::None { wanted: true }));
    keep(&store, &ours, b"memory");
    let Found::Ready(kept) = store.find(&ours) else {
        panic!("it is not there");
    };
    assert_eq!(kept.hello.version, 2);
    store.verify(&kept).unwrap();
    assert_eq!(names(&store), ["k.json", "k.state"]);

    let broken = |identity: &Identity| match store.find(identity) {
        Found::Broken(why) => why,
        _ => panic!("it is not broken"),
    };
    let other = Identity {
        about: "another QEMU".into(),
        ..ours.clone()
    };
    assert!(broken(&other).ends_with("k.json: it is of something else"));
    let state = dir.path().join("k.state");
    let written = || File::options().write(true).open(&state).unwrap();
    written().write_all_at(b"M", 1 << 20).unwrap();
    let changed = "its state was changed after it was made";
    assert!(broken(&ours).ends_with(changed));
    let why = store.verify(&kept).unwrap_err();
    assert_eq!(why, "its state is not what was written");

    keep(&store, &ours, b"memory");
    written().set_len(1 << 20).unwrap();
    assert!(broken(&ours).ends_with(changed));
    fs::remove_file(&state).unwrap();
    assert!(broken(&ours).contains("its state: "));
    fs::write(dir.path().join("k.json"), "{").unwrap();
    assert!(broken(&ours).contains("k.json: "));
    store.fail(&ours.key, "QEMU\nsaid no");
    assert!(matches!(store.find(&ours), Found::None { wanted: false }));
    assert_eq!(store.failure(&ours.key).unwrap(), "QEMU said no");
}

#[test]
fn what_is_of_no_use_goes_and_there_is_a_most() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store(dir.path().to_owned());
    let ours = identity("ours", "f");
    keep(&store, &identity("older", "f"), b"x");
    keep(&store, &identity("another", "g"), b"x");
    let before = Identity {
        boot: "before".into(),
        ..identity("before", "h")
    };
    keep(&store, &before, b"x");
    fs::write(dir.path().join("half.state"), "").unwrap();
    store.fail("failed", "why");
    keep(&store, &ours, b"x");
    store.tidy(&ours).unwrap();
    let left = [
        "another.json",
        "another.state",
        "failed.failed",
        "ours.json",
        "ours.state",
    ];
    assert_eq!(names(&store), left);
    for n in 0..MOST + 2 {
        keep(&store, &identity(&format!("n{n}"), &format!("f{n}")), b"x");
    }
    store.tidy(&ours).unwrap();
    let count = |end: &str| {
        names(&store)
            .iter()
            .filter(|name| name.ends_with(end))
            .count()
    };
    assert_eq!((count(".json"), count(".state")), (MOST, MOST));
    assert!(names(&store).contains(&"ours.json".to_owned()));
}

#[test]
fn one_makes_templates_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store(dir.path().join("templates"));
    let lock = store.lock(true).unwrap();
    assert!(lock.is_some());
    assert!(store.lock(false).unwrap().is_none());
    drop(lock);
    assert!(store.lock(false).unwrap().is_some());
}
