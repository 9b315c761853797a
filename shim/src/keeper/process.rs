// SPDX-License-Identifier: Apache-2.0
//! The keeper's process: what it keeps, and what it does when its daemon ends.

use super::{ADOPT, FORGET, KEEPER_FD, Word, pair};
use crate::bootstrap::LISTENER_FD;
use crate::error::{Error, Result};
use crate::flags::Flags;
use crate::sys;
use crate::upgrade::HANDOVER_FD;
use nix::cmsg_space;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use task::Command;
use task::sys::wait::{Ended, ExitStatus, reap};

/// How long what is killed may take to be gone.
const DYING: Duration = Duration::from_secs(5);
/// What `ps` shows, which tells it from its daemon.
const NAME: &std::ffi::CStr = c"shim-keeper";

struct Keeper {
    flags: Flags,
    exe: PathBuf,
    patience: Duration,
    listener: OwnedFd,
    socket: OwnedFd,
    signals: SignalFd,
    /// By the daemon's numbers, which are those of the fds here.
    files: BTreeMap<RawFd, OwnedFd>,
    state: Option<OwnedFd>,
    /// Its pid, once it is known, and whether it serves.
    daemon: u32,
    serves: bool,
    /// It has closed its end of the socket.
    said_all: bool,
    /// When the next daemon must serve.
    deadline: Option<Instant>,
}

/// What comes of the end of a daemon.
enum Next {
    Another,
    End,
}

/// Keeps what the daemon, this process's only child, says, and brings it back until it ends by itself.
///
/// # Errors
/// If it can't be kept.
pub fn run(flags: &Flags) -> Result<()> {
    let failed = |e: io::Error| Error::new(format!("keeper: {e}"));
    let patience = std::env::args().next_back();
    let patience = patience.and_then(|seconds| seconds.parse().ok());
    let patience = patience.ok_or_else(|| Error::new("keeper: for how many seconds?"))?;
    let mut keeper = Keeper::new(flags, Duration::from_secs(patience)).map_err(failed)?;
    let done = keeper.keep().map_err(failed);
    keeper.end_all();
    done
}

impl Keeper {
    fn new(flags: &Flags, patience: Duration) -> io::Result<Self> {
        nix::sys::prctl::set_name(NAME)?;
        nix::sys::prctl::set_child_subreaper(true)?;
        task::sys::limits::raise_open_files();
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGCHLD);
        signals.add(FORGET);
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&signals), None)?;
        let flags_of = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let exe = std::env::current_exe()?;
        Ok(Self {
            flags: flags.clone(),
            exe,
            patience,
            listener: task::sys::adopt(LISTENER_FD)?,
            socket: task::sys::adopt(KEEPER_FD)?,
            signals: SignalFd::with_flags(&signals, flags_of)?,
            files: BTreeMap::new(),
            state: None,
            daemon: 0,
            serves: false,
            said_all: false,
            deadline: None,
        })
    }

    /// # Errors
    /// From the kernel.
    fn keep(&mut self) -> io::Result<()> {
        loop {
            let timeout = self
                .deadline
                .map(|at| at.saturating_duration_since(Instant::now()));
            let timeout = match timeout {
                Some(left) => PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
                None => PollTimeout::NONE,
            };
            let mut ready = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            if !self.said_all {
                ready.push(PollFd::new(self.socket.as_fd(), PollFlags::POLLIN));
            }
            match poll(&mut ready, timeout) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
            self.hear()?;
            while let Some(signal) = self.signals.read_signal()? {
                if signal.ssi_signo == FORGET as u32 {
                    self.forget();
                }
            }
            match self.daemons_end()? {
                None => {}
                Some(Next::End) => return Ok(()),
                Some(Next::Another) => self.bring_back()?,
            }
        }
    }

    /// Hears all that the daemon has said.
    fn hear(&mut self) -> io::Result<()> {
        while !self.said_all {
            let mut bytes = [0; 16];
            let mut into = [IoSliceMut::new(&mut bytes)];
            let mut space = cmsg_space!([RawFd; 1]);
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
            let socket = self.socket.as_raw_fd();
            let message = match recvmsg::<()>(socket, &mut into, Some(&mut space), flags) {
                Ok(message) => message,
                Err(nix::Error::EAGAIN) => return Ok(()),
                Err(nix::Error::EINTR) => continue,
                Err(nix::Error::ECONNRESET) => {
                    self.said_all = true;
                    continue;
                }
                Err(e) => return Err(e.into()),
            };
            let length = message.bytes;
            let file = message.cmsgs()?.find_map(|part| match part {
                ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
                _ => None,
            });
            let file = file.map(task::sys::adopt).transpose()?;
            match length {
                0 => self.said_all = true,
                _ => self.heard(Word::read(&bytes[..length]), file)?,
            }
        }
        Ok(())
    }

    fn heard(&mut self, word: Option<(Word, u32)>, file: Option<OwnedFd>) -> io::Result<()> {
        match (word, file) {
            (Some((Word::Serves, pid)), _) => {
                self.daemon = pid;
                self.serves = true;
                self.deadline = None;
            }
            (Some((Word::Keep, number)), Some(file)) => {
                let number = number.cast_signed();
                // Under this number there is nothing but what it has given that itself.
                self.files.remove(&number);
                self.files.insert(number, sys::move_fd(file, number)?);
            }
            (Some((Word::Close, number)), _) => drop(self.files.remove(&number.cast_signed())),
            (Some((Word::State, _)), Some(file)) => self.state = Some(file),
            (Some((Word::Nothing, _)), _) => self.state = None,
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
        Ok(())
    }

    fn forget(&mut self) {
        self.state = None;
        self.files.clear();
    }

    /// Whether the daemon has ended, and what follows. Others that have ended stay zombies while there
    /// is a state that may name them. Whoever is reaped is looked at: between two questions the daemon
    /// may have ended, too.
    fn daemons_end(&mut self) -> io::Result<Option<Next>> {
        loop {
            let known = (self.daemon != 0).then_some(self.daemon);
            let only = known.filter(|_| self.state.is_some());
            let Some((pid, Ended { status, .. })) = reap(only)? else {
                return Ok(None);
            };
            // What it said last is here by now, and so is who it is.
            self.hear()?;
            if self.daemon == 0 || self.daemon == pid {
                return Ok(Some(self.next(status)));
            }
        }
    }

    fn next(&self, status: ExitStatus) -> Next {
        match status {
            ExitStatus::Code(0) => Next::End,
            _ if self.state.is_some() && self.serves => Next::Another,
            _ => Next::End,
        }
    }

    /// Starts the next daemon, with all that is kept. It is the binary that has our path by now.
    fn bring_back(&mut self) -> io::Result<()> {
        let Some(state) = &self.state else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let (ours, daemons) = pair()?;
        let again = |fd: BorrowedFd<'_>| fd.try_clone_to_owned();
        rewind(state)?;
        let path = self.exe.to_string_lossy();
        let path = path.strip_suffix(" (deleted)").unwrap_or(&path);
        let mut command = Command::new(path);
        command
            .args(self.flags.of_daemon(Some(ADOPT)))
            .envs(sys::heap_tunables())
            .file(LISTENER_FD, again(self.listener.as_fd())?)
            .file(HANDOVER_FD, again(state.as_fd())?)
            .file(KEEPER_FD, daemons)
            .die_with_parent();
        for (&number, file) in &self.files {
            command.file(number, again(file.as_fd())?);
        }
        // Why it executes nothing shows by its end.
        let (pid, _) = command.spawn()?;
        drop(command);
        self.daemon = pid;
        self.serves = false;
        self.said_all = false;
        self.socket = ours;
        self.deadline = Some(Instant::now() + self.patience);
        Ok(())
    }

    /// Kills what the last daemon has left that is a machine's, which is alone in a pid namespace, and
    /// waits until it is gone.
    fn end_all(&mut self) {
        self.forget();
        let deadline = Instant::now() + DYING;
        let own = fs::read_link("/proc/self/ns/pid").ok();
        loop {
            while reap(None).is_ok_and(|reaped| reaped.is_some()) {}
            let children = children();
            let machines = children.into_iter().filter(|pid| {
                let link = fs::read_link(format!("/proc/{pid}/ns/pid"));
                *pid == self.daemon || link.is_ok_and(|link| Some(link) != own)
            });
            let mut left = 0;
            for pid in machines {
                left += 1;
                let _ = task::sys::kill(pid, libc::SIGKILL.cast_unsigned());
            }
            if left == 0 || Instant::now() > deadline {
                return;
            }
            let mut ended = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            let left = deadline.saturating_duration_since(Instant::now());
            let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            let _ = poll(&mut ended, left);
            while self.signals.read_signal().is_ok_and(|it| it.is_some()) {}
        }
    }
}

/// The children of this process, ended or not.
fn children() -> Vec<u32> {
    let own = std::process::id();
    let all = task::proc::all().into_iter().flatten();
    all.filter(|&pid| task::proc::parent(pid) == Some(own))
        .collect()
}

fn rewind(file: &OwnedFd) -> io::Result<()> {
    use std::io::Seek;
    fs::File::from(file.try_clone()?).rewind()
}
