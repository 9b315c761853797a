// SPDX-License-Identifier: Apache-2.0
//! Reading files that somebody else wrote, and no more of them than is to be expected.

use crate::error::{Error, Result};
use protos::Timestamp;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::SystemTime;

/// The longest pid file, the longest other small file, and the longest config.json or options.json
/// that is read, in bytes. containerd takes no request that is longer than 16 MiB.
const PID: u64 = 64;
pub const SMALL: u64 = 64 << 10;
pub const SPEC: u64 = 16 << 20;

/// Reads the first bytes of a file that somebody else wrote, at most so many.
///
/// # Errors
/// From open(2) and read(2).
pub fn read_head(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a whole file that somebody else wrote.
///
/// # Errors
/// As [`read_head`], and if it is longer than `most` bytes.
pub fn read_whole(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let bytes = read_head(path, most + 1)?;
    match bytes.len() as u64 > most {
        true => Err(io::Error::other(format!("it is longer than {most} bytes"))),
        false => Ok(bytes),
    }
}

/// The pid in a file that the OCI runtime wrote.
///
/// # Errors
/// If the file is missing or holds no pid.
pub fn read_pid(path: &Path) -> Result<u32> {
    let text = read_whole(path, PID).map_err(Error::io("open", path))?;
    let text = String::from_utf8_lossy(&text);
    let pid = text
        .trim()
        .parse()
        .ok()
        .filter(|&pid| pid > 0 && pid <= i32::MAX.cast_unsigned());
    pid.ok_or_else(|| Error::Refused(format!("{}: {text:?} is no pid", path.display())))
}

/// When a file was written, to a tick of the kernel's clock; `None` if it is gone.
pub fn written_at(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|file| file.modified()).ok()
}

/// The pid in a file that the OCI runtime wrote, and when it did; see [`read_pid`], [`written_at`].
///
/// # Errors
/// If the file is missing or holds no pid.
pub fn read_made(path: &Path) -> Result<(u32, Option<Timestamp>)> {
    let pid = read_pid(path)?;
    Ok((pid, written_at(path).map(Into::into)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_pid_file_holds_a_pid() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("init.pid");
        assert!(
            read_pid(&path)
                .unwrap_err()
                .to_string()
                .contains("init.pid")
        );
        for (text, pid) in [
            ("17", Some(17)),
            ("17\n", Some(17)),
            ("0", None),
            ("-1", None),
            ("", None),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(read_pid(&path).ok(), pid, "{text:?}");
        }
    }
}
