// SPDX-License-Identifier: Apache-2.0
//! `containerd-shim-vm-v2 fsd`: serves one directory to one VM, as a process of its own.
//!
//! The file server does as root what the guest asks of it, so it has nothing but the directory
//! ([`sandbox`]). A user of the guest is that user in the share.

mod files;
mod filter;
mod programs;
mod room;
mod sandbox;
mod sockets;
mod state;
mod tree;

use files::Files;
use nix::sys::memfd::{MFdFlags, memfd_create};
use sockets::Sockets;
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
/// The fd of the channel to the shim by which sockets are made, if there is one.
pub const SOCKETS_FD: i32 = 4;
/// The argument that says so.
pub const WITH_SOCKETS: &str = "sockets";
/// How long the guest may go on with what it was told of a file; a change on the host is seen
/// after that.
const FRESH: Duration = Duration::from_secs(1);
/// The same of a filesystem that changes only through the guest, which is [`ALONE`].
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);
/// In the mode of a directory of the share: what is mounted in it changes only through the guest. The
/// directory itself can't be written to from there, where this bit would have a meaning.
pub const ALONE: u32 = libc::S_ISVTX;

/// What it says when the guest should forget what it does not use.
pub const FULL: &str = "the guest knows many files";
/// Files that it has open for itself, or for a moment.
const OWN: u64 = 64;

type Inode = <PassthroughFs as FileSystem>::Inode;
type Handle = <PassthroughFs as FileSystem>::Handle;

/// Serves `dir` until the VM is gone, with so many files open at most, and makes sockets that the host
/// connects to, if there are any.
///
/// # Errors
/// If it can't be set up, or what the VM says makes no sense.
pub fn serve(dir: &str, most: &str, with_sockets: bool) -> Result<(), String> {
    let at = |what: &'static str| move |e: io::Error| format!("fsd: {what}: {e}");
    let listener: UnixListener = task::sys::adopt(LISTENER_FD).map_err(at("socket"))?.into();
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    let most: u64 = most.parse().map_err(|e| format!("fsd: {most:?}: {e}"))?;
    let last = if with_sockets {
        SOCKETS_FD
    } else {
        LISTENER_FD
    };
    let (fds, most) = sandbox::enter(dir, last, most).map_err(|e| format!("fsd: {e}"))?;
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
        // The guest asks for no capabilities of a file before it writes to it: the host takes them away.
        killpriv_v2: true,
        guest_fd_limit: most,
        ..Config::default()
    };
    let files = PassthroughFs::new(config).map_err(at("files"))?;
    // Each file that the guest knows costs one that is open here, and so does each that it opens.
    let known = most / 4 * 3;
    let sockets = match with_sockets {
        true => Some(Sockets::new(SOCKETS_FD).map_err(at("sockets"))?),
        false => None,
    };
    let scratch = memfd_create("state", MFdFlags::MFD_CLOEXEC);
    let scratch = scratch.map_err(|e| format!("fsd: memfd: {e}"))?.into();
    let room = (known as usize, (most - known) as usize);
    let files = Files::new(files, room, sockets.clone(), scratch);
    let backend = VhostUserFsBackendBuilder::default().build(files);
    let backend = Arc::new(backend.map_err(|e| format!("fsd: {e}"))?);
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    sandbox::close(with_sockets).map_err(|e| format!("fsd: {e}"))?;
    if let Some(sockets) = sockets {
        std::thread::spawn(move || sockets.listen());
    }
    let daemon = VhostUserDaemon::new("fsd".into(), backend, memory);
    let mut daemon = daemon.map_err(|e| format!("fsd: {e}"))?;
    let started = daemon.start(&mut vhost::vhost_user::Listener::from(listener));
    started.map_err(|e| format!("fsd: start: {e}"))?;
    match daemon.wait() {
        Ok(()) | Err(Backend::HandleRequest(vhost::vhost_user::Error::Disconnected)) => Ok(()),
        Err(e) => Err(format!("fsd: {e}")),
    }
}
