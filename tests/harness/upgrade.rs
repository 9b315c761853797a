// SPDX-License-Identifier: Apache-2.0
//! Replacing the binary of shims that run.

use crate::{Shim, Test, peers, program, wait};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Another file with the shim under test, under its official name, in the test's directory `dir`.
pub fn copy_of_the_binary(test: &Test, dir: &str) -> PathBuf {
    let dir = test.dir().join(dir);
    fs::create_dir_all(&dir).expect("a directory");
    let path = dir.join(peers::shim().file_name().expect("a file"));
    program::copy(peers::shim(), &path);
    path
}

/// `containerd-shim-... -namespace NS upgrade`, run from `binary`.
pub async fn upgrade(test: &Test, binary: &Path) -> wait::Output {
    let mut command = Command::new(binary);
    command.args(["-namespace", test.namespace(), "upgrade"]);
    wait::output(command, None).await
}

/// The program that the shim runs.
pub fn image_of(shim: &Shim) -> PathBuf {
    fs::read_link(format!("/proc/{}/exe", shim.pid())).expect("a process")
}
