//! The ledger and the tests agree: every line is asked for, and every question has a line.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The ids in `differs("…")` of a source.
fn asked(text: &str) -> impl Iterator<Item = &str> {
    text.split("differs(\"")
        .skip(1)
        .filter_map(|rest| rest.split_once('"'))
        .map(|(id, _)| id)
}

#[test]
fn ledger_lines_and_tests_that_ask_for_them_match() {
    let mut files = Vec::new();
    sources(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("suite"),
        &mut files,
    );
    files.retain(|file| !file.ends_with("suite/ledger.rs"));
    let mut used = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        used.extend(asked(&text).map(str::to_owned));
    }
    let lines: BTreeSet<String> = harness::ledger::entries()
        .iter()
        .map(|e| e.id.clone())
        .collect();
    assert_eq!(
        used, lines,
        "left: asked for by tests; right: lines of tests/ledger.txt"
    );
}
