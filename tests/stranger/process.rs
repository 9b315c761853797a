// SPDX-License-Identifier: Apache-2.0
//! A process of a stranger's container: one that waits to be started, in another root directory.

use containerd_shim::protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim::protos::types::task::Status;
use nix::sys::signal::{Signal, kill as send};
use nix::unistd::Pid;
use oci_spec::runtime as oci;
use std::fs::OpenOptions;
use std::io::{self, PipeWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// It reads one line, and only then becomes the program. Its input is open for writing too: a client
/// that has nothing to say opens no FIFO, and who reads from it waits for ever.
///
/// Its arguments: the program's standard input, the root, the working directory there, and the
/// program's own.
const WAITS: &str = "read -r go && in=$1 root=$2 && shift 2 && exec chroot \"$root\" \
    /bin/sh -c 'cd \"$0\" && exec \"$@\"' \"$@\" <>\"$in\"";

/// A process, from its description to its exit.
pub struct Process {
    args: Vec<String>,
    env: Vec<String>,
    cwd: String,
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    /// 0 until it is created.
    pub pid: u32,
    /// Closed when it was started.
    gate: Option<PipeWriter>,
    started: bool,
    /// Its status, and when.
    pub exit: Option<(u32, Timestamp)>,
}

impl Process {
    pub fn new(spec: &oci::Process, stdin: &str, stdout: &str, stderr: &str) -> Self {
        Self {
            args: spec.args().clone().unwrap_or_default(),
            env: spec.env().clone().unwrap_or_default(),
            cwd: spec.cwd().display().to_string(),
            stdin: stdin.to_owned(),
            stdout: stdout.to_owned(),
            stderr: stderr.to_owned(),
            pid: 0,
            gate: None,
            started: false,
            exit: None,
        }
    }

    pub fn status(&self) -> Status {
        match (&self.exit, self.started) {
            (Some(_), _) => Status::STOPPED,
            (None, true) => Status::RUNNING,
            (None, false) => Status::CREATED,
        }
    }

    /// Makes the process, which waits.
    pub fn create(&mut self, root: &Path) -> io::Result<()> {
        let (reader, writer) = io::pipe()?;
        let stdin = match self.stdin.as_str() {
            "" => "/dev/null",
            path => path,
        };
        let mut command = Command::new("/bin/sh");
        command.args(["-c", WAITS, "sh", stdin]).arg(root);
        command.arg(&self.cwd).args(&self.args).env_clear();
        command.envs(self.env.iter().filter_map(|it| it.split_once('=')));
        let child = command
            .stdin(reader)
            .stdout(output(&self.stdout)?)
            .stderr(output(&self.stderr)?)
            .spawn()?;
        // `containerd-shim` waits for every child.
        self.pid = child.id();
        self.gate = Some(writer);
        Ok(())
    }

    /// Lets it become the program.
    pub fn start(&mut self) -> io::Result<()> {
        let mut gate = self
            .gate
            .take()
            .ok_or_else(|| io::Error::other("it is started"))?;
        self.started = true;
        gate.write_all(b"go\n")
    }
}

/// Where output goes: a file, or a FIFO, which is open for reading too, so that nobody waits for its
/// reader.
fn output(uri: &str) -> io::Result<Stdio> {
    let mut open = OpenOptions::new();
    let file = match uri.strip_prefix("file://") {
        Some(path) => open.append(true).create(true).open(path)?,
        None if uri.is_empty() => return Ok(Stdio::null()),
        None => open.read(true).write(true).open(uri)?,
    };
    Ok(file.into())
}

pub fn kill(pid: u32, signal: u32) -> nix::Result<()> {
    if pid == 0 {
        return Err(nix::errno::Errno::ESRCH);
    }
    send(Pid::from_raw(pid as i32), Signal::try_from(signal as i32)?)
}
