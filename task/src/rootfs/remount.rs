// SPDX-License-Identifier: Apache-2.0
//! Changing the flags of a mount that is there.

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::{FsFlags, statvfs};
use std::path::Path;

/// The flags of a mount that a user namespace may not clear, as statvfs(3) and mount(2) call them.
#[rustfmt::skip]
const LOCKED: [(FsFlags, MsFlags); 7] = [
    (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
    (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
    (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
    (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
    (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
    (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
    (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
];

/// The second step of a read-only bind mount: the kernel ignores `ro` in the first (contract N4).
pub(super) fn make_readonly(target: &Path, flags: MsFlags) -> nix::Result<()> {
    let remount = |flags| mount(None::<&str>, target, None::<&str>, flags, None::<&str>);
    let flags = flags | MsFlags::MS_REMOUNT;
    match remount(flags) {
        // A user namespace must keep the flags that the source's mount is locked with.
        Err(Errno::EPERM) => remount(flags | locked(statvfs(target)?.flags())),
        done => done,
    }
}

/// Of what is `set`, the flags that a mount keeps when it is told of all it is to have.
pub(super) fn locked(set: FsFlags) -> MsFlags {
    LOCKED
        .iter()
        .filter(|(fs, _)| set.contains(*fs))
        .map(|(_, ms)| *ms)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locked_flags_are_named_as_mount_names_them() {
        let set = FsFlags::ST_NOSUID | FsFlags::ST_RELATIME | FsFlags::ST_MANDLOCK;
        assert_eq!(locked(set), MsFlags::MS_NOSUID | MsFlags::MS_RELATIME);
    }
}
