//! `containerd-shim-vm-v2 fsd`: serves one directory to one VM, as a process of its own.
//!
//! The file server does as root what the guest asks of it, so it has nothing but the directory:
//! that is its root, it has no network, and of root's powers only those over files. A user of the
//! guest is that user in the share.

mod programs;

use programs::Programs;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;
use vhost_user_backend::{Error as Backend, VhostUserDaemon};
use virtiofsd::passthrough::{CachePolicy, Config, PassthroughFs};
use virtiofsd::vhost_user::VhostUserFsBackendBuilder;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

/// The fd with the listening socket; QEMU is connected to it already.
pub const LISTENER_FD: i32 = 3;
/// As many as it may have: each file that the guest knows costs one.
const FILES: u64 = 1 << 20;
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
    let _ = raise_files();
    let isolated = nix::sched::CloneFlags::CLONE_NEWNET | nix::sched::CloneFlags::CLONE_NEWIPC;
    nix::sched::unshare(isolated).map_err(|e| format!("fsd: unshare: {e}"))?;
    let proc = File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
        .open("/proc/self/fd")
        .map_err(at("/proc/self/fd"))?;
    nix::unistd::chroot(dir).map_err(|e| format!("fsd: chroot {dir}: {e}"))?;
    nix::unistd::chdir("/").map_err(|e| format!("fsd: chdir: {e}"))?;
    keep_power_over_files().map_err(|e| format!("fsd: capabilities: {e}"))?;
    nix::sys::prctl::set_no_new_privs().map_err(|e| format!("fsd: no_new_privs: {e}"))?;

    let config = Config {
        root_dir: "/".into(),
        entry_timeout: FRESH,
        attr_timeout: FRESH,
        cache_policy: CachePolicy::Auto,
        proc_sfd_rawfd: Some(proc),
        xattr: true,
        // Files of two mounts may have the same inode number.
        announce_submounts: true,
        ..Config::default()
    };
    let files = PassthroughFs::new(config).map_err(at("files"))?;
    let backend = VhostUserFsBackendBuilder::default().build(Programs::new(files));
    let backend = Arc::new(backend.map_err(|e| format!("fsd: {e}"))?);
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let daemon = VhostUserDaemon::new("fsd".into(), backend, memory);
    let mut daemon = daemon.map_err(|e| format!("fsd: {e}"))?;
    let started = daemon.start(&mut vhost::vhost_user::Listener::from(listener));
    started.map_err(|e| format!("fsd: start: {e}"))?;
    match daemon.wait() {
        Ok(()) | Err(Backend::HandleRequest(vhost::vhost_user::Error::Disconnected)) => Ok(()),
        Err(e) => Err(format!("fsd: {e}")),
    }
}

fn raise_files() -> nix::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let most = hard.max(FILES);
    // More than the hard limit needs a right that we may not have.
    setrlimit(Resource::RLIMIT_NOFILE, most, most)
        .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard, hard))
}

fn keep_power_over_files() -> capng::Result<()> {
    use capng::{Action, CUpdate, Set, Type};
    const OVER_FILES: [&str; 8] = [
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "SETGID",
        "SETUID",
        "MKNOD",
        "SETFCAP",
    ];
    capng::clear(Set::BOTH);
    let keep = |name: &&str| -> capng::Result<CUpdate> {
        Ok(CUpdate {
            action: Action::ADD,
            cap_type: Type::PERMITTED | Type::EFFECTIVE,
            capability: capng::name_to_capability(name)?,
        })
    };
    capng::update(OVER_FILES.iter().map(keep).collect::<capng::Result<_>>()?)?;
    capng::apply(Set::BOTH)
}
