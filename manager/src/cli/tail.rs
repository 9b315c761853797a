// SPDX-License-Identifier: Apache-2.0
//! A log file that grows while it is read, is cut off to make room, and gives way to a new one.

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub struct Tail {
    path: PathBuf,
    reader: BufReader<File>,
    /// How many bytes of the file were read.
    read: u64,
    /// The last line, and what there is of the next: while the file was not cut off, they are where
    /// they were read.
    last: Vec<u8>,
    part: Vec<u8>,
    /// Tells of every change (inotify(7)), where the kernel has one more such fd.
    changes: Option<AsyncFd<OwnedFd>>,
}

impl Tail {
    /// # Errors
    /// A text that names the file.
    pub fn open(path: &Path) -> Result<Self, String> {
        let file = File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            reader: BufReader::new(file),
            read: 0,
            last: Vec::new(),
            part: Vec::new(),
            changes: None,
        })
    }

    /// Waits for a change of the file: whoever cuts it off may do so soon after.
    pub async fn changed(&mut self) {
        if self.changes.is_none() {
            self.changes = self.watch().ok();
        }
        let Some(changes) = &self.changes else {
            return std::future::pending().await;
        };
        if let Ok(mut ready) = changes.readable().await {
            let mut events = [0; 4096];
            while nix::unistd::read(changes, &mut events).is_ok() {}
            ready.clear_ready();
        }
    }

    fn watch(&self) -> io::Result<AsyncFd<OwnedFd>> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let fd = self.reader.get_ref().as_raw_fd();
        let file = format!("/proc/self/fd/{fd}");
        inotify.add_watch(file.as_str(), AddWatchFlags::IN_MODIFY)?;
        task::sys::watch(inotify.into(), Interest::READABLE)
    }

    /// The next line that is whole, with its end.
    ///
    /// # Errors
    /// A text that names the file.
    pub fn next(&mut self) -> Result<Option<&[u8]>, String> {
        let mut more = Vec::new();
        loop {
            let is_read_before = self.reader.buffer().contains(&b'\n');
            let read = self.reader.read_until(b'\n', &mut more);
            let read = read.map_err(|e| self.failed(&e))?;
            // Only now it is known whether that was where we had got to.
            if read == 0 || is_read_before || !self.notice_cut()? {
                break;
            }
            more.clear();
        }
        self.read += more.len() as u64;
        self.part.append(&mut more);
        if !self.part.ends_with(b"\n") {
            return Ok(None);
        }
        self.last.clear();
        std::mem::swap(&mut self.last, &mut self.part);
        Ok(Some(&self.last))
    }

    /// True if another file has its name now.
    pub fn is_old(&self) -> bool {
        let ours = self.reader.get_ref().metadata();
        let named = std::fs::metadata(&self.path);
        ours.is_ok_and(|ours| named.is_ok_and(|named| named.ino() != ours.ino()))
    }

    /// Begins anew if the file was cut off since all of it was read, also if it has grown again. True
    /// if it was.
    ///
    /// # Errors
    /// A text that names the file.
    pub fn notice_cut(&mut self) -> Result<bool, String> {
        let before = [self.last.as_slice(), &self.part].concat();
        let mut now = vec![0; before.len()];
        let at = self.read - before.len() as u64;
        match self.reader.get_ref().read_exact_at(&mut now, at) {
            Ok(()) if now == before => return Ok(false),
            Err(e) if e.kind() != io::ErrorKind::UnexpectedEof => return Err(self.failed(&e)),
            _ => {}
        }
        self.reader.rewind().map_err(|e| self.failed(&e))?;
        self.read = 0;
        self.last.clear();
        self.part.clear();
        Ok(true)
    }

    fn failed(&self, error: &io::Error) -> String {
        format!("{}: {error}", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(tail: &mut Tail) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some(line) = tail.next().unwrap() {
            lines.push(String::from_utf8_lossy(line).trim_end().to_owned());
        }
        lines
    }

    /// Also when the file is as long as before, or longer, when we look again.
    #[test]
    fn a_file_that_was_cut_off_is_read_from_its_begin() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        for after in ["x\n", "three\nfour\n", "three\nfour\nfive\nsix\n"] {
            std::fs::write(&path, "one\ntwo\nth").unwrap();
            let mut tail = Tail::open(&path).unwrap();
            assert_eq!(lines(&mut tail), ["one", "two"]);
            tail.notice_cut().unwrap();
            assert!(lines(&mut tail).is_empty());
            std::fs::write(&path, after).unwrap();
            tail.notice_cut().unwrap();
            assert_eq!(lines(&mut tail), after.lines().collect::<Vec<_>>());
            assert!(!tail.is_old());
        }
    }

    /// Whenever that happens: nobody can look at each moment.
    #[test]
    fn what_has_grown_again_is_not_read_from_where_we_had_got_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "one\ntw").unwrap();
        let mut tail = Tail::open(&path).unwrap();
        assert_eq!(lines(&mut tail), ["one"]);
        std::fs::write(&path, "longer than all before\n").unwrap();
        assert_eq!(lines(&mut tail), ["longer than all before"]);
        // What was read before is shown.
        std::fs::write(&path, "a\nb\n").unwrap();
        let mut tail = Tail::open(&path).unwrap();
        assert_eq!(tail.next().unwrap(), Some(&b"a\n"[..]));
        std::fs::write(&path, "c\n").unwrap();
        assert_eq!(lines(&mut tail), ["b"]);
    }

    #[test]
    fn a_file_that_was_replaced_is_old() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "one\n").unwrap();
        let tail = Tail::open(&path).unwrap();
        std::fs::rename(&path, dir.path().join("log.1")).unwrap();
        assert!(!tail.is_old());
        std::fs::write(&path, "two\n").unwrap();
        assert!(tail.is_old());
    }
}
