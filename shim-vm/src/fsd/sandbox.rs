// SPDX-License-Identifier: Apache-2.0
//! What the file server is shut in: namespaces of its own, the share for a root, of root's powers
//! those over files, and few system calls.
//!
//! ```text
//!  shim   share       tmpfs, shared, what we mount in it writable or not as it is to be
//!           │ └─ c/rootfs, .volumes/0/v …
//!           │ slave: what is mounted there appears here, with the flags that it has then
//!  fsd    /           the same tmpfs, read-only for whoever asks here
//!           └─ c/rootfs, .volumes/0/v …
//!         a directory of fds, mounted nowhere: /proc/self/fd of a /proc with this process alone
//! ```

use crate::fsd::filter;
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, pivot_root, setgroups};
use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use task::sys::exec;

/// Nothing is dumped, neither into a file, for which a page is needed at least, nor into a pipe, for
/// which the kernel takes this number, unlike 0, as a refusal (core(5)).
const CORE: u64 = 1;
/// What serves the files of a guest's users as theirs, with their owners and attributes.
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
const NONE: Option<&str> = None;

/// Makes `dir` the root of this process, the first of its pid namespace, and takes from it all that
/// is not for serving files, but for the system calls; [`close`] is for those. Of fds it keeps those
/// up to `last`. The directory of its fds, by which a file is opened anew, and how many files it may
/// have open: `files`, if the host allows that.
///
/// # Errors
/// Which step failed, and why.
pub fn enter(dir: &str, last: RawFd, files: u64) -> Result<(File, u64), String> {
    let at = |step: &'static str| move |e: Errno| format!("{step}: {e}");
    if std::process::id() != 1 {
        return Err("it is the shim that starts this".into());
    }
    exec::close_from((last + 1).cast_unsigned()).map_err(at("close_range"))?;
    let files = limit(files).map_err(at("limits"))?;
    let own = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    unshare(own).map_err(at("namespaces"))?;
    let slave = MsFlags::MS_SLAVE | MsFlags::MS_REC;
    mount(NONE, "/", NONE, slave, NONE).map_err(at("mount namespace"))?;
    let fds = own_fds().map_err(at("/proc"))?;
    make_root(dir).map_err(at("root"))?;
    setgroups(&[]).map_err(at("groups"))?;
    keep_power_over_files().map_err(|e| format!("capabilities: {e}"))?;
    nix::sys::prctl::set_no_new_privs().map_err(at("no_new_privs"))?;
    Ok((fds, files))
}

/// From now on, and in all threads to come, only the system calls of [`filter`] are made.
///
/// # Errors
/// From seccomp(2).
pub fn close(with_sockets: bool) -> Result<(), String> {
    let filter = filter::program(std::process::id(), with_sockets);
    sys::set_filter(&filter).map_err(|e| format!("seccomp: {e}"))
}

/// How many files it may have open.
fn limit(files: u64) -> nix::Result<u64> {
    setrlimit(Resource::RLIMIT_CORE, CORE, CORE)?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // More than the hard limit needs a right that we may not have, and than fs.nr_open there can't be.
    if setrlimit(Resource::RLIMIT_NOFILE, files, files).is_ok() {
        return Ok(files);
    }
    let most = hard.min(files);
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    Ok(most)
}

/// The directory is a mount of its own, whose parent goes with the old root: there is no way up.
fn own_fds() -> nix::Result<File> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, NONE)?;
    let own = Some("/proc/self/fd");
    mount(own, "/proc", NONE, MsFlags::MS_BIND, NONE)?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    open("/proc", flags, Mode::empty()).map(File::from)
}

fn make_root(dir: &str) -> nix::Result<()> {
    chdir(dir)?;
    // The old root comes to lie upon the new one, and is taken away there (pivot_root(2)).
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;
    let flags = MsFlags::MS_BIND
        | MsFlags::MS_REMOUNT
        | MsFlags::MS_RDONLY
        | MsFlags::MS_NOSUID
        | MsFlags::MS_NODEV
        | MsFlags::MS_NOEXEC;
    mount(NONE, "/", NONE, flags, NONE)
}

fn keep_power_over_files() -> io::Result<()> {
    use capng::{Action, CUpdate, Set, Type};
    exec::bound_capabilities(0)?;
    capng::clear(Set::BOTH);
    let keep = |name: &&str| -> capng::Result<CUpdate> {
        Ok(CUpdate {
            action: Action::ADD,
            cap_type: Type::PERMITTED | Type::EFFECTIVE,
            capability: capng::name_to_capability(name)?,
        })
    };
    let kept = OVER_FILES.iter().map(keep).collect::<capng::Result<_>>();
    let applied = kept.and_then(capng::update);
    applied
        .and_then(|()| capng::apply(Set::BOTH))
        .map_err(io::Error::other)
}
