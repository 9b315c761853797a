// SPDX-License-Identifier: Apache-2.0
//! VMs in store: booted, warm, and nobody's until a shim takes one.
//!
//! ```text
//!  containerd-shim-vm-v2 pool ── starts, again whenever one is taken ──> spare ── boots, warms ──> VM
//!
//!  shim ── connects to one of its kind, by its socket's directory ─────> spare
//!       <── the VM's description, its files, its share ─────────────────   │ executes
//!  shim ═══ the connection: the leash ═════════════════════════════════> hold ── parent of ──> QEMU, fsd
//! ```
//!
//! A spare is a process that has booted a VM as a shim does, and has run a container in it, so that its
//! kernel, its agent and its OCI runtime are warm; without KVM: translated. What it gives to a shim is
//! what an upgrade hands over ([`crate::vm::Moved`]). From then on it only holds the VM: its processes
//! stay its children and die with it, and it ends when the other end of the connection is closed, which
//! the kernel does however a shim ends. A shim's keeper keeps that open, too, so that a VM that may be
//! adopted is.
//!
//! A spare that nobody has taken ends with its pool. A shim that finds none of its kind, or one that does
//! not answer, or says what makes no sense, boots: nothing of the pool is waited for longer than that.

mod hold;
mod key;
mod leash;
mod ours;
mod settings;
mod spare;
mod store;
mod take;

pub use hold::{HOLD, hold};
pub use leash::Leash;
pub use ours::as_ours;
pub use settings::Settings;
pub use spare::{SPARE, spare};
pub use store::pool;
pub use take::{Offered, take};

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// In the pool's directory, which is root's alone: the places of VMs, by their spares' pids.
const PLACE: &str = "vm-";
/// Bundles of the containers that warm them.
const BUNDLE: &str = "bundle-";
/// And directories of sockets of VMs that are of one kind.
const KIND: &str = "kind-";

/// The place of the VM of process `pid`, in the directory of the pool.
fn place_of(pool: &Path, pid: u32) -> PathBuf {
    pool.join(format!("{PLACE}{pid}"))
}

fn bundle_of(pool: &Path, pid: u32) -> PathBuf {
    pool.join(format!("{BUNDLE}{pid}"))
}

/// What a shim says that wants a VM.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    /// Under these numbers it will have the files that it gets, as far as they are needed.
    numbers: Vec<i32>,
}

/// What it gets, with the share's mount and the files.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    vm: crate::vm::Moved,
}

/// Where the program of this process is, or what has come in its place.
///
/// # Errors
/// If /proc can't be read.
fn own_program() -> std::io::Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let path = exe.to_string_lossy();
    Ok(PathBuf::from(
        path.strip_suffix(" (deleted)").unwrap_or(&path),
    ))
}
