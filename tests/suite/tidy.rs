//! Rules of the house that can be checked by reading the tree.

use std::fs;
use std::path::{Path, PathBuf};

/// The crates, and what else has Rust in it.
const ROOTS: [&str; 6] = ["protos", "task", "shim", "shim-runc", "manager", "tests"];
/// Names that say nothing of what a file owns.
const JUNK: [&str; 8] = [
    "util", "utils", "common", "helper", "helpers", "misc", "types", "stuff",
];
/// Lines a source file may have before it owns too much.
const LONGEST: usize = 400;
/// Test scenarios may be told at length.
const LONGEST_TEST: usize = 700;

fn sources() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = Vec::new();
    let mut dirs: Vec<PathBuf> = ROOTS.iter().map(|dir| root.join(dir)).collect();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    assert!(found.len() > 40, "{found:?}");
    found
}

fn each(check: impl Fn(&Path, &str) -> Option<String>) {
    let complaint = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        check(path, &text).map(|why| format!("{}: {why}", path.display()))
    };
    let wrong: Vec<_> = sources().iter().filter_map(complaint).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_says_in_its_first_line_what_it_owns() {
    each(|_, text| (!text.starts_with("//! ")).then(|| "no `//!` line".into()));
}

#[test]
fn no_file_owns_too_much() {
    each(|path, text| {
        let is_test = path.components().any(|part| part.as_os_str() == "suite")
            || path.file_stem().is_some_and(|stem| stem == "tests");
        let most = if is_test { LONGEST_TEST } else { LONGEST };
        let lines = text.lines().count();
        (lines > most).then(|| format!("{lines} lines, {most} are enough"))
    });
}

#[test]
fn file_names_say_what_is_inside() {
    each(|path, _| {
        let stem = path.file_stem()?.to_str()?;
        JUNK.contains(&stem)
            .then(|| "a name that says nothing".into())
    });
}

/// A test waits for a thing, never for time; nobody hides what a test does not do.
#[test]
fn tests_do_not_sleep_and_are_not_ignored() {
    each(|path, text| {
        let in_tests = path.components().any(|part| part.as_os_str() == "tests");
        let banned = [
            concat!("thread::", "sleep("),
            concat!("time::", "sleep("),
            "#[ignore",
        ];
        let banned = banned.iter().find(|banned| text.contains(**banned))?;
        // What looks again for what nothing announces, what kills at given moments, and this file.
        let excepted = ["harness/wait.rs", "harness/sweep.rs", "suite/tidy.rs"];
        let excepted = excepted.iter().any(|file| path.ends_with(file));
        (in_tests && !excepted).then(|| format!("`{banned}`"))
    });
}
