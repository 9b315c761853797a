// SPDX-License-Identifier: Apache-2.0
//! containerd's client as a child process: its words, its output, its deadline.

use super::DEADLINE;
use super::capture::Capture;
use crate::{proc, wait};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A running ctr. Dropped, it is killed.
pub struct Ctr {
    words: String,
    child: Child,
    stdin: Option<ChildStdin>,
    pub stdout: Capture,
    pub stderr: Capture,
}

impl Ctr {
    pub fn spawn(mut command: Command, stdin: Stdio) -> Self {
        let words = words(&command);
        command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{words}: {e}"));
        let stdout = Capture::of(child.stdout.take().expect("piped"));
        let stderr = Capture::of(child.stderr.take().expect("piped"));
        Self {
            words,
            stdin: child.stdin.take(),
            child,
            stdout,
            stderr,
        }
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Types into its stdin.
    pub fn write(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("stdin is open");
        stdin
            .write_all(text.as_bytes())
            .unwrap_or_else(|e| panic!("stdin of {}: {e}", self.words));
    }

    pub fn close_stdin(&mut self) {
        self.stdin.take();
    }

    /// Waits for its end. Its stdin stays as it is until then.
    #[track_caller]
    pub fn finish(mut self) -> Output {
        if !ends_within(self.pid(), DEADLINE) {
            let (out, err) = (self.stdout.text(), self.stderr.text());
            panic!(
                "{}\ndid not end; stdout:\n{out}\nstderr:\n{err}",
                self.words
            );
        }
        let status = self.child.wait().expect("wait for a child that has ended");
        let stdout = self.stdout.end(&self.words);
        let stderr = self.stderr.end(&self.words);
        Output {
            words: self.words.clone(),
            code: code(status),
            stdout,
            stderr,
        }
    }
}

impl Drop for Ctr {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a command ended and what it wrote.
#[derive(Clone, Debug)]
pub struct Output {
    pub words: String,
    /// The exit code, or 128 + signal.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "exit code of {self}");
        self
    }

    #[track_caller]
    pub fn ok(self) -> Self {
        self.exits(0)
    }

    /// It failed, and said `text` on stderr.
    #[track_caller]
    pub fn fails_with(self, text: &str) -> Self {
        assert!(
            self.code != 0 && self.stderr.contains(text),
            "no error {text:?} from {self}"
        );
        self
    }

    #[track_caller]
    pub fn prints(self, stdout: &str) -> Self {
        assert_eq!(self.stdout, stdout, "stdout of {self}");
        self
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            words,
            code,
            stdout,
            stderr,
        } = self;
        write!(
            f,
            "{words}\nexit code {code}, stdout:\n{stdout}\nstderr:\n{stderr}"
        )
    }
}

/// The program and its arguments, for people.
pub fn words(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// As a shell counts: the exit code, or 128 + signal.
pub fn code(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Waits for the end of any process, reaped or not. True at once if there is none.
pub fn ends_within(pid: i32, limit: Duration) -> bool {
    let Ok(fd) = wait::pidfd(pid) else {
        return !proc::alive(pid);
    };
    readable_within(&fd, limit)
}

/// Waits until there is something to read, or, of a pidfd, until the process has ended.
pub fn readable_within(fd: &impl AsRawFd, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let mut poll = libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd, and the fd is open while it is borrowed.
        match unsafe { libc::poll(&mut poll, 1, left.as_millis() as i32) } {
            -1 | 0 if !left.is_zero() => {}
            ready => return ready > 0,
        }
    }
}
