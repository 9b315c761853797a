// SPDX-License-Identifier: Apache-2.0
//! The part of the unsafe list that is about mounts which are attached nowhere, and their places.

use crate::rootfs::Namespace;
use nix::errno::Errno;
use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// A path as system calls take it.
fn c_path(path: &Path) -> nix::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)
}

/// Has `command`'s process run in the mount namespace.
pub fn run_in_mounts(command: &mut Command, namespace: Namespace) {
    // SAFETY: between fork and exec only unshare and setns run, which are async-signal-safe.
    unsafe {
        command.pre_exec(move || namespace.enter());
    }
}

/// A copy of the mount that `path` is in, from `path` on, attached nowhere (open_tree(2)); with
/// `below` also of what is mounted below. Gone with the fd, unless it is attached.
pub fn clone_mount(path: &Path, below: bool) -> nix::Result<OwnedFd> {
    let path = c_path(path)?;
    let below = if below { libc::AT_RECURSIVE } else { 0 };
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | below.cast_unsigned();
    // SAFETY: the call reads a text that lives until it returns, and returns a new fd, which we
    // then own.
    unsafe {
        let fd = libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags);
        Errno::result(fd).map(|fd| OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// A new filesystem in memory, attached nowhere: gone with the fd of its root, and with what is open in it.
pub fn memory_filesystem() -> nix::Result<OwnedFd> {
    const OPEN_CLOEXEC: libc::c_uint = 1;
    const CREATE: libc::c_uint = 6;
    const MOUNT_CLOEXEC: libc::c_uint = 1;
    let flags = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
    let none = std::ptr::null::<libc::c_char>();
    let owned = |fd: libc::c_long| {
        // SAFETY: the kernel has just made this fd for us, and nobody else knows it.
        Errno::result(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
    };
    // SAFETY: the calls take numbers, texts that live until they return, and no other text.
    unsafe {
        let name = c"tmpfs".as_ptr();
        let context = owned(libc::syscall(libc::SYS_fsopen, name, OPEN_CLOEXEC))?;
        let fd = context.as_raw_fd();
        let made = libc::syscall(libc::SYS_fsconfig, fd, CREATE, none, none, 0);
        Errno::result(made)?;
        owned(libc::syscall(libc::SYS_fsmount, fd, MOUNT_CLOEXEC, flags))
    }
}

/// Has the unattached `mount` show owners as `user_namespace` maps them (mount_setattr(2)); with
/// `below` also what is mounted below.
pub fn map_mount(mount: BorrowedFd, user_namespace: BorrowedFd, below: bool) -> nix::Result<()> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: user_namespace.as_raw_fd() as u64,
    };
    set_mount_attributes(mount, &attr, below)
}

/// Sets `flags` (`MOUNT_ATTR_*`) of `mount`, and clears none (mount_setattr(2)); with `below` also
/// of what is mounted below. `ENOSYS` before Linux 5.12.
pub fn restrict_mount(mount: BorrowedFd, flags: u64, below: bool) -> nix::Result<()> {
    let attr = libc::mount_attr {
        attr_set: flags,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    set_mount_attributes(mount, &attr, below)
}

fn set_mount_attributes(
    mount: BorrowedFd,
    attr: &libc::mount_attr,
    below: bool,
) -> nix::Result<()> {
    let below = if below { libc::AT_RECURSIVE } else { 0 };
    let flags = libc::AT_EMPTY_PATH | below;
    let (fd, empty) = (mount.as_raw_fd(), c"".as_ptr());
    // SAFETY: the call reads an empty text and one mount_attr; both live until it returns.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            empty,
            flags,
            &raw const *attr,
            size_of_val(attr),
        )
    };
    Errno::result(done).map(drop)
}

/// Mounts `mount`, the root of a mount that is attached nowhere or elsewhere, on what `target` is
/// (move_mount(2)): no name is looked up.
pub fn attach_mount(mount: BorrowedFd, target: BorrowedFd) -> nix::Result<()> {
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    let empty = c"".as_ptr();
    // SAFETY: the call reads two empty texts that live until it returns.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            empty,
            target.as_raw_fd(),
            empty,
            flags,
        )
    };
    Errno::result(done).map(drop)
}
