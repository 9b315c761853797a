// SPDX-License-Identifier: Apache-2.0
//! Programs that a test makes: another process writes them.
//!
//! A file that is open for writing cannot be executed (ETXTBSY, execve(2)), and whatever this
//! process holds open, each child that another test forks just then holds too, until it is
//! something else. So no program is ever opened for writing here.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// A script, of mode 0755.
#[track_caller]
pub fn write(path: &Path, text: &str) {
    write_bytes(path, text.as_bytes());
}

/// A program of these bytes, of mode 0755.
#[track_caller]
pub fn write_bytes(path: &Path, bytes: &[u8]) {
    install(Path::new("/dev/stdin"), path, bytes);
}

/// A copy of another program, of mode 0755. What is at `to` is replaced in one step.
#[track_caller]
pub fn copy(from: &Path, to: &Path) {
    let new = to.with_extension("new");
    install(from, &new, &[]);
    std::fs::rename(&new, to).unwrap_or_else(|e| panic!("{}: {e}", to.display()));
}

#[track_caller]
fn install(from: &Path, to: &Path, input: &[u8]) {
    let mut command = Command::new("install");
    command.args(["-m", "755", "--"]).args([from, to]);
    let mut child = command.stdin(Stdio::piped()).spawn().expect("install");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input).expect("input of install");
    drop(stdin);
    let status = child.wait().expect("wait for install");
    assert!(status.success(), "{}: {status}", to.display());
}
