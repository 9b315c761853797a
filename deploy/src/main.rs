// SPDX-License-Identifier: Apache-2.0
//! `dunnage-node install|uninstall`: puts the shims on a node, where containerd or CRI-O serves
//! Kubernetes, and takes them off again, with no pod touched.
//!
//! ```text
//! main        what was asked for, and the two orders of doing it
//! files       the programs and the guest image: whole or not at all
//! containerd  its configuration: a block of text, or a file that it imports
//! crio        CRI-O's: a file among its drop-ins
//! features    what the node can do, for node-feature-discovery
//! config      a configuration file, replaced in one step
//! daemon      the processes that matter: containerd, CRI-O, and shims of ours
//! ```
//! It runs as a container that sees a few of the node's directories below `--root`, and needs no shell.

mod arguments;
mod config;
mod containerd;
mod crio;
mod daemon;
mod failure;
mod features;
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
    let changed = match &arguments.crio {
        Some(dir) => crio::register(arguments, dir)?,
        None => containerd::register(arguments)?,
    };
    told_and_restarted(arguments, changed)?;
    // Pods that want a VM may come from now on.
    features::tell(arguments)?;
    Ok(())
}

/// Nothing, as long as somebody uses it: containerd runs no exec in a pod whose runtime it does not
/// know. Then the configuration: nothing new may begin with what is removed.
fn uninstall(arguments: &Arguments) -> Result<()> {
    features::forget(arguments)?;
    nobody_uses(&arguments.to)?;
    let changed = match &arguments.crio {
        Some(dir) => crio::forget(arguments, dir)?,
        None => containerd::forget(arguments)?,
    };
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
    let crio = arguments.crio.is_some();
    let what = match (changed, arguments.restart, crio) {
        (false, ..) => "is as it was",
        (true, false, false) => "is changed: restart containerd",
        (true, true, false) => "is changed: containerd is restarted",
        (true, false, true) => "is changed: have CRI-O read it, by SIGHUP",
        (true, true, true) => "is changed: CRI-O reads it",
    };
    say(&format!("{}: {what}", arguments.configured().display()));
    match (changed && arguments.restart, crio) {
        (false, _) => Ok(()),
        (true, false) => daemon::restart(),
        (true, true) => daemon::reload_crio(),
    }
}

/// A line for the pod's log.
fn say(text: &str) {
    // Nobody who reads it is no reason to stop half way.
    let _ = writeln!(std::io::stdout(), "{text}");
}
