// SPDX-License-Identifier: Apache-2.0
//! Settings and annotations, right and wrong.

use super::*;

#[test]
fn wrong_settings_are_named() {
    for (text, named) in [
        ("memory = 1", "memory = 1: not within 96"),
        ("vcpus = 0", "vcpus = 0: not within 1"),
        ("accel = \"xen\"", "accel"),
        ("memroy = 512", "memroy"),
        (
            "max_memory = 600\nmemory = 601",
            "memory = 601: not within 96 to 600 MiB",
        ),
        ("max_vcpus = 2\nvcpus = 3", "vcpus = 3: not within 1 to 2"),
        ("writable = \"disk\"", "writable"),
        ("writable_size = 0", "writable_size = 0: not within 1 to"),
        ("first_user = 0", "first_user = 0"),
        (
            "max_open_files = 100",
            "max_open_files = 100: not within 4096 to",
        ),
        (
            "first_user = 4294967290\nusers = 6",
            "users = 6: not within 1 to 5",
        ),
    ] {
        let why = Config::parse(text).unwrap_err();
        assert!(why.contains(named), "{text}: {why}");
    }
    assert_eq!(Config::parse("accel = \"tcg\"").unwrap().accel, Accel::Tcg);
}

#[test]
fn limits_make_defaults_and_annotations_win() {
    let annotated = |list: &[(&str, &str)], memory| Wanted {
        memory,
        vcpus: Some(3),
        annotations: list
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
    };
    let config = Config {
        max_memory: 2048,
        max_vcpus: 4,
        ..Config::default()
    };
    let plain = config.wanted(&annotated(&[("other", "x")], Some(1 << 30)));
    let plain = plain.unwrap();
    assert_eq!((plain.memory, plain.vcpus), (1024 + GUEST_SHARE, 3));
    let small = config.wanted(&annotated(&[], Some(1 << 20))).unwrap();
    assert_eq!(small.memory, 512);
    let set = [
        ("io.dunnage.vm.memory", "256"),
        ("io.dunnage.vm.accel", "tcg"),
    ];
    let set = config.wanted(&annotated(&set, Some(1 << 30))).unwrap();
    assert_eq!((set.memory, set.accel), (256, Accel::Tcg));
    let refused = |key: &str, value: &str| {
        let wanted = annotated(&[(key, value)], None);
        config.wanted(&wanted).unwrap_err()
    };
    assert!(refused("io.dunnage.vm.kernel", "/x").contains("io.dunnage.vm.kernel: not allowed"));
    let why = refused("io.dunnage.vm.memory", "lots");
    assert_eq!(
        why,
        "annotation io.dunnage.vm.memory=\"lots\": not a number"
    );
    for (key, value) in [("memory", "2049"), ("vcpus", "5"), ("vcpus", "99999999999")] {
        let why = refused(&format!("io.dunnage.vm.{key}"), value);
        assert!(why.contains("not within"), "{why}");
    }
    let most = config.wanted(&annotated(&[], Some(1 << 40))).unwrap();
    assert_eq!(most.memory, 2048, "a limit is no wish");
}
