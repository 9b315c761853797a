// SPDX-License-Identifier: Apache-2.0
//! Rules of the house that can be checked by reading the tree.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The crates, and what else has Rust in it.
const ROOTS: [&str; 10] = [
    "deploy",
    "fuzz",
    "protos",
    "task",
    "shim",
    "shim-runc",
    "shim-vm",
    "manager",
    "image",
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

/// The files below `dirs`, but those that are built or generated.
fn below(mut dirs: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut found = Vec::new();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                let ours = !path.ends_with("target") && !path.ends_with("generated");
                dirs.extend(ours.then_some(path));
            } else {
                found.push(path);
            }
        }
    }
    found
}

fn sources() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = below(ROOTS.iter().map(|dir| root.join(dir)).collect());
    found.retain(|path| path.extension().is_some_and(|e| e == "rs"));
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

/// Above the first line of a source, or below that of a script which names its interpreter.
const LICENCE: &str = "SPDX-License-Identifier: Apache-2.0";

/// A source without the line of its licence.
fn unlicensed(text: &str) -> &str {
    let rest = text.split_once(LICENCE).map(|(_, rest)| rest);
    rest.map_or(text, |rest| rest.trim_start_matches('\n'))
}

#[test]
fn every_file_says_in_its_first_line_what_it_owns() {
    each(|_, text| {
        let says = unlicensed(text).starts_with("//! ");
        (!says).then(|| "no `//!` line".into())
    });
}

#[test]
fn every_file_of_ours_says_its_licence() {
    let mut dirs: Vec<PathBuf> = ROOTS.iter().map(|dir| root().join(dir)).collect();
    dirs.extend([".ci", "release"].map(|dir| root().join(dir)));
    let mut files = below(dirs);
    files.push(root().join("Makefile"));
    let mut missing = Vec::new();
    for path in files {
        let bytes = fs::read(&path).unwrap();
        let name = path.strip_prefix(root()).unwrap().to_str().unwrap();
        let ending = path.extension().and_then(|it| it.to_str());
        let is_ours = match ending {
            _ if name == "Makefile" || bytes.starts_with(b"#!/") => true,
            Some("rs" | "sh" | "c" | "spec") => true,
            // As protos/proto/SOURCE says; the others have their owners' words.
            Some("proto") => ["ttrpc.proto", "dunnage/", "grpc/"]
                .iter()
                .any(|own| name.starts_with(&format!("protos/proto/{own}"))),
            _ => false,
        };
        let text = String::from_utf8_lossy(&bytes);
        let mut lines = text.lines().take(2);
        if is_ours && !lines.any(|line| line.trim_start_matches(['/', '#', ' ']) == LICENCE) {
            missing.push(name.to_owned());
        }
    }
    assert!(
        missing.is_empty(),
        "no line `{LICENCE}`:\n{}",
        missing.join("\n")
    );
}

#[test]
fn no_file_owns_too_much() {
    each(|path, text| {
        let is_test = path.components().any(|part| part.as_os_str() == "suite")
            || path.file_stem().is_some_and(|stem| stem == "tests");
        let most = if is_test { LONGEST_TEST } else { LONGEST };
        let lines = unlicensed(text).lines().count();
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
const ALONE: [&str; 5] = [
    "deploy/src/",
    "image/src/",
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

/// The areas of docs/contract.md: a row's id is one of these letters, and a number.
const AREAS: &str = "BTXINODSVUR";
/// What follows, in a row of docs/contract.md, is why no test shows it.
const NOT_TESTED: &str = "*Not tested*: ";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn contract() -> String {
    fs::read_to_string(root().join("docs/contract.md")).unwrap()
}

/// The rows of docs/contract.md, as `(id, text)`: each is a paragraph that begins with its id, in bold.
fn paragraphs(contract: &str) -> Vec<(String, String)> {
    let rows = contract.split("\n\n").filter_map(|paragraph| {
        let title = paragraph.trim_start().strip_prefix("**")?;
        let (id, _) = title.split_once([' ', '*'])?;
        let is_row = rows(id) == [id];
        is_row.then(|| (id.to_owned(), paragraph.replace('\n', " ")))
    });
    rows.collect()
}

/// The ids of the contract's rows that a text names: `X1`, and all of `X1 to X9`.
fn rows(text: &str) -> Vec<String> {
    let words: Vec<&str> = text.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    let row = |word: &str| {
        let number = word.strip_prefix(|c: char| AREAS.contains(c))?;
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

/// The comments and strings of a source; a `V4` in its code is something else.
fn prose(text: &str) -> String {
    let mut prose = String::new();
    for line in text.lines() {
        let (code, comment) = line.split_once("//").unwrap_or((line, ""));
        for string in code.split('"').skip(1).step_by(2).chain([comment]) {
            prose.push_str(string);
            prose.push('\n');
        }
    }
    prose
}

/// The comments of a source: lines that follow each other are one.
fn comments(text: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    for line in text.lines() {
        match line.trim_start().strip_prefix("//") {
            Some(comment) => {
                let last = found.last_mut().unwrap();
                last.push_str(comment.trim_start_matches(['/', '!']));
            }
            None => found.push(String::new()),
        }
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
fn every_row_of_the_contract_is_named_by_a_test_or_says_why_not() {
    let contract = contract();
    let paragraphs = paragraphs(&contract);
    let once: BTreeSet<&String> = paragraphs.iter().map(|(id, _)| id).collect();
    assert!(once.len() > 160, "{once:?}");
    assert_eq!(once.len(), paragraphs.len(), "a row is there twice");
    let mut named = BTreeSet::new();
    for path in sources() {
        // This file's own examples are no tests of the rows.
        if !path.ends_with("suite/tidy.rs") {
            let text = fs::read_to_string(&path).unwrap();
            named.extend(rows(&prose(tests_of(&path, &text))));
        }
    }
    let wrong = paragraphs.iter().filter_map(|(id, text)| {
        let reason = text.split_once(NOT_TESTED).map(|(_, reason)| reason);
        match (named.contains(id), reason) {
            (true, None) => None,
            (true, Some(_)) => Some(format!("{id}: a test names it, but it says `Not tested`")),
            (false, None) => Some(format!("{id}: no test names it, and it does not say why")),
            (false, Some(reason)) => (reason.len() < 20).then(|| format!("{id}: no reason")),
        }
    });
    let wrong: Vec<_> = wrong.collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_id_that_is_named_is_a_row_of_the_contract() {
    let contract = contract();
    let known: BTreeSet<String> = paragraphs(&contract)
        .into_iter()
        .map(|(id, _)| id)
        .collect();
    let unknown = |text: &str| {
        let mut unknown = rows(text);
        unknown.retain(|id| !known.contains(id));
        (!unknown.is_empty()).then(|| format!("no row of docs/contract.md: {unknown:?}"))
    };
    each(|_, text| unknown(&prose(text)));
    for path in texts() {
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(unknown(&text), None, "{}", path.display());
    }
}

#[test]
fn a_comment_that_names_a_row_says_what_it_means() {
    each(|_, text| {
        let says_nothing = |comment: &String| {
            let mut words: Vec<&str> = comment
                .split(|c: char| !c.is_ascii_alphanumeric())
                .collect();
            words.retain(|word| !["", "and", "to", "contract", "The", "the"].contains(word));
            !words.is_empty() && words.iter().all(|word| rows(word) == [*word])
        };
        let bare: Vec<_> = comments(text).into_iter().filter(says_nothing).collect();
        (!bare.is_empty()).then(|| format!("only an id: {bare:?}"))
    });
}

/// The texts that people read, and the ledgers.
fn texts() -> Vec<PathBuf> {
    let of = |dir: PathBuf, ending: &'static str| {
        let files = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        files.filter(move |path| path.extension().is_some_and(|e| e == ending))
    };
    let docs = of(root().join("docs"), "md").chain(of(root().to_owned(), "md"));
    docs.chain(of(root().join("tests"), "txt")).collect()
}

/// What a heading's anchor is called by those who show Markdown.
fn anchor(heading: &str) -> String {
    let kept = heading
        .trim()
        .to_lowercase()
        .replace(' ', "-")
        .replace(|c: char| !c.is_alphanumeric() && c != '-' && c != '_', "");
    format!("#{kept}")
}

/// A link leads to a file, and to a heading in it.
#[test]
fn links_in_texts_lead_somewhere() {
    let mut wrong = Vec::new();
    for path in texts() {
        let text = fs::read_to_string(&path).unwrap();
        for link in text.split("](").skip(1) {
            let link = link.split(')').next().unwrap_or_default();
            if link.contains("://") {
                continue;
            }
            let (file, heading) = link.split_at(link.find('#').unwrap_or(link.len()));
            let to = match file {
                "" => path.clone(),
                file => path.parent().unwrap().join(file),
            };
            let has_heading = |text: String| {
                let mut headings = text.lines().filter_map(|line| line.split_once("# "));
                headings.any(|(_, title)| anchor(title) == heading)
            };
            let leads = to.exists()
                && (heading.is_empty() || fs::read_to_string(&to).is_ok_and(has_heading));
            if !leads {
                wrong.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A source that a text names is there, under this name or in some directory.
#[test]
fn files_that_texts_name_are_there() {
    let sources = sources();
    let mut wrong = Vec::new();
    for path in texts() {
        // What was, and what is containerd's.
        if path.ends_with("CHANGELOG.md") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for name in text.split('`').filter(|name| name.ends_with(".rs")) {
            let is_there = sources.iter().any(|source| source.ends_with(name));
            if !is_there && !name.contains([' ', '{', '*']) {
                wrong.push(format!("{}: {name}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Who comes by reads a page, and what that leaves out is in docs.
#[test]
fn the_readme_is_a_front_page() {
    let text = fs::read_to_string(root().join("README.md")).unwrap();
    let words = text.split_whitespace().count();
    assert!(words <= 1200, "{words} words");
}

/// The interfaces are those of whoever owns them: nobody has changed one by hand.
#[test]
fn interfaces_are_those_that_source_names() {
    use sha2::{Digest, Sha256};
    const OWN: [&str; 3] = ["dunnage/", "grpc/", "ttrpc.proto"];
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../protos/proto");
    let text = fs::read_to_string(dir.join("SOURCE")).unwrap();
    let mut named = BTreeSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let [sum, file, _] = line.split_whitespace().collect::<Vec<_>>()[..] else {
            panic!("SOURCE: {line}: not a sum, a file and a source");
        };
        let bytes = fs::read(dir.join(file)).unwrap_or_else(|e| panic!("SOURCE: {file}: {e}"));
        let found: String = Sha256::digest(bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(found, sum, "{file} is not what SOURCE says");
        named.insert(file.to_owned());
    }
    for path in below(vec![dir.clone()]) {
        let name = path.strip_prefix(&dir).unwrap().to_str().unwrap();
        if name.ends_with(".proto") && !OWN.iter().any(|own| name.starts_with(own)) {
            assert!(
                named.contains(name),
                "SOURCE does not say where {name} comes from"
            );
        }
    }
}
