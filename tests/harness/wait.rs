// SPDX-License-Identifier: Apache-2.0
//! Deadlines: every wait of a test is for a thing, and says what was missing when it expires.

use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::unix::pipe;

/// How long anything that is expected at all may take on a loaded machine, also in a VM there.
pub const DEADLINE: Duration = Duration::from_secs(40);

/// Waits for `thing`; panics with `what` after [`DEADLINE`].
pub async fn soon<T>(what: &str, thing: impl Future<Output = T>) -> T {
    within(DEADLINE, what, thing).await
}

/// Waits for `thing`; panics with `what` when `limit` has passed.
pub async fn within<T>(limit: Duration, what: &str, thing: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, thing).await {
        Ok(value) => value,
        Err(_) => panic!("not within {limit:?}: {what}"),
    }
}

/// Waits for a condition that nothing announces (a state in /proc, a counter of the kernel):
/// looks again every few milliseconds. Panics with what `look` last complained about.
pub async fn until<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        match look() {
            Ok(value) => return value,
            Err(e) if Instant::now() > end => panic!("not within {DEADLINE:?}: {what}: {e}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(3)).await,
        }
    }
}

/// [`until`], for a thread that is in no runtime.
#[track_caller]
pub fn until_within<T>(
    limit: Duration,
    what: &str,
    mut look: impl FnMut() -> Result<T, String>,
) -> T {
    let end = Instant::now() + limit;
    loop {
        match look() {
            Ok(value) => return value,
            Err(e) if Instant::now() > end => panic!("not within {limit:?}: {what}: {e}"),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Lets time pass. For outages, whose length is what they are; whatever else a test waits for is a
/// thing, see [`soon`].
pub fn pass(length: Duration) {
    std::thread::sleep(length);
}

/// A pidfd: readable once the process has ended, reaped or not.
pub fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and returns a new fd or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the fd is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The fd in this runtime's epoll, for reading.
pub fn watch(fd: OwnedFd) -> AsyncFd<OwnedFd> {
    // SAFETY: an OwnedFd is open, and the same, for as long as the AsyncFd owns it.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.expect("fd in epoll")
}

/// Waits until process `pid` has ended; a zombie has.
pub async fn ended(pid: i32) {
    soon(&format!("end of process {pid}"), async {
        match pidfd(pid) {
            Ok(fd) => {
                let _ = watch(fd).readable().await.expect("pidfd");
            }
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
            Err(e) => panic!("pidfd_open({pid}): {e}"),
        }
    })
    .await;
}

/// What a command left: how it ended, and all it wrote until *every* holder of its stdout and
/// stderr was gone (contract B36: a daemon must not keep them).
#[derive(Debug)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub pid: i32,
}

impl Output {
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// Runs `command` with `input` as its stdin, to its end; its process group is its own, as
/// containerd does for shims. With no `input`, stdin is /dev/null.
pub async fn output(mut command: Command, input: Option<&[u8]>) -> Output {
    let what = format!("{command:?}");
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    command.stdin(if input.is_some() {
        Stdio::piped()
    } else {
        Stdio::null()
    });
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{what}: {e}"));
    let pid = child.id() as i32;
    let mut stdin = child
        .stdin
        .take()
        .map(|fd| pipe::Sender::from_owned_fd(fd.into()).unwrap());
    let stdout = OwnedFd::from(child.stdout.take().expect("piped"));
    let stderr = OwnedFd::from(child.stderr.take().expect("piped"));
    let write = async {
        if let (Some(stdin), Some(input)) = (&mut stdin, input) {
            // A command may end without having read what it does not need.
            let _ = stdin.write_all(input).await;
        }
        drop(stdin.take());
    };
    let all = async {
        let ((), stdout, stderr) = tokio::join!(write, read_all(stdout), read_all(stderr));
        ended(pid).await;
        (stdout, stderr)
    };
    let Ok((stdout, stderr)) = tokio::time::timeout(DEADLINE, all).await else {
        let _ = child.kill();
        panic!("not within {DEADLINE:?}: {what} and the end of its output");
    };
    let status = child.wait().expect("wait for a child that has ended");
    Output {
        status,
        stdout,
        stderr,
        pid,
    }
}

async fn read_all(fd: OwnedFd) -> Vec<u8> {
    let mut receiver = pipe::Receiver::from_owned_fd(fd).expect("read end of a pipe");
    let mut bytes = Vec::new();
    receiver
        .read_to_end(&mut bytes)
        .await
        .expect("read of a pipe");
    bytes
}

/// Waits until `path` exists.
pub async fn exists(path: &Path) {
    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).expect("inotify");
    let dir = path.parent().expect("a file in a directory");
    let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
    inotify
        .add_watch(dir, flags)
        .unwrap_or_else(|e| panic!("watch {}: {e}", dir.display()));
    let inotify = watch(OwnedFd::from(inotify));
    soon(&format!("{} exists", path.display()), async {
        while std::fs::symlink_metadata(path).is_err() {
            let mut ready = inotify.readable().await.expect("inotify");
            let mut events = [0u8; 4096];
            let _ = nix::unistd::read(inotify.get_ref(), &mut events);
            ready.clear_ready();
        }
    })
    .await;
}

/// Sends `signal` to exactly this process.
pub fn signal(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill takes two integers.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The number of an fd, for command lines of children.
pub fn number(fd: &impl AsRawFd) -> i32 {
    fd.as_raw_fd()
}
