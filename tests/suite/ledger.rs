// SPDX-License-Identifier: Apache-2.0
//! The ledgers and the tests agree: every line is asked for, and every question has a line.

use harness::ledger::Entry;
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

/// The ids in `QUESTION("…")` of a source; QUESTION is a whole word.
fn asked<'a>(text: &'a str, question: &str) -> BTreeSet<&'a str> {
    let parts: Vec<&str> = text.split("differs(\"").collect();
    let prefix = question.trim_end_matches("differs");
    let is_word = |before: &str| match prefix {
        "" => !before.ends_with('_'),
        prefix => before.ends_with(prefix),
    };
    let of_question = parts.windows(2).filter(|pair| is_word(pair[0]));
    of_question
        .filter_map(|pair| Some(pair[1].split_once('"')?.0))
        .collect()
}

/// What the suite asks for is what the ledger has.
fn compare(question: &str, ledger: &[Entry]) {
    let mut files = Vec::new();
    sources(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("suite"),
        &mut files,
    );
    files.retain(|file| !file.ends_with("suite/ledger.rs"));
    let mut used = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        used.extend(asked(&text, question).into_iter().map(str::to_owned));
    }
    let lines: BTreeSet<String> = ledger.iter().map(|entry| entry.id.clone()).collect();
    assert_eq!(used, lines, "left: asked for by tests; right: lines");
}

#[test]
fn ledger_lines_and_tests_that_ask_for_them_match() {
    compare("differs", harness::ledger::entries());
}

#[test]
fn lines_of_the_runtimes_and_tests_that_ask_for_them_match() {
    compare("runtime_differs", harness::ledger::runtimes());
}

#[test]
fn lines_of_vms_and_tests_that_ask_for_them_match() {
    compare("vm_differs", harness::ledger::vms());
}
