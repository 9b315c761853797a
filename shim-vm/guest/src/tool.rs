// SPDX-License-Identifier: Apache-2.0
//! A program of the host's that an operator runs in the guest, outside of its containers: it comes over
//! one stream of the link, and speaks over another.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use protos::guest::RunRequest;
use protos::mux::Stream;
use protos::{Code, Status};
use std::cell::Cell;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;
use task::Command;
use task::reaper::Reaper;
use task::relay::Relay;
use task::stdio::Parked;
use tokio::io::AsyncReadExt;

/// Where they are, until they run.
const DIR: &str = "/run/tools";
/// The most that a program may have, in bytes.
const MOST: usize = 64 << 20;

/// Runs them, each under a name of its own.
pub struct Tools {
    reaper: Rc<Reaper>,
    parked: Rc<Parked>,
    number: Cell<u64>,
}

impl Tools {
    pub fn new(reaper: Rc<Reaper>, parked: Rc<Parked>) -> Self {
        let number = Cell::default();
        Self {
            reaper,
            parked,
            number,
        }
    }

    /// Runs one to its end; its status. It ends, too, when nobody is there any more to speak with.
    ///
    /// # Errors
    /// If it can't run.
    pub async fn run(&self, request: &RunRequest) -> Result<u32, Status> {
        let failed = |e: io::Error| {
            let name = request.arguments.first().map_or("", String::as_str);
            Status::new(Code::Unknown, format!("run {name:?} in the guest: {e}"))
        };
        let none = || failed(io::Error::other("its streams are not there"));
        let program = self.parked.take_number(request.program).ok_or_else(none)?;
        let stream = self.parked.take_number(request.stream).ok_or_else(none)?;
        self.number.set(self.number.get() + 1);
        let path = Path::new(DIR).join(self.number.get().to_string());
        let ran = async {
            receive(program, &path).await?;
            self.execute(&path, request, stream).await
        };
        let ran = ran.await;
        let _ = fs::remove_file(&path);
        ran.map_err(failed)
    }

    async fn execute(&self, path: &Path, request: &RunRequest, stream: Stream) -> io::Result<u32> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let theirs = std::os::fd::OwnedFd::from(theirs);
        let mut command = Command::new(path);
        let mut arguments = request.arguments.iter();
        if let Some(name) = arguments.next() {
            command.arg0(name);
        }
        command
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", "/root")
            .current_dir("/")
            .stdin(theirs.try_clone()?)
            .stdout(theirs.try_clone()?)
            .stderr(theirs)
            .lead_group();
        let (mut child, not_executed) = self.reaper.spawn(&command)?;
        drop(command);
        not_executed.settled().await?;
        fs::remove_file(path)?;
        let relay = Relay::new(ours.into(), stream)?;
        if relay.until_said().await.is_err() {
            // Nobody hears it any more.
            let _ = kill(Pid::from_raw(-child.pid.cast_signed()), Signal::SIGKILL);
        }
        Ok(child.exit().await.number())
    }
}

/// Writes a program to `path` as it comes.
async fn receive(mut from: Stream, path: &Path) -> io::Result<()> {
    fs::create_dir_all(DIR)?;
    let new = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o700)
        .open(path);
    let mut file = new?;
    let mut buffer = vec![0; 16 << 10];
    let mut all = 0;
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            // Both ways have ended.
            from.end();
            return Ok(());
        }
        all += n;
        if all > MOST {
            return Err(io::Error::other(format!("it has more than {MOST} bytes")));
        }
        file.write_all(&buffer[..n])?;
    }
}
