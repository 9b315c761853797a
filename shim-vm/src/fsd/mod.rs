// SPDX-License-Identifier: Apache-2.0
//! `containerd-shim-vm-v2 fsd`: serves one directory to one VM, as a process of its own.
//!
//! The file server does as root what the guest asks of it, so it has nothing but the directory
//! ([`sandbox`]). A user of the guest is that user in the share.

mod files;
mod filter;
mod programs;
mod sandbox;
mod state;
mod tree;

use files::Files;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;
use vhost_user_backend::{Error as Backend, VhostUserDaemon};
use virtiofsd::filesystem::FileSystem;
use virtiofsd::passthrough::{CachePolicy, Config, PassthroughFs};
use virtiofsd::vhost_user::VhostUserFsBackendBuilder;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

/// The fd with the listening socket; QEMU is connected to it already.
pub const LISTENER_FD: i32 = 3;
/// How long the guest may go on with what it was told of a file; a change on the host is seen
/// after that.
const FRESH: Duration = Duration::from_secs(1);

/// What it says when the guest should forget what it does not use.
pub const FULL: &str = "the guest knows many files";
/// Files that it has open for itself, or for a moment.
const OWN: u64 = 64;

type Inode = <PassthroughFs as FileSystem>::Inode;
type Handle = <PassthroughFs as FileSystem>::Handle;

/// Serves `dir` until the VM is gone, with so many files open at most.
///
/// # Errors
/// If it can't be set up, or what the VM says makes no sense.
pub fn serve(dir: &str, most: &str) -> Result<(), String> {
    let at = |what: &'static str| move |e: io::Error| format!("fsd: {what}: {e}");
    let listener: UnixListener = task::sys::adopt(LISTENER_FD).map_err(at("socket"))?.into();
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    let most: u64 = most.parse().map_err(|e| format!("fsd: {most:?}: {e}"))?;
    let (fds, most) = sandbox::enter(dir, LISTENER_FD, most).map_err(|e| format!("fsd: {e}"))?;
    let most = most.saturating_sub(OWN);
    let config = Config {
        root_dir: "/".into(),
        entry_timeout: FRESH,
        attr_timeout: FRESH,
        cache_policy: CachePolicy::Auto,
        proc_sfd_rawfd: Some(fds),
        xattr: true,
        // To the guest those of the share alone: `tree.rs` says why.
        announce_submounts: true,
        guest_fd_limit: most,
        ..Config::default()
    };
    let files = PassthroughFs::new(config).map_err(at("files"))?;
    // Each file that the guest knows costs one that is open here, and so does each that it opens.
    let known = most / 4 * 3;
    let scratch = memfd_create("state", MFdFlags::MFD_CLOEXEC);
    let scratch = scratch.map_err(|e| format!("fsd: memfd: {e}"))?.into();
    let files = Files::new(files, known as usize, (most - known) as usize, scratch);
    let backend = VhostUserFsBackendBuilder::default().build(files);
    let backend = Arc::new(backend.map_err(|e| format!("fsd: {e}"))?);
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    sandbox::close().map_err(|e| format!("fsd: {e}"))?;
    let daemon = VhostUserDaemon::new("fsd".into(), backend, memory);
    let mut daemon = daemon.map_err(|e| format!("fsd: {e}"))?;
    let started = daemon.start(&mut vhost::vhost_user::Listener::from(listener));
    started.map_err(|e| format!("fsd: start: {e}"))?;
    match daemon.wait() {
        Ok(()) | Err(Backend::HandleRequest(vhost::vhost_user::Error::Disconnected)) => Ok(()),
        Err(e) => Err(format!("fsd: {e}")),
    }
}
