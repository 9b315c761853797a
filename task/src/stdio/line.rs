// SPDX-License-Identifier: Apache-2.0
//! Whether a file that is appended to ends where a line does.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// True if `file`, which may be open for writing only, is empty or ends in a newline: a write that
/// a full disk cut off leaves half a line, and what comes next must not become the rest of it.
///
/// # Errors
/// From fstat(2), or if the file cannot be opened for reading.
pub fn is_whole(file: &File) -> io::Result<bool> {
    let size = file.metadata()?.len();
    if size == 0 {
        return Ok(true);
    }
    let mut last = [0];
    let read = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    read.read_exact_at(&mut last, size - 1)?;
    Ok(last == *b"\n")
}
