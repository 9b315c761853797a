// SPDX-License-Identifier: Apache-2.0
//! The pipes a process gets, and who owns them (contract I1, I3).

use crate::error::{Error, Result};
use crate::sys;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, makedev, mkdirat, mknodat};
use nix::unistd::{Gid, Uid, fchown};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::LazyLock;

/// Where the null device is in its filesystem: a process sees its name.
const NULL: &str = "dev/null";

/// Who may open the pipe again, as `/dev/stdout` in a container does.
#[derive(Clone, Copy)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// The end of a pipe that the process gets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    Read,
    Write,
}

/// A new pipe (read end, write end), whose `theirs` end belongs to `owner`.
///
/// # Errors
/// From pipe(2) or fchown(2).
pub fn pipe_for(owner: Owner, theirs: End) -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = io::pipe().map_err(Error::io("make", "pipe"))?;
    let (read, write) = (OwnedFd::from(read), OwnedFd::from(write));
    if (owner.uid, owner.gid) != (0, 0) {
        let end = if theirs == End::Read { &read } else { &write };
        let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        fchown(end, Some(uid), Some(gid)).map_err(|e| Error::io("chown", "pipe")(e.into()))?;
    }
    Ok((read, write))
}

/// A null device, for a stream nobody asked for. It is one of our own where that can be made: who has
/// the host's `/dev/null` as its stdin may change its mode, as the host's root that a container's is by
/// number, or because an OCI runtime gives a process's streams to its user.
///
/// # Errors
/// From open(2).
pub fn null() -> Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC;
    let null = match &*OWN {
        Some(dir) => openat(dir, NULL, flags, Mode::empty()).map_err(Into::into),
        None => {
            let null = OpenOptions::new().read(true).write(true).open("/dev/null");
            null.map(Into::into)
        }
    };
    null.map_err(Error::io("open", "/dev/null"))
}

/// Where our own null device is; `None`: nowhere.
static OWN: LazyLock<Option<OwnedFd>> = LazyLock::new(|| {
    let warn = |e: &nix::Error| log::warn!("a null device of our own: {e}");
    filesystem_with_null().inspect_err(warn).ok()
});

/// Makes the null device of our own, which is there for as long as this process.
pub fn make_null() {
    LazyLock::force(&OWN);
}

fn filesystem_with_null() -> nix::Result<OwnedFd> {
    let dir = sys::memory_filesystem()?;
    mkdirat(&dir, "dev", Mode::S_IRWXU)?;
    let all = Mode::from_bits_truncate(0o666);
    mknodat(&dir, NULL, SFlag::S_IFCHR, all, makedev(1, 3))?;
    // Whatever the umask.
    fchmodat(&dir, NULL, all, FchmodatFlags::FollowSymlink)?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

    #[test]
    fn whoever_has_a_null_device_has_not_the_hosts() {
        let null = File::from(null().unwrap());
        let (own, hosts) = (
            null.metadata().unwrap(),
            std::fs::metadata("/dev/null").unwrap(),
        );
        assert!(own.file_type().is_char_device());
        assert_eq!(
            (own.rdev(), own.mode()),
            (hosts.rdev(), libc::S_IFCHR | 0o666)
        );
        if sys::memory_filesystem().is_ok() {
            assert_ne!(own.dev(), hosts.dev());
            null.set_permissions(PermissionsExt::from_mode(0o000))
                .unwrap();
            assert_eq!(std::fs::metadata("/dev/null").unwrap().mode(), hosts.mode());
        }
    }
}
