// SPDX-License-Identifier: Apache-2.0
//! `dunnage-guest`: the first process of a VM that runs containers.
//!
//! ```text
//!  serial port "agent" ── link ──┬─ stream 0: notices to the host: Hello, then events in order
//!                                ├─ stream 1: ttrpc: Guest, and the Task API for crate `task`
//!                                └─ further: each one stdin, stdout or stderr of a process
//! ```
//!
//! The kernel runs it as `modprobe`, too, and the agent as the first process of a pid namespace.
//!
//! If the host has given a mark, it may die, and another goes on: `agent.rs` says how.
//!
//! Whatever goes wrong here ends the VM: the kernel panics when its first process dies, and the
//! host reads why on the console.

mod agent;
mod boot;
mod connections;
mod entropy;
mod forget;
mod guest;
mod late;
mod layers;
mod mirror;
mod network;
mod news;
mod pids;
mod port;
mod roots;
mod tasks;
mod tool;

use std::io::Write;
use std::process::ExitCode;

/// Its version, and which build it is.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " ", env!("AGENT_BUILD"));

fn main() -> ExitCode {
    if std::env::args().any(|arg| arg == "--version") {
        let line = format!("dunnage-guest {VERSION}\n");
        let _ = std::io::stdout().write_all(line.as_bytes());
        return ExitCode::SUCCESS;
    }
    let mut args = std::env::args();
    let name = args.next().unwrap_or_default();
    if name.ends_with("/modprobe") {
        return modprobe(args.next_back().as_deref());
    }
    if name == pids::NAME {
        let _ = pids::reap();
        return ExitCode::FAILURE;
    }
    if std::process::id() != 1 {
        say("dunnage-guest is the first process of a VM, and nothing else");
        return ExitCode::FAILURE;
    }
    std::panic::set_hook(Box::new(|panic| say(&format!("agent: {panic}"))));
    // Bundles are; what the host shares is not, and says so itself.
    task::aside::files_are_in_memory();
    let started = boot::uptime_ms();
    let ended = boot::boot().and_then(|()| agent::run(started));
    if let Err(why) = ended {
        say(&format!("agent: {why}"));
    }
    boot::power_off()
}

/// What it calls that of /dev/net/tun (linux/miscdevice.h).
const TUN: &str = "char-major-10-200";

/// What the kernel runs as `modprobe -q -- NAME` when somebody mounts a filesystem, makes a network
/// device, or opens /dev/net/tun, that it has no driver of. What the image does not have is not there.
fn modprobe(name: Option<&str>) -> ExitCode {
    let prefixes = ["fs-", "rtnl-link-"];
    let driver = |name: &'_ str| {
        let stripped = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix));
        match stripped.unwrap_or(name) {
            TUN => "tun".to_owned(),
            driver => driver.to_owned(),
        }
    };
    match name.map(|name| boot::load(&driver(name))) {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(why)) => {
            say(&format!("agent: {why}"));
            ExitCode::FAILURE
        }
        None => ExitCode::FAILURE,
    }
}

/// A line on the console, which the host reads.
fn say(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}
