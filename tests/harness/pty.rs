// SPDX-License-Identifier: Apache-2.0
//! A child process on a terminal of its own, as if a person sat at it.

use crate::containerd::capture::Capture;
use crate::containerd::ctr::{code, ends_within, words};
use crate::containerd::{DEADLINE, ctr::Output};
use nix::fcntl::OFlag;
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// A terminal, and the session leader on it. Dropped, it hangs up and kills.
pub struct Pty {
    words: String,
    child: Child,
    keyboard: File,
    screen: Capture,
    /// How much of the screen `expect` has passed.
    read: usize,
}

impl Pty {
    /// Starts `command` on a new terminal of this size.
    pub fn spawn(mut command: Command, rows: u16, columns: u16) -> Self {
        let words = words(&command);
        // Close-on-exec from the start: other tests start children at the same time.
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master: PtyMaster = posix_openpt(flags).expect("posix_openpt");
        grantpt(&master).expect("grantpt");
        unlockpt(&master).expect("unlockpt");
        let name = ptsname_r(&master).expect("ptsname");
        let mut options = OpenOptions::new();
        let slave = options
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(name);
        let slave = slave.expect("the slave of a new terminal");
        let master = OwnedFd::from(master);
        set_size(&master, rows, columns);
        command.stdin(slave.try_clone().expect("dup"));
        command
            .stdout(slave.try_clone().expect("dup"))
            .stderr(slave);
        // SAFETY: setsid and ioctl are async-signal-safe; fd 0 is the slave by then.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            });
        }
        let child = command.spawn().unwrap_or_else(|e| panic!("{words}: {e}"));
        let screen = Capture::of(File::from(master.try_clone().expect("dup")));
        Self {
            words,
            child,
            keyboard: File::from(master),
            screen,
            read: 0,
        }
    }

    /// Changes the terminal's size; the kernel sends SIGWINCH.
    pub fn resize(&self, rows: u16, columns: u16) {
        set_size(&self.keyboard, rows, columns);
    }

    pub fn type_in(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).expect("keyboard");
    }

    /// Waits until `text` appears after all that was expected before.
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        let from = self.read;
        let what = format!(
            "{text:?} after {from} bytes on the terminal of {}",
            self.words
        );
        self.read = self
            .screen
            .wait_for(&what, |screen| end_of(text, from, screen));
    }

    /// Types `keys`, and again while `text` does not appear: they are lost while nobody is there who
    /// takes them.
    #[track_caller]
    pub fn type_until(&mut self, keys: &str, text: &str) {
        let (from, end) = (self.read, Instant::now() + DEADLINE);
        while self.read == from {
            assert!(
                Instant::now() < end,
                "{keys:?} brings no {text:?} after {from} bytes on the terminal of {}:\n{}",
                self.words,
                self.screen.text()
            );
            self.type_in(keys);
            self.shows(text, Duration::from_millis(200));
        }
    }

    /// As `expect`, but not for long: whether it appeared.
    pub fn shows(&mut self, text: &str, limit: Duration) -> bool {
        let from = self.read;
        let shown = self
            .screen
            .wait_briefly(limit, |screen| end_of(text, from, screen));
        self.read = shown.unwrap_or(from);
        shown.is_some()
    }

    /// Waits for the child's end; `stdout` is all the terminal ever showed.
    #[track_caller]
    pub fn finish(mut self) -> Output {
        let ended = ends_within(self.child.id() as i32, DEADLINE);
        assert!(
            ended,
            "{} did not end; terminal:\n{}",
            self.words,
            self.screen.text()
        );
        let status = self.child.wait().expect("wait for a child that has ended");
        let stdout = self.screen.end(&self.words);
        Output {
            words: self.words.clone(),
            code: code(status),
            stdout,
            stderr: String::new(),
        }
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where `text` ends in `screen`, looking from byte `from` on.
fn end_of(text: &str, from: usize, screen: &str) -> Option<usize> {
    screen
        .get(from..)?
        .find(text)
        .map(|at| from + at + text.len())
}

fn set_size(terminal: &impl AsRawFd, rows: u16, columns: u16) {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads a winsize, and the fd is open while it is borrowed.
    let done = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &size) };
    assert_eq!(done, 0, "TIOCSWINSZ: {}", io::Error::last_os_error());
}
