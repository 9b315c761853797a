// SPDX-License-Identifier: Apache-2.0
//! A FIFO in a directory that containers see as /share: how a test and a container wait for each
//! other.

use super::DEADLINE;
use super::ctr::readable_within;
use nix::sys::stat::Mode;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;

/// Open for both directions: neither side ever waits for the other to open it.
pub struct Fifo {
    path: PathBuf,
    file: File,
}

impl Fifo {
    pub(crate) fn make(path: PathBuf) -> Self {
        let _ = std::fs::remove_file(&path);
        nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600)).expect("mkfifo");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .expect("FIFO");
        Self { path, file }
    }

    /// Gives the container something to `read`.
    pub fn send(&self, line: &str) {
        (&self.file)
            .write_all(format!("{line}\n").as_bytes())
            .expect("write to a FIFO");
    }

    pub fn has_line_now(&self) -> bool {
        readable_within(&self.file, Duration::ZERO)
    }

    /// Waits for a line from the container.
    #[track_caller]
    pub fn line(&self) -> String {
        let mut line = Vec::new();
        loop {
            let so_far = String::from_utf8_lossy(&line);
            let here = self.path.display();
            assert!(
                readable_within(&self.file, DEADLINE),
                "no line in {here}: {so_far:?}"
            );
            let mut byte = [0];
            (&self.file)
                .read_exact(&mut byte)
                .expect("read from a FIFO");
            if byte == *b"\n" {
                return String::from_utf8_lossy(&line).into_owned();
            }
            line.push(byte[0]);
        }
    }
}
