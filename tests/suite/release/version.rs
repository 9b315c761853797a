// SPDX-License-Identifier: Apache-2.0
//! One version everywhere: Cargo.toml has it, the programs say it, CHANGELOG.md leads to it.

use crate::programs;
use harness::peers;
use std::fs;
use std::process::Command;

fn read(name: &str) -> String {
    let path = peers::workspace().join(name);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// That of the workspace.
pub fn cargo() -> String {
    let text = read("Cargo.toml");
    let (_, package) = text.split_once("[workspace.package]").expect("a section");
    let line = package
        .lines()
        .find_map(|line| line.strip_prefix("version = "));
    line.expect("a version").trim_matches('"').to_owned()
}

/// `1.2.3` as what can be compared.
fn number(text: &str) -> [u32; 3] {
    let parts: Result<Vec<u32>, _> = text.split('.').map(str::parse).collect();
    let parts = parts.unwrap_or_else(|e| panic!("{text}: {e}"));
    parts.try_into().expect("three numbers")
}

#[test]
fn every_crate_has_the_version_of_the_workspace() {
    let text = read("Cargo.toml");
    let (_, members) = text.split_once("members = [").expect("members");
    let (members, _) = members.split_once(']').expect("an end");
    // They stand in the place of crates of others, whose versions they have.
    let in_place = ["shim-vm/capng", "tests/cgroups"];
    for member in members.split('"').skip(1).step_by(2) {
        if member.contains("/shells/") || in_place.contains(&member) {
            continue;
        }
        let manifest = read(&format!("{member}/Cargo.toml"));
        assert!(
            manifest.contains("\nversion.workspace = true\n"),
            "{member}: a version of its own"
        );
    }
}

#[test]
fn every_program_says_the_version() {
    for program in programs() {
        let output = Command::new(&program).arg("--version").output();
        let output = output.unwrap_or_else(|e| panic!("{}: {e}", program.display()));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let said: Vec<&str> = said.split_whitespace().collect();
        assert!(said.contains(&&*cargo()), "{}: {said:?}", program.display());
    }
}

/// Either it is that of the newest heading, and has just been released; or it is a later one, and
/// what is new is listed as not released.
#[test]
fn the_changelog_leads_to_the_version() {
    let text = read("CHANGELOG.md");
    let headings: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .collect();
    let unreleased = headings.first() == Some(&"Unreleased");
    let released: Vec<[u32; 3]> = headings[usize::from(unreleased)..]
        .iter()
        .map(|heading| {
            let (version, date) = heading.split_once(" - ").expect("VERSION - DATE");
            assert_eq!(date.len(), "2026-01-01".len(), "{heading}");
            number(version)
        })
        .collect();
    assert!(released.is_sorted_by(|a, b| a > b), "{headings:?}");
    let now = number(&cargo());
    match released.first() {
        Some(last) if unreleased => assert!(now > *last, "{headings:?}"),
        Some(last) => assert_eq!(now, *last, "{headings:?}"),
        None => assert!(unreleased, "{headings:?}"),
    }
}
