// SPDX-License-Identifier: Apache-2.0
//! Replacing the binary under running containers: the daemon becomes another image of itself, in
//! the same process, and goes on where it was.
//!
//! ```text
//!  asked ──> check: does the new binary understand our state? ── no ──> refused, nothing happened
//!              │ yes
//!              v
//!            freeze: no new calls; those that run end, except those that only wait ── late ──> thaw
//!              │
//!              v
//!            hand over: state as JSON in fd 4, listener in fd 3, open files by number
//!              │
//!              v
//!            execve ──> the new image takes over ──> it answers who asked
//!              └─ fails ──> this image takes over what it has just handed over
//! ```

use crate::Shim;
use crate::error::{Error, Result};
use crate::flags::Flags;
use crate::sys;
use nix::sys::memfd::{MFdFlags, memfd_create};
use protos::operator::{UpgradeRequest, UpgradeResponse};
use protos::ttrpc::{Answer, Call, Context, MovedConnection, Request, Service, decode};
use protos::{Code, Message, Status};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::CString;
use std::fs::File;
use std::future::Future;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;
use task::Command;
use task::handover::Engine;
use task::oci::{Streams, command};
use task::reaper::Reaper;
use tokio::sync::{Notify, oneshot};

/// The fd at which the new image finds what was handed over.
pub const HANDOVER_FD: i32 = 4;
/// Counts the changes of [`Handover`] that an older or newer binary does not understand.
const FORMAT: u32 = 1;
/// How long the new binary may take to look at our state.
const CHECK: Duration = Duration::from_secs(10);

/// All that the next image must know.
#[derive(Serialize, Deserialize)]
pub struct Handover {
    format: u32,
    pub engine: Engine,
    /// Open connections, by fd.
    pub connections: Vec<(i32, MovedConnection)>,
    /// The numbers of files that a keeper has, if there is one.
    #[serde(default)]
    pub kept: Option<Vec<i32>>,
}

impl Handover {
    pub fn new(engine: Engine, connections: Vec<(i32, MovedConnection)>) -> Self {
        let format = FORMAT;
        Self {
            format,
            engine,
            connections,
            kept: None,
        }
    }

    /// # Errors
    /// If it is none, or of another format.
    pub fn read(from: impl Read) -> Result<Self> {
        let bad = |e| Error::new(format!("handover: {e}"));
        let handover: Self = serde_json::from_reader(io::BufReader::new(from)).map_err(bad)?;
        if handover.format != FORMAT {
            let text = format!("handover: format {}, not {FORMAT}", handover.format);
            return Err(Error::new(text));
        }
        Ok(handover)
    }

    pub fn write(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|e| Error::new(format!("handover: {e}")))
    }
}

/// Takes requests to upgrade, until somebody sees to them.
pub struct Upgrader {
    /// What came of the upgrade that made this image take over.
    outcome: std::result::Result<(), String>,
    asked: RefCell<VecDeque<Asked>>,
    news: Notify,
}

/// A request to become `binary`. Dropping it leaves the answer to the next image.
pub struct Asked {
    pub binary: PathBuf,
    answer: Option<oneshot::Sender<Status>>,
}

impl Asked {
    /// There will be no upgrade.
    pub fn refuse(self, why: &str) {
        log::warn!("upgrade to {} refused: {why}", self.binary.display());
        if let Some(answer) = self.answer {
            let _ = answer.send(Status::new(Code::FailedPrecondition, why));
        }
    }
}

impl Upgrader {
    pub fn new(outcome: std::result::Result<(), String>) -> Rc<Self> {
        Rc::new(Self {
            outcome,
            asked: RefCell::default(),
            news: Notify::new(),
        })
    }

    /// Waits for somebody to ask.
    pub async fn asked(&self) -> Asked {
        loop {
            if let Some(asked) = self.asked.borrow_mut().pop_front() {
                return asked;
            }
            self.news.notified().await;
        }
    }

    /// Asks for the binary at our own path: what a signal can say (SIGUSR2).
    pub fn ask_for_own_path(&self) {
        // The kernel marks the path of a file that was replaced.
        let path = std::env::current_exe().unwrap_or_default();
        let path = path.to_string_lossy();
        let path = path.strip_suffix(" (deleted)").unwrap_or(&path);
        self.ask(path.into(), None);
    }

    fn ask(&self, binary: PathBuf, answer: Option<oneshot::Sender<Status>>) {
        self.asked.borrow_mut().push_back(Asked { binary, answer });
        self.news.notify_one();
    }

    async fn upgrade(&self, request: Request) -> Answer {
        if request.method != UpgradeRequest::METHOD {
            return Err(Context::no_such_method(&request.method));
        }
        if request.moved {
            let failed = |why: &String| Status::new(Code::FailedPrecondition, why.as_str());
            self.outcome.as_ref().map_err(failed)?;
            let version = crate::version_and_revision();
            let answer = UpgradeResponse {
                pid: std::process::id(),
                version,
            };
            return Ok(answer.encode_to_vec());
        }
        let invalid = |text: String| Status::new(Code::InvalidArgument, text);
        let UpgradeRequest { binary } = decode(&request.payload)?;
        if !binary.starts_with('/') {
            return Err(invalid(format!("binary {binary:?} is no absolute path")));
        }
        let (answer, refusal) = oneshot::channel();
        self.ask(binary.into(), Some(answer));
        match refusal.await {
            Ok(status) => Err(status),
            // The upgrade is under way: the next image answers.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Service for Upgrader {
    fn call(self: Rc<Self>, request: Request) -> Pin<Box<dyn Future<Output = Answer>>> {
        Box::pin(async move { self.upgrade(request).await })
    }

    fn only_waits(&self, _: &str) -> bool {
        true
    }
}

/// Asks the binary whether it understands our state.
///
/// # Errors
/// If it does not, or does not say so within 10 s.
pub async fn check(binary: &Path, handover: &Handover, reaper: &Reaper) -> Result<()> {
    let mut new = Command::new(binary);
    new.args(["-namespace", "-", "handover-check"]);
    let streams = Streams::Fed(handover.write()?);
    let context = Context::background();
    match tokio::time::timeout(CHECK, command::run(reaper, new, streams, &context)).await {
        Ok(Ok(said)) if said.starts_with(b"handover understood") => Ok(()),
        Ok(Ok(_)) => Err(Error::new("it is no shim that can take over")),
        Ok(Err(failure)) => Err(Error::new(failure.to_string())),
        Err(_) => Err(Error::new("it did not look at the state within 10 s")),
    }
}

/// What the new binary says to [`check`].
///
/// # Errors
/// If it does not understand the state on stdin.
pub fn answer_check(shim: &dyn Shim) -> Result<()> {
    let handover = Handover::read(io::stdin())?;
    let understood = shim.understands(&handover.engine);
    understood.map_err(|e| Error::new(format!("handover: {e}")))?;
    crate::print(b"handover understood\n")
}

/// Becomes `binary`. Returns only if that fails. What the handover names by number must be open
/// still.
pub fn become_image(
    binary: &Path,
    flags: &Flags,
    listener: &UnixListener,
    keeper: Option<BorrowedFd<'_>>,
    handover: &Handover,
) -> Error {
    match try_become(binary, flags, listener, keeper, handover) {
        Ok(never) => match never {},
        Err(e) => Error::new(format!("become {}: {e}", binary.display())),
    }
}

/// Our environment, and what [`sys::keep_heap_small`] took from it: `NAME=value` each.
fn environment() -> impl Iterator<Item = Vec<u8>> {
    let tunables = sys::heap_tunables().map(|(name, value)| (name.into(), value.into()));
    let variables = std::env::vars_os().chain(tunables);
    variables.map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat())
}

fn try_become(
    binary: &Path,
    flags: &Flags,
    listener: &UnixListener,
    keeper: Option<BorrowedFd<'_>>,
    handover: &Handover,
) -> Result<std::convert::Infallible> {
    let failed = |e: io::Error| Error::new(e.to_string());
    let memory = memfd_create("handover", MFdFlags::MFD_CLOEXEC).map_err(|e| failed(e.into()))?;
    let mut memory = File::from(memory);
    memory.write_all(&handover.write()?).map_err(failed)?;
    memory.rewind().map_err(failed)?;
    let binary = binary.to_string_lossy().into_owned();
    let args = std::iter::once(binary).chain(flags.of_daemon(Some("resume")));
    let args: std::result::Result<Vec<_>, _> = args.map(CString::new).collect();
    let args = args.map_err(|e| Error::new(e.to_string()))?;
    // No memory of ours is at the handover's number: everything that was open is closed by now,
    // or kept under a higher one.
    let memory = sys::move_fd(memory.into(), HANDOVER_FD).map_err(failed)?;
    let survive = |fd: BorrowedFd<'_>, yes| sys::survive_exec(fd, yes).map_err(failed);
    survive(listener.as_fd(), true)?;
    survive(memory.as_fd(), true)?;
    if let Some(keeper) = keeper {
        survive(keeper, true)?;
    }
    let env: std::result::Result<Vec<_>, _> = environment().map(CString::new).collect();
    let env = env.map_err(|e| Error::new(e.to_string()))?;
    // The blocked signals do not change on the way; the limit on open files is raised anew, by
    // whoever knows how.
    task::sys::limits::restore_open_files().map_err(failed)?;
    let why = nix::unistd::execve(&args[0], &args, &env).map_err(|e| failed(e.into()));
    task::sys::limits::raise_open_files();
    survive(listener.as_fd(), false)?;
    if let Some(keeper) = keeper {
        survive(keeper, false)?;
    }
    why
}
