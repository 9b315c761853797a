// SPDX-License-Identifier: Apache-2.0
//! The file that a log is appended to, and the older ones beside it.

use super::rotated;
use crate::config::Logger;
use crate::sys;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use task::stdio::line;

pub struct Writer {
    path: PathBuf,
    file: File,
    /// How large the file was when its last line was whole.
    whole: u64,
    limits: Logger,
}

impl Writer {
    /// # Errors
    /// From mkdir(2) or open(2).
    pub fn open(path: &Path, limits: Logger) -> io::Result<Self> {
        make_dir(path)?;
        Ok(Self {
            path: path.to_owned(),
            file: append(path)?,
            whole: 0,
            limits,
        })
    }

    /// Writes a line, which ends in a newline and begins where one does, whatever was before it.
    ///
    /// # Errors
    /// From the filesystem. The next line may be written again.
    pub fn write(&mut self, line: &[u8]) -> io::Result<()> {
        // Asked each time: others may cut it off to make room.
        let mut size = self.file.metadata()?.len();
        if size > 0 && size + line.len() as u64 > self.limits.max_size {
            match self.rotate() {
                Ok(()) => size = 0,
                // It goes on in the file that there is.
                Err(e) => log::error!("log {}: rotate: {e}", self.path.display()),
            }
        }
        // A disk that was full has torn a line.
        if size != self.whole && !line::is_whole(&self.file)? {
            self.file.write_all(b"\n")?;
            size += 1;
        }
        self.file.write_all(line)?;
        self.whole = size + line.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        // Not there if the last try got no further.
        if self.path.exists() {
            for n in (1..self.limits.max_files.max(1)).rev() {
                let _ = std::fs::rename(rotated(&self.path, n), rotated(&self.path, n + 1));
            }
            std::fs::rename(&self.path, rotated(&self.path, 1))?;
        }
        self.file = append(&self.path)?;
        Ok(())
    }
}

/// Makes the directory of a log.
///
/// # Errors
/// From mkdir(2).
pub fn make_dir(path: &Path) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o750).create(dir)
}

/// Opens it, and holds it as [`super::is_held`] asks.
fn append(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(path)?;
    // Somebody asks this moment; and not every filesystem has locks.
    if let Err(e) = sys::lock_shared(&file) {
        log::debug!("log {}: {e}", path.display());
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path, max_size: u64) -> io::Result<Writer> {
        let limits = Logger {
            max_size,
            max_files: 2,
        };
        Writer::open(path, limits)
    }

    fn read(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn files_are_rotated_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs/c.json");
        let mut writer = open(&path, 10).unwrap();
        for line in ["one......\n", "two......\n", "three....\n", "four.....\n"] {
            writer.write(line.as_bytes()).unwrap();
        }
        assert_eq!(read(&path), "four.....\n");
        assert_eq!(read(&rotated(&path, 1)), "three....\n");
        assert_eq!(read(&rotated(&path, 2)), "two......\n");
        assert!(!rotated(&path, 3).exists());
    }

    #[test]
    fn a_file_that_cannot_be_rotated_grows_on_and_no_older_one_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.json");
        let mut writer = open(&path, 10).unwrap();
        for line in ["one......\n", "two......\n"] {
            writer.write(line.as_bytes()).unwrap();
        }
        // A directory that is not empty is never replaced.
        std::fs::remove_file(rotated(&path, 1)).unwrap();
        std::fs::create_dir_all(rotated(&path, 2).join("d")).unwrap();
        std::fs::create_dir_all(rotated(&path, 1).join("d")).unwrap();
        writer.write(b"three....\n").unwrap();
        assert_eq!(read(&path), "two......\nthree....\n");
    }

    #[test]
    fn a_line_begins_where_one_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.json");
        std::fs::write(&path, "torn").unwrap();
        let mut writer = open(&path, 1000).unwrap();
        writer.write(b"one\n").unwrap();
        append(&path).unwrap().write_all(b"caf\xc3").unwrap();
        writer.write(b"two\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"torn\none\ncaf\xc3\ntwo\n");
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(2)
            .unwrap();
        writer.write(b"three\n").unwrap();
        let all = std::fs::read(&path).unwrap();
        assert_eq!(all, b"to\nthree\n");
    }
}
