//! `containerd-shim-vm-v2 fsd`: serves one directory to one VM, as a process of its own.
//!
//! The file server does as root what the guest asks of it, so it has nothing but the directory
//! ([`sandbox`]). A user of the guest is that user in the share.

mod filter;
mod programs;
mod sandbox;

use programs::Programs;
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;
use vhost_user_backend::{Error as Backend, VhostUserDaemon};
use virtiofsd::passthrough::{CachePolicy, Config, PassthroughFs};
use virtiofsd::vhost_user::VhostUserFsBackendBuilder;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

/// The fd with the listening socket; QEMU is connected to it already.
pub const LISTENER_FD: i32 = 3;
/// How long the guest may go on with what it was told of a file; a change on the host is seen
/// after that.
const FRESH: Duration = Duration::from_secs(1);

/// Serves `dir` until the VM is gone.
///
/// # Errors
/// If it can't be set up, or what the VM says makes no sense.
pub fn serve(dir: &str) -> Result<(), String> {
    let at = |what: &'static str| move |e: io::Error| format!("fsd: {what}: {e}");
    let listener: UnixListener = task::sys::adopt(LISTENER_FD).map_err(at("socket"))?.into();
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    let fds = sandbox::enter(dir, LISTENER_FD).map_err(|e| format!("fsd: {e}"))?;
    let config = Config {
        root_dir: "/".into(),
        entry_timeout: FRESH,
        attr_timeout: FRESH,
        cache_policy: CachePolicy::Auto,
        proc_sfd_rawfd: Some(fds),
        xattr: true,
        // Files of two mounts may have the same inode number.
        announce_submounts: true,
        ..Config::default()
    };
    let files = PassthroughFs::new(config).map_err(at("files"))?;
    let backend = VhostUserFsBackendBuilder::default().build(Programs::new(files));
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
