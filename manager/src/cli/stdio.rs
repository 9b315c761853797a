// SPDX-License-Identifier: Apache-2.0
//! The client's ends of a container's stdio: FIFOs in a directory of their own, and threads that
//! copy.
//!
//! Threads, because the client's own stdin, stdout and stderr may be anything, files too, which
//! no event loop can wait for. A client has nothing else to do.

use super::keys::{Keys, Matcher};
use crate::logfile::audience;
use nix::sys::stat::Mode;
use nix::sys::termios::{self, SetArg, Termios};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use tokio::sync::{mpsc, oneshot};

pub struct Stdio {
    dir: PathBuf,
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
}

/// What is being copied.
pub struct Copying {
    outputs: Vec<oneshot::Receiver<()>>,
    lost: mpsc::UnboundedReceiver<io::Error>,
    /// The keys were typed that part us from it.
    pub parted: Option<oneshot::Receiver<()>>,
    /// Our stdin has ended.
    pub input_ended: Option<oneshot::Receiver<()>>,
}

impl Stdio {
    /// Makes the FIFOs. A terminal has one output.
    ///
    /// # Errors
    /// A text, if they can't be made.
    pub fn new(interactive: bool, terminal: bool) -> Result<Self, String> {
        let template = std::env::temp_dir().join("dunnage-XXXXXX");
        let dir = nix::unistd::mkdtemp(&template).map_err(|e| format!("{template:?}: {e}"))?;
        let fifo = |name: &str, wanted: bool| {
            if !wanted {
                return Ok::<String, String>(String::new());
            }
            let path = dir.join(name);
            nix::unistd::mkfifo(&path, Mode::S_IRWXU).map_err(|e| format!("{path:?}: {e}"))?;
            Ok(path.display().to_string())
        };
        let (stdin, stdout) = (fifo("stdin", interactive)?, fifo("stdout", true)?);
        let stderr = fifo("stderr", !terminal)?;
        Ok(Self {
            dir,
            stdin,
            stdout,
            stderr,
        })
    }

    /// FIFOs that somebody made.
    pub fn of(stdin: String, stdout: String, stderr: String) -> Self {
        Self {
            dir: PathBuf::new(),
            stdin,
            stdout,
            stderr,
        }
    }

    /// Starts to copy. The outputs wait for the shim to open its ends.
    pub fn copy(&self) -> Copying {
        let mut outputs = Vec::new();
        let (tell_lost, lost) = mpsc::unbounded_channel();
        for (path, to_stdout) in [(&self.stdout, true), (&self.stderr, false)] {
            if path.is_empty() {
                continue;
            }
            let (done, ended) = oneshot::channel();
            let (path, tell_lost) = (path.clone(), tell_lost.clone());
            thread::spawn(move || {
                copy_output(Path::new(&path), to_stdout, &tell_lost);
                let _ = done.send(());
            });
            outputs.push(ended);
        }
        let input_ended = (!self.stdin.is_empty()).then(|| {
            let (done, ended) = oneshot::channel();
            let path = self.stdin.clone();
            thread::spawn(move || {
                let none = Matcher::new(Keys::default());
                let _ = copy_input(Path::new(&path), none);
                let _ = done.send(());
            });
            ended
        });
        Copying {
            outputs,
            lost,
            parted: None,
            input_ended,
        }
    }
}

/// Starts to copy what we hear of a container, and what we type to its FIFO, if it has one. If it is
/// told that we were cut off, that is output lost.
pub fn hear(mut client: UnixStream, stdin: &str, keys: Keys, cut_off_is_told: bool) -> Copying {
    let (tell_lost, lost) = mpsc::unbounded_channel();
    let (done, ended) = oneshot::channel();
    thread::spawn(move || {
        if let Err(e) = copy_heard(&mut client, &tell_lost)
            && cut_off_is_told
        {
            let why = format!("read too slowly, or its logger has ended: {e}");
            let _ = tell_lost.send(io::Error::other(why));
        }
        let _ = done.send(());
    });
    let (part, parted) = oneshot::channel();
    let input_ended = (!stdin.is_empty()).then(|| {
        let (done, ended) = oneshot::channel();
        let path = stdin.to_owned();
        thread::spawn(
            move || match copy_input(Path::new(&path), Matcher::new(keys)) {
                Ok(true) => drop(part.send(())),
                _ => drop(done.send(())),
            },
        );
        ended
    });
    Copying {
        outputs: vec![ended],
        lost,
        parted: Some(parted),
        input_ended,
    }
}

fn copy_heard(
    client: &mut UnixStream,
    tell_lost: &mpsc::UnboundedSender<io::Error>,
) -> io::Result<()> {
    let (mut part, mut is_lost) = ([0; audience::PART], false);
    while let Some((is_stderr, said)) = audience::next(client, &mut part)? {
        if !is_lost && let Err(e) = write_output(said, !is_stderr) {
            is_lost = true;
            let _ = tell_lost.send(e);
        }
    }
    Ok(())
}

impl Drop for Stdio {
    fn drop(&mut self) {
        if !self.dir.as_os_str().is_empty() {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

impl Copying {
    /// Waits for the end of all output.
    pub async fn drained(&mut self) {
        for output in &mut self.outputs {
            let _ = output.await;
        }
    }

    /// Waits until output can't be written to where ours goes; for ever, if all of it can.
    pub async fn lost(&mut self) -> io::Error {
        match self.lost.recv().await {
            Some(error) => error,
            None => std::future::pending().await,
        }
    }

    /// Whether some could not be, so far.
    pub fn was_lost(&mut self) -> Option<io::Error> {
        self.lost.try_recv().ok()
    }
}

/// What can't be written is read all the same, so that the process gets to its end.
fn copy_output(path: &Path, to_stdout: bool, tell_lost: &mpsc::UnboundedSender<io::Error>) {
    let Ok(mut fifo) = File::open(path) else {
        return;
    };
    let mut is_lost = false;
    let mut buffer = vec![0; 32 << 10];
    loop {
        let n = match fifo.read(&mut buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => return,
            Ok(n) => n,
        };
        if is_lost {
            continue;
        }
        if let Err(e) = write_output(&buffer[..n], to_stdout) {
            is_lost = true;
            let _ = tell_lost.send(e);
        }
    }
}

fn write_output(bytes: &[u8], to_stdout: bool) -> io::Result<()> {
    if !to_stdout {
        return io::stderr().write_all(bytes);
    }
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// True if the keys were typed.
fn copy_input(path: &Path, mut keys: Matcher) -> io::Result<bool> {
    let mut fifo = OpenOptions::new().write(true).open(path)?;
    let mut buffer = vec![0; 32 << 10];
    loop {
        // Not `io::copy`: what was typed must not wait for more.
        let n = io::stdin().lock().read(&mut buffer)?;
        if n == 0 {
            return Ok(false);
        }
        let (typed, are_typed) = keys.pass(&buffer[..n]);
        fifo.write_all(&typed)?;
        if are_typed {
            return Ok(true);
        }
    }
}

/// Our terminal in raw mode, until it is dropped.
pub struct Raw(Termios);

impl Raw {
    /// For a process that has a terminal, and before anything is copied: what is typed then is its own
    /// already. `None` if our stdin is none.
    pub fn of(terminal: bool) -> Option<Self> {
        terminal.then(Self::new).flatten()
    }

    fn new() -> Option<Self> {
        let old = termios::tcgetattr(io::stdin()).ok()?;
        let mut raw = old.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &raw).ok()?;
        Some(Self(old))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
    }
}

/// Columns and rows of our terminal.
pub fn window() -> Option<(u32, u32)> {
    crate::sys::window_size().map(|(columns, rows)| (columns.into(), rows.into()))
}
