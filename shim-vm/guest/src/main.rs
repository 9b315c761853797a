//! `dunnage-guest`: the first process of a VM that runs containers.
//!
//! ```text
//!  serial port "agent" ── link ──┬─ stream 0: notices to the host: Hello, then events in order
//!                                ├─ stream 1: ttrpc: Guest, and the Task API for crate `task`
//!                                └─ further: each one stdin, stdout or stderr of a process
//! ```
//!
//! Whatever goes wrong here ends the VM: the kernel panics when its first process dies, and the
//! host reads why on the console.

mod agent;
mod boot;
mod guest;
mod network;
mod port;
mod stdio;
mod tasks;

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args().any(|arg| arg == "--version") {
        let line = format!("dunnage-guest {}\n", env!("CARGO_PKG_VERSION"));
        let _ = std::io::stdout().write_all(line.as_bytes());
        return ExitCode::SUCCESS;
    }
    if std::process::id() != 1 {
        say("dunnage-guest is the first process of a VM, and nothing else");
        return ExitCode::FAILURE;
    }
    std::panic::set_hook(Box::new(|panic| say(&format!("agent: {panic}"))));
    let ended = boot::boot().and_then(|()| agent::run());
    if let Err(why) = ended {
        say(&format!("agent: {why}"));
    }
    boot::power_off()
}

/// A line on the console, which the host reads.
fn say(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}
