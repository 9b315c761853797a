// SPDX-License-Identifier: Apache-2.0
//! An exec without an OCI runtime, where the outcome is the same to the last detail: a helper joins the
//! container and executes the program ([`enter`]). Where it may not be the same ([`request`]), and
//! whenever the helper fails, the OCI runtime is asked; so every error is the runtime's own.
//!
//! `DUNNAGE_DIRECT_EXEC=1` turns it on. What it does not do: terminals, seccomp filters, labels of LSMs,
//! user and time namespaces, and whatever else of a spec it does not know.

pub mod enter;
mod request;

pub use request::Made;

use super::command;
use super::failure::Failure;
use super::{Cli, Oci, Streams};
use crate::aside;
use crate::cgroup::{self, Cgroup};
use crate::command::Command;
use crate::container::Container;
use crate::foreign::{SPEC, read_whole};
use crate::handover;
use crate::json;
use crate::service::Engine;
use crate::state::State;
use crate::sys;
use crate::tally;
use crate::trace::{Kind, Span};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use protos::ttrpc::Context;
use request::Request;
pub(super) use request::Terms;
use serde_json::Value;
use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

const SWITCH: &str = "DUNNAGE_DIRECT_EXEC";
const ACTION: &str = "direct exec";
/// Signals up to SIGSYS, and the one that a Rust program ignores, SIGPIPE.
const NAMED: u64 = (1 << 31) - 1;
const OF_RUST: u64 = 1 << (libc::SIGPIPE - 1);
/// So many programs are told apart without being asked again.
const KINDS: usize = 16;
/// The most that a helper answers, in bytes.
const ANSWER: usize = 4096;

/// This program, for the helper, on a mount that nobody can write through: what a container executes may
/// be a script whose interpreter is `/proc/self/exe`, which is the helper then (CVE-2019-5736).
pub struct Direct {
    program: OwnedFd,
    /// Of OCI runtimes' programs, which they are.
    kinds: RefCell<Vec<(String, Program)>>,
}

/// Whose execs these are to be the same as.
#[derive(Clone, Copy, PartialEq)]
enum Program {
    Runc,
    Crun,
    /// Whatever that is.
    Other,
}

impl Direct {
    /// If an operator has turned it on, and this kernel can do it (mount_setattr(2), Linux 5.12).
    pub fn wanted() -> Option<Self> {
        if std::env::var_os(SWITCH).is_none_or(|value| value != "1") {
            return None;
        }
        // Of what a process was told to ignore a runtime passes some on and some not.
        let ignored = ignored_signals();
        if ignored & !OF_RUST != 0 {
            log::warn!(
                "{SWITCH}: signals are ignored here ({ignored:#x}): the OCI runtime makes execs"
            );
            return None;
        }
        let program = protected_program();
        let warn = |e: &io::Error| log::warn!("{SWITCH}: {e}: the OCI runtime makes execs");
        let program = program.inspect_err(warn).ok()?;
        let kinds = RefCell::default();
        Some(Self { program, kinds })
    }

    /// Which runtime the program `binary` is, by what it says of itself: a name may be a link.
    async fn kind(&self, cli: &Cli, context: &Context) -> Program {
        let binary = cli.binary();
        let known = |kinds: &Vec<(String, Program)>| {
            let known = kinds.iter().find(|(name, _)| name == binary);
            known.map(|(_, kind)| *kind)
        };
        if let Some(kind) = known(&self.kinds.borrow()) {
            return kind;
        }
        let said = cli.version(context).await.unwrap_or_default();
        let kind = match said.split(|&byte| byte == b' ').next() {
            Some(b"runc") => Program::Runc,
            Some(b"crun") => Program::Crun,
            _ => Program::Other,
        };
        let mut kinds = self.kinds.borrow_mut();
        if kinds.len() < KINDS && known(&kinds).is_none() {
            kinds.push((binary.to_owned(), kind));
        }
        kind
    }

    /// The helper's command; `answer` is for it to write to.
    fn command(&self, request: OwnedFd, init: OwnedFd, answer: OwnedFd) -> Command {
        let mut command = Command::new(format!("/proc/self/fd/{}", self.program.as_raw_fd()));
        command.arg0(enter::NAME).env_clear().current_dir("/");
        command
            .file(enter::REQUEST, request)
            .file(enter::INIT, init)
            .file(enter::ANSWER, answer);
        command
    }
}

/// The signals that this process ignores, a bit for each (proc_pid_status(5), SigIgn), without those that
/// have no name.
fn ignored_signals() -> u64 {
    let status = crate::proc::text("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let all = line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    all.unwrap_or(u64::MAX) & NAMED
}

fn protected_program() -> io::Result<OwnedFd> {
    /// The helper has others below.
    const ABOVE: i32 = 16;
    let mount = sys::clone_mount(Path::new("/proc/self/exe"), false)?;
    let flags = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID;
    sys::restrict_mount(std::os::fd::AsFd::as_fd(&mount), flags, false)?;
    let number = fcntl(&mount, FcntlArg::F_DUPFD_CLOEXEC(ABOVE))?;
    sys::adopt(number)
}

/// What a request is made of, beside the loop.
struct Draft {
    config: PathBuf,
    spec: Vec<u8>,
    init: u32,
    cgroup: handover::Cgroup,
    keyring: Option<String>,
    is_crun: bool,
}

impl Draft {
    /// The terms, which are read once, and the request, or why there is none.
    fn request(self, known: Option<Terms>) -> (Result<Terms, String>, Result<Request, String>) {
        let terms = match known {
            Some(terms) => Ok(terms),
            None => terms_of(&self.config),
        };
        let request = terms.as_ref().map_err(Clone::clone).and_then(|terms| {
            let process: Value = json::read(&self.spec).map_err(|e| e.to_string())?;
            // An OCI runtime goes to where it has put the container, wherever that has gone since.
            let cgroup = Cgroup::take_over(self.cgroup);
            if !cgroup.has(self.init) || cgroup.is_frozen() {
                return Err("init has moved to another cgroup, or is frozen".into());
            }
            Ok(Request {
                cgroups: cgroup::joins(self.init)?,
                keyring: self.keyring,
                streams_have_group: self.is_crun,
                ..terms.request(&process)?
            })
        });
        (terms, request)
    }
}

fn terms_of(config: &Path) -> Result<Terms, String> {
    let named = |e: &dyn std::fmt::Display| format!("{}: {e}", config.display());
    let json = read_whole(config, SPEC).map_err(|e| named(&e))?;
    let config: Value = json::read_first(&json).map_err(|e| named(&e))?;
    Terms::of(&config)
}

impl Container<Oci> {
    /// Makes the process of an exec with this spec and these streams; `None`: that is the OCI runtime's.
    ///
    /// # Errors
    /// That the caller does not wait any longer.
    pub(super) async fn make_directly(
        &self,
        engine: &Engine<Oci>,
        exec: &str,
        spec: &[u8],
        streams: &Streams,
        context: &Context,
    ) -> Result<Option<Made>, Failure> {
        let (Some(direct), Streams::Given(streams)) = (&engine.runtime.direct, streams) else {
            return Ok(None);
        };
        let began = Instant::now();
        let span = Span::of(context, ACTION, Kind::Client);
        let context = &span.context(context);
        let made = self.ask_helper(engine, direct, spec, streams, context);
        let made = made.await;
        span.done(&made);
        match made {
            Ok(made) => {
                tally::runtime(ACTION, began.elapsed(), false);
                Ok(Some(made))
            }
            Err(Refusal::GivenUp(failure)) => Err(failure),
            Err(Refusal::Runtimes(why)) => {
                log::debug!("{} {exec}: made by the OCI runtime: {why}", self.id);
                Ok(None)
            }
        }
    }

    async fn ask_helper(
        &self,
        engine: &Engine<Oci>,
        direct: &Direct,
        spec: &[u8],
        streams: &[OwnedFd; 3],
        context: &Context,
    ) -> Result<Made, Refusal> {
        let kind = direct.kind(&self.own.cli, context).await;
        let request = self.request(spec, kind).await?;
        let memory = memfd_create("request", MFdFlags::MFD_CLOEXEC).map_err(io::Error::from)?;
        let mut memory = File::from(memory);
        memory.write_all(&serde_json::to_vec(&request).map_err(io::Error::other)?)?;
        memory.rewind()?;
        let (answer, say) = io::pipe()?;
        fcntl(&answer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(io::Error::from)?;
        let init = sys::pidfd(self.init.pid.get())?;
        let command = direct.command(memory.into(), init, say.into());
        let [stdin, stdout, stderr] = streams;
        let streams = [stdin.try_clone()?, stdout.try_clone()?, stderr.try_clone()?];
        let reaper = &engine.runtime.reaper;
        let done = command::run(reaper, command, Streams::Given(streams), context).await;
        // All of it is there: who wrote it has ended.
        let mut said = [0; ANSWER];
        let length = { &answer }.read(&mut said).unwrap_or(0);
        let said = &said[..length];
        match done {
            Ok(_) => Ok(serde_json::from_slice(said).map_err(io::Error::other)?),
            Err(failure) if failure.is_given_up() => Err(Refusal::GivenUp(failure)),
            Err(failure) => {
                let said = String::from_utf8_lossy(said);
                Err(Refusal::Runtimes(format!("{said} ({failure})")))
            }
        }
    }

    async fn request(&self, spec: &[u8], kind: Program) -> Result<Request, Refusal> {
        let own = &self.own;
        let cgroup = own.cgroup.borrow().as_ref().map(|it| it.hand_over());
        let may = self.init.state.get() == State::Running && kind != Program::Other;
        let Some(cgroup) = cgroup.filter(|_| may && !self.last_exit.init_exited()) else {
            return Err(Refusal::Runtimes("of the state of its container".into()));
        };
        let known = own.direct.borrow().clone();
        let known = known.transpose().map_err(Refusal::Runtimes)?;
        // crun gives none to an exec.
        let is_crun = kind == Program::Crun;
        let has_keyring = !is_crun && !own.options.no_new_keyring;
        let draft = Draft {
            config: self.bundle.path().join("config.json"),
            spec: spec.to_owned(),
            init: self.init.pid.get(),
            cgroup,
            keyring: has_keyring.then(|| format!("_ses.{}", self.id)),
            is_crun,
        };
        let (terms, request) = aside::run(move || draft.request(known)).await;
        own.direct.replace(Some(terms));
        request.map_err(Refusal::Runtimes)
    }
}

/// Why there is no process.
enum Refusal {
    /// The OCI runtime is to make it.
    Runtimes(String),
    GivenUp(Failure),
}

impl From<io::Error> for Refusal {
    fn from(e: io::Error) -> Self {
        Self::Runtimes(e.to_string())
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Runtimes(why) => f.write_str(why),
            Self::GivenUp(failure) => failure.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CVE-2019-5736: through the helper's `/proc/self/exe` nobody writes to the shim's program.
    #[test]
    fn nobody_writes_to_the_helpers_program() {
        let program = protected_program().unwrap();
        assert!(program.as_raw_fd() >= 16);
        // Now it could not be opened anyway: it is being executed.
        let flags = nix::sys::statvfs::fstatvfs(&program).unwrap().flags();
        assert!(flags.contains(nix::sys::statvfs::FsFlags::ST_RDONLY));
    }
}
