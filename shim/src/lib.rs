// SPDX-License-Identifier: Apache-2.0
//! Being a containerd shim: everything between containerd and the Task engine.
//!
//! ```text
//!  containerd ── start ──> bootstrap ──spawns──> serve ── Task API ──> the kind's Daemon
//!             ── delete ─> delete ──> cleanup of the shim's kind      │
//!             <─ events ── publisher <─────────── outbox <────────────┘
//! ```
//!
//! `upgrade` has running shims become the binary it is itself, and `inspect` tells what they do: fleet
//! asks, upgrade and inspect answer.
//!
//! What differs between kinds of shims is in [`Shim`].

mod bootstrap;
mod daemon;
mod delete;
mod error;
mod flags;
mod fleet;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod inspect;
mod keeper;
mod lifeline;
mod log;
mod params;
mod publisher;
mod serve;
mod socket;
mod sys;
mod upgrade;

pub use daemon::Daemon;
pub use error::{Error, Result};
pub use fleet::socket_of;
pub use log::start_plain as start_log;
pub use params::Mounts;

use flags::{Flags, Stop};
use protos::task::DeleteResponse;
use protos::types::RuntimeInfo;
use protos::{Any, Message};
use std::future::Future;
use std::io::{self, Read, Write};
use std::pin::Pin;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;
use task::bundle::Bundle;
use task::handover::Engine;
use task::outbox::Outbox;
use task::reaper::Reaper;
use tokio::runtime::{Builder, LocalRuntime};

/// A kind of shim.
pub trait Shim {
    /// The runtime's name, as containerd's users write it.
    fn name(&self) -> &'static str;

    /// What an operator may type beside `upgrade`, and what it does.
    fn commands(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    /// What `-info` prints (contract B24).
    ///
    /// # Errors
    /// If the OCI runtime is not there.
    fn info(&self, options: Option<Any>) -> Result<RuntimeInfo>;

    /// Whether it makes sandboxes without a container: then there may be no config.json (contract S4).
    fn makes_sandboxes(&self) -> bool {
        false
    }

    /// What of a root filesystem's mounts it makes itself, which containerd would make else (contract N8).
    fn mounts(&self) -> Option<&'static Mounts> {
        None
    }

    /// How long the daemon's keeper waits for it to serve again after it was killed; `None`: nothing
    /// of it is kept, and all that it has started ends with it.
    fn outlives(&self) -> Option<Duration> {
        None
    }

    /// Whether this build can go on with what another process image has handed over.
    ///
    /// # Errors
    /// What it does not understand.
    fn understands(&self, engine: &Engine) -> task::Result<()>;

    /// What the daemon serves.
    ///
    /// # Errors
    /// If it can't be set up.
    fn daemon(
        &self,
        namespace: String,
        reaper: Rc<Reaper>,
        outbox: Rc<Outbox>,
    ) -> Result<Rc<dyn Daemon>>;

    /// Ends a container whose shim is gone, and leaves nothing of it (contract D2 to D4).
    fn cleanup<'a>(
        &'a self,
        namespace: &'a str,
        id: &'a str,
        bundle: &'a Bundle,
        reaper: Rc<Reaper>,
    ) -> Pin<Box<dyn Future<Output = Result<DeleteResponse>> + 'a>>;
}

/// Runs the command that the arguments name; the exit code is for containerd.
pub fn run(shim: &dyn Shim) -> ExitCode {
    sys::keep_heap_small();
    if let Err(e) = task::inherited::keep_from_children() {
        warn(&format!("inherited files: {e}"));
    }
    let args = std::env::args_os();
    let mut args = args.map(|arg| arg.to_string_lossy().into_owned());
    let program = args.next().unwrap_or_default();
    let program = program.rsplit('/').next().unwrap_or_default();
    let flags = match Flags::parse(args) {
        Ok(flags) => flags,
        Err(Stop::Help) => {
            complain(&flags::usage(program, shim.commands()));
            return ExitCode::SUCCESS;
        }
        Err(Stop::Bad(why)) => {
            complain(&format!(
                "{why}\n{}",
                flags::usage(program, shim.commands())
            ));
            return ExitCode::from(2);
        }
    };
    match command(shim, program, &flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            complain(&format!("{}: {e}", shim.name()));
            ExitCode::FAILURE
        }
    }
}

fn command(shim: &dyn Shim, program: &str, flags: &Flags) -> Result<()> {
    if flags.version {
        return print(version(program).as_bytes());
    }
    if flags.info {
        let mut stdin = Vec::new();
        io::stdin()
            .read_to_end(&mut stdin)
            .map_err(|e| Error::io("read", "stdin", e))?;
        let options = Any::decode(stdin.as_slice());
        let options = options.map_err(|e| Error::new(format!("options on stdin: {e}")))?;
        let options = Some(options).filter(|any| !any.type_url.is_empty());
        return print(&shim.info(options)?.encode_to_vec());
    }
    match flags.action.as_str() {
        flags::UPGRADE => return fleet::upgrade(program, flags),
        flags::INSPECT => return fleet::inspect(program, flags),
        "handover-check" => return upgrade::answer_check(shim),
        _ => {}
    }
    // B5: only what stands above does without a namespace.
    if flags.namespace.is_empty() {
        return Err(Error::new("shim namespace cannot be empty"));
    }
    match flags.action.as_str() {
        "start" => bootstrap::start(shim, flags),
        "delete" => delete::delete(shim, flags),
        keeper::KEEP => keeper::run(flags),
        _ => serve::serve(shim, flags),
    }
}

/// What `-v` prints: name, version and revision (B23).
fn version(program: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let revision = revision();
    format!("{program}:\n  Version:  {version}\n  Revision: {revision}\n\n")
}

/// Of this build, in one line.
fn version_and_revision() -> String {
    format!("{} {}", env!("CARGO_PKG_VERSION"), revision())
}

/// The commit this was built from, if the build said so.
pub fn revision() -> &'static str {
    match option_env!("DUNNAGE_REVISION") {
        Some(revision) if !revision.is_empty() => revision,
        _ => "unknown",
    }
}

/// One thread for everything.
fn runtime() -> Result<LocalRuntime> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_io_events_per_tick(64)
        .on_thread_park(task::peak::give_back)
        .build_local(Default::default());
    runtime.map_err(|e| Error::new(format!("set up the event loop: {e}")))
}

fn print(bytes: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
    written.map_err(|e| Error::io("write", "stdout", e))
}

/// Tells containerd's log of something odd, from a command that has no log of its own (D3).
pub fn warn(text: &str) {
    complain(&format!("{text}\n"));
}

fn complain(text: &str) {
    let _ = io::stderr().write_all(task::printable(text).as_bytes());
}
