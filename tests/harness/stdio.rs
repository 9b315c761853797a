// SPDX-License-Identifier: Apache-2.0
//! The client's ends of a container's FIFOs, opened the way containerd's client opens them.

use crate::wait;
use protos::task::{CreateTaskRequest, ExecProcessRequest};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;

/// Makes a FIFO with containerd's mode.
pub fn mkfifo(path: &Path) {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU)
        .unwrap_or_else(|e| panic!("mkfifo {}: {e}", path.display()));
}

/// A FIFO on disk.
#[derive(Clone, Debug)]
pub struct Fifo {
    path: PathBuf,
}

impl Fifo {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        mkfifo(&path);
        Self { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// As a field of a request.
    pub fn name(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }

    /// The reading end, O_RDONLY|O_NONBLOCK: sees EOF when the last of the writers that came
    /// after it has gone.
    pub fn reader(&self) -> Reader {
        let end = pipe::OpenOptions::new().open_receiver(&self.path);
        Reader {
            end: end.unwrap_or_else(|e| panic!("{}: {e}", self.path.display())),
            name: self.name(),
        }
    }

    /// The writing end, once there is a reader.
    pub async fn writer(&self) -> Writer {
        let open = || {
            pipe::OpenOptions::new()
                .open_sender(&self.path)
                .map_err(|e| e.to_string())
        };
        let end = wait::until(&format!("a reader of {}", self.path.display()), open).await;
        Writer {
            end,
            name: self.name(),
        }
    }

    /// Both ends at once: never EOF, never ENXIO. For gates.
    pub fn gate(&self) -> (pipe::Sender, pipe::Receiver) {
        let mut open = pipe::OpenOptions::new();
        open.read_write(true);
        let what = |e| panic!("{}: {e}", self.path.display());
        let sender = open.open_sender(&self.path).unwrap_or_else(what);
        let what = |e| panic!("{}: {e}", self.path.display());
        (sender, open.open_receiver(&self.path).unwrap_or_else(what))
    }
}

/// The client's end of a stdout or stderr.
pub struct Reader {
    end: pipe::Receiver,
    name: String,
}

/// How much came, and its SHA-256.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sum {
    pub bytes: u64,
    pub sha256: String,
}

impl Sum {
    /// Of bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.len() as u64,
            sha256: hex(&Sha256::digest(bytes)),
        }
    }
}

impl Reader {
    /// Everything up to EOF.
    pub async fn to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let what = format!("EOF on {}", self.name);
        wait::soon(&what, self.end.read_to_end(&mut bytes))
            .await
            .expect("read of a FIFO");
        bytes
    }

    /// Everything up to EOF, as text.
    pub async fn text(&mut self) -> String {
        String::from_utf8_lossy(&self.to_end().await).into_owned()
    }

    /// Size and checksum of everything up to EOF.
    pub async fn sum(&mut self) -> Sum {
        let mut hasher = Sha256::new();
        let mut bytes = 0;
        let mut buffer = vec![0u8; 64 << 10];
        let what = format!("EOF on {}", self.name);
        let copy = async {
            loop {
                match self.end.read(&mut buffer).await.expect("read of a FIFO") {
                    0 => break,
                    n => {
                        hasher.update(&buffer[..n]);
                        bytes += n as u64;
                    }
                }
            }
        };
        wait::within(wait::DEADLINE * 3, &what, copy).await;
        Sum {
            bytes,
            sha256: hex(&hasher.finalize()),
        }
    }

    /// Reads until what was read ends with `end`.
    pub async fn until(&mut self, end: &str) -> String {
        let mut bytes = Vec::new();
        let read = async {
            let mut byte = [0u8; 1];
            while !bytes.ends_with(end.as_bytes()) {
                if self.end.read(&mut byte).await.expect("read of a FIFO") == 0 {
                    return false;
                }
                bytes.push(byte[0]);
            }
            true
        };
        let found = tokio::time::timeout(wait::DEADLINE, read).await;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        match found {
            Ok(true) => text,
            Ok(false) => panic!("EOF on {} before {end:?}, after {text:?}", self.name),
            Err(_) => panic!(
                "no {end:?} on {} within {:?}, but {text:?}",
                self.name,
                wait::DEADLINE
            ),
        }
    }

    /// Reads one line, its end taken off.
    pub async fn line(&mut self) -> String {
        self.until("\n")
            .await
            .trim_end_matches(['\r', '\n'])
            .to_owned()
    }

    /// What is there now, without waiting; `None` at EOF.
    pub fn now(&self) -> Option<Vec<u8>> {
        let mut buffer = vec![0u8; 64 << 10];
        match self.end.try_read(&mut buffer) {
            Ok(0) => None,
            Ok(n) => Some(buffer[..n].to_vec()),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Some(Vec::new()),
            Err(e) => panic!("{}: {e}", self.name),
        }
    }
}

/// The client's end of a stdin.
pub struct Writer {
    end: pipe::Sender,
    name: String,
}

impl Writer {
    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        let what = format!("room in {}", self.name);
        wait::soon(&what, self.end.write_all(bytes.as_ref()))
            .await
            .expect("write to a FIFO");
    }
}

/// The FIFOs of one process, in a directory of their own as containerd's client makes them.
#[derive(Clone, Debug)]
pub struct Fifos {
    pub stdin: Fifo,
    pub stdout: Fifo,
    pub stderr: Fifo,
}

impl Fifos {
    pub fn new(dir: PathBuf) -> Self {
        fs::create_dir_all(&dir).expect("directory for FIFOs");
        let fifo = |name: &str| Fifo::new(dir.join(name));
        Self {
            stdin: fifo("stdin"),
            stdout: fifo("stdout"),
            stderr: fifo("stderr"),
        }
    }

    /// The client's ends of stdout and stderr.
    pub fn readers(&self) -> (Reader, Reader) {
        (self.stdout.reader(), self.stderr.reader())
    }
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// `sha256` of a text, as shims name their sockets.
pub fn sha256(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

/// A Create or Exec, and the names of its stdio.
pub trait Stdio: Sized {
    /// With these names; empty for none.
    fn stdio(self, stdin: &str, stdout: &str, stderr: &str) -> Self;

    /// A terminal is to be made.
    fn tty(self) -> Self;

    /// With all three FIFOs.
    fn fifos(self, fifos: &Fifos) -> Self {
        self.stdio(
            &fifos.stdin.name(),
            &fifos.stdout.name(),
            &fifos.stderr.name(),
        )
    }

    /// With stdout and stderr.
    fn output(self, fifos: &Fifos) -> Self {
        self.stdio("", &fifos.stdout.name(), &fifos.stderr.name())
    }

    /// With a terminal, which has no stderr.
    fn terminal(self, fifos: &Fifos) -> Self {
        self.stdio(&fifos.stdin.name(), &fifos.stdout.name(), "")
            .tty()
    }
}

impl Stdio for CreateTaskRequest {
    fn stdio(mut self, stdin: &str, stdout: &str, stderr: &str) -> Self {
        (self.stdin, self.stdout, self.stderr) = (stdin.into(), stdout.into(), stderr.into());
        self
    }

    fn tty(mut self) -> Self {
        self.terminal = true;
        self
    }
}

impl Stdio for ExecProcessRequest {
    fn stdio(mut self, stdin: &str, stdout: &str, stderr: &str) -> Self {
        (self.stdin, self.stdout, self.stderr) = (stdin.into(), stdout.into(), stderr.into());
        self
    }

    fn tty(mut self) -> Self {
        self.terminal = true;
        self
    }
}
