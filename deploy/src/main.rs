//! `dunnage-node install|uninstall`: puts the shims on a node, where containerd serves Kubernetes,
//! and takes them off again, with no pod touched.
//!
//! ```text
//! main    what was asked for, and the two orders of doing it
//! files   the programs and the guest image: whole or not at all
//! config  containerd's configuration: a block of text, or a file that it imports
//! daemon  the processes that matter: containerd, and shims of ours
//! ```
//! It runs as a container that sees a few of the node's directories below `--root`, and needs no shell.

mod arguments;
mod config;
mod daemon;
mod failure;
mod files;

use arguments::{Action, Arguments};
use failure::{Failure, Result};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(e) => {
            say(&format!("dunnage-node: {e}\n{}", arguments::USAGE));
            return ExitCode::from(2);
        }
    };
    let done = match arguments.action {
        Action::Version => {
            say(concat!("dunnage-node ", env!("CARGO_PKG_VERSION")));
            Ok(())
        }
        Action::Install => install(&arguments),
        Action::Uninstall => uninstall(&arguments),
    };
    match done.and_then(|()| {
        if arguments.stay {
            daemon::stay()
        } else {
            Ok(())
        }
    }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            say(&format!("dunnage-node: {e}"));
            ExitCode::FAILURE
        }
    }
}

/// The programs first: what the configuration names must be there.
fn install(arguments: &Arguments) -> Result<()> {
    let changed = files::install(&arguments.from, &arguments.place())?;
    say(&format!(
        "{}: {changed} files are new",
        arguments.to.display()
    ));
    let vm = arguments.vm();
    say(&format!("containers in VMs: {vm}"));
    let changed = config::register(arguments)?;
    told_and_restarted(arguments, changed)
}

/// Nothing, as long as somebody uses it: containerd runs no exec in a pod whose runtime it does not
/// know. Then the configuration: nothing new may begin with what is removed.
fn uninstall(arguments: &Arguments) -> Result<()> {
    nobody_uses(&arguments.to)?;
    let changed = config::forget(arguments)?;
    told_and_restarted(arguments, changed)?;
    // Who was faster.
    nobody_uses(&arguments.to)?;
    files::remove(&arguments.place())?;
    say(&format!("{}: removed", arguments.to.display()));
    Ok(())
}

fn nobody_uses(place: &Path) -> Result<()> {
    match daemon::users_of(&place.join("bin"))? {
        0 => Ok(()),
        users => {
            let why = format!("processes run from {}: {users}", place.display());
            Err(Failure::InUse(why))
        }
    }
}

fn told_and_restarted(arguments: &Arguments, changed: bool) -> Result<()> {
    let what = match (changed, arguments.restart) {
        (false, _) => "is as it was",
        (true, false) => "is changed: restart containerd",
        (true, true) => "is changed: containerd is restarted",
    };
    say(&format!("{}: {what}", arguments.config.display()));
    if changed && arguments.restart {
        daemon::restart()?;
    }
    Ok(())
}

/// A line for the pod's log.
fn say(text: &str) {
    // Nobody who reads it is no reason to stop half way.
    let _ = writeln!(std::io::stdout(), "{text}");
}
