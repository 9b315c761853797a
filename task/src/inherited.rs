// SPDX-License-Identifier: Apache-2.0
//! What whoever started us has left open: it is for us alone, not for what we start.

use crate::sys;
use std::fs;
use std::io;
use std::os::fd::IntoRawFd;

/// Keeps every open fd but stdin, stdout and stderr from the programs that this process starts: a
/// logger, a hook or a VM that has a pipe of a stranger's keeps that open for as long as it lives,
/// and one that has a stranger's file can write there. Who is to have one is given it by name.
/// Call it first of all.
///
/// # Errors
/// If /proc can't be read.
pub fn keep_from_children() -> io::Result<()> {
    for entry in fs::read_dir("/proc/self/fd")? {
        let number = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if let Some(number @ 3..) = number {
            // Marked, and then nobody's again. One that is not open was that of the directory.
            let _ = sys::adopt(number).map(IntoRawFd::into_raw_fd);
        }
    }
    Ok(())
}
