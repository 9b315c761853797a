// SPDX-License-Identifier: Apache-2.0
//! What wants another machine than this one: the contract's areas that depend on the version of
//! cgroup, with version 2, and a wall clock that is set. It runs in a VM.

mod clock;
mod limits;
mod oom;
mod pod;
mod stats;

use harness::Test;
use std::fs;
use std::path::{Path, PathBuf};

/// The container's directory.
fn cgroup(test: &Test, container: &str) -> PathBuf {
    Path::new("/sys/fs/cgroup").join(format!("{}-{container}", test.namespace()))
}

fn read(dir: &Path, file: &str) -> String {
    let path = dir.join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.trim().to_owned()
}

/// A line `key value` of a file.
fn field(dir: &Path, file: &str, key: &str) -> u64 {
    let text = read(dir, file);
    let found = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    let value = found.unwrap_or_else(|| panic!("no {key} in {file}"));
    value.parse().unwrap()
}
