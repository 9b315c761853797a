//! Rules of the house that can be checked by reading the tree.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The crates, and what else has Rust in it.
const ROOTS: [&str; 7] = [
    "protos",
    "task",
    "shim",
    "shim-runc",
    "shim-vm",
    "manager",
    "tests",
];
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

/// What the kernel tells, and what others write, is bytes (`task::proc`, `task::json`): a name that
/// is no UTF-8 must not make a file unreadable. An operator's configuration is text.
#[test]
fn nothing_but_configuration_must_be_text() {
    each(|path, text| {
        let shipped = text.split("#[cfg(test)]").next().unwrap_or_default();
        let excused = ["config.rs", "build.rs", "tests.rs"]
            .iter()
            .any(|name| path.ends_with(name));
        let ours = path
            .strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")))
            .is_ok();
        (!excused && !ours && shipped.contains("read_to_string("))
            .then(|| "`read_to_string`".into())
    });
}

/// What asks the system for a file, which may lie on a disk that stands still.
const FILES: [&str; 31] = [
    "fs::read",
    "fs::write(",
    "fs::remove",
    "fs::rename",
    "fs::create",
    "fs::copy",
    "fs::metadata",
    "fs::symlink_metadata",
    "fs::set_permissions",
    "fs::canonicalize",
    "fs::DirBuilder",
    "fs::OpenOptions",
    "DirBuilder::new",
    "File::open",
    "File::create",
    "File::options",
    "OpenOptions::new",
    ".exists()",
    ".is_file()",
    "Path::exists",
    "mkfifo(",
    "statfs(",
    "UnixStream::connect(",
    "Client::connect(",
    "UnixListener::bind(",
    "umount2(",
    "openat(",
    "openat2(",
    "unlinkat(",
    "sync_data",
    "sync_all",
];
/// Programs of their own: they serve nobody who could wait.
const ALONE: [&str; 3] = [
    "manager/src/cli/",
    "manager/src/logfile/",
    "shim-vm/src/fsd/",
];

/// No event loop waits for a disk: whoever asks for a file where nobody did so before says why, in
/// `tests/files.txt`.
#[test]
fn files_are_asked_for_where_no_loop_waits() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let is_code = |line: &&str| !line.trim().starts_with("//") && !line.trim().starts_with("use ");
    let asks = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        let shipped = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let mut code = shipped.lines().filter(is_code);
        code.any(|line| FILES.iter().any(|call| line.contains(call)))
    };
    let name = |path: &PathBuf| path.strip_prefix(root).unwrap().display().to_string();
    let is_served = |name: &String| {
        let is_tests = name.ends_with("tests.rs") || name.starts_with("tests/");
        let is_alone = ALONE.iter().any(|dir| name.starts_with(dir));
        name.contains("/src/") && !is_tests && !is_alone
    };
    let found = sources().into_iter().filter(asks);
    let found: BTreeSet<String> = found.map(|path| name(&path)).filter(is_served).collect();
    let lines = include_str!("../files.txt").lines();
    let lines = lines.filter(|line| !line.starts_with('#'));
    let told: BTreeSet<String> = lines
        .map(|line| {
            let (file, reasons) = line.split_once(" | ").unwrap();
            let known = ["beside", "kernel", "before"];
            assert!(reasons.split(", ").all(|it| known.contains(&it)), "{line}");
            file.to_owned()
        })
        .collect();
    let new: Vec<_> = found.difference(&told).collect();
    assert!(new.is_empty(), "no word of them in files.txt: {new:?}");
    let old: Vec<_> = told.difference(&found).collect();
    assert!(old.is_empty(), "in files.txt for nothing: {old:?}");
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

/// The ids of the contract's rows that a text names: `X1`, and all of `X1 to X9`.
fn rows(text: &str) -> Vec<String> {
    let words: Vec<&str> = text.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    let row = |word: &str| {
        let number = word.strip_prefix(|c: char| "BTXINODSUV".contains(c))?;
        let number: u32 = number.parse().ok()?;
        Some((word[..1].to_owned(), number))
    };
    let mut found = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let Some((area, first)) = row(word) else {
            continue;
        };
        let last = match words[at + 1..] {
            ["to", last, ..] => row(last).filter(|(of, _)| *of == area),
            _ => None,
        };
        let last = last.map_or(first, |(_, last)| last);
        found.extend((first..=last).map(|number| format!("{area}{number}")));
    }
    found
}

/// What of a source is tests: all of a suite, and of a crate its unit tests.
fn tests_of<'a>(path: &Path, text: &'a str) -> &'a str {
    let is_test = path.components().any(|part| part.as_os_str() == "suite")
        || path.file_stem().is_some_and(|stem| stem == "tests");
    if is_test {
        return text;
    }
    text.find("#[cfg(test)]\nmod tests {")
        .map_or("", |at| &text[at..])
}

#[test]
fn every_row_of_the_contract_has_a_test_or_a_reason() {
    let table = include_str!("../contract.txt");
    let lines = table.lines();
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let (reasons, areas): (Vec<&str>, Vec<&str>) = lines.partition(|line| line.contains(" | "));
    let mut named = BTreeSet::new();
    for path in sources() {
        let text = fs::read_to_string(&path).unwrap();
        named.extend(rows(tests_of(&path, &text)));
    }
    let wanted: Vec<String> = areas
        .iter()
        .flat_map(|line| rows(line.split_once(": ").unwrap().1))
        .collect();
    let missing: Vec<_> = wanted.iter().filter(|row| !named.contains(*row)).collect();
    assert!(missing.is_empty(), "named by no test: {missing:?}");
    let excused = reasons.iter().map(|line| line.split_once(" | ").unwrap());
    let all: Vec<String> = excused
        .map(|(row, reason)| {
            assert!(!reason.is_empty(), "{row}");
            row.to_owned()
        })
        .chain(wanted)
        .collect();
    let once: BTreeSet<&String> = all.iter().collect();
    assert_eq!((all.len(), once.len()), (154, 154), "each row, once");
}
