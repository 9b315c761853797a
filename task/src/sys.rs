// SPDX-License-Identifier: Apache-2.0
//! The unsafe list: every system call that the standard library and nix have no safe form for.
#![allow(
    unsafe_code,
    reason = "this file is the list of exceptions; each has its reason"
)]

pub mod exec;
mod fork;
pub mod limits;
pub mod mapper;
mod mounts;
pub mod program;
mod spawn;
pub mod wait;

pub use fork::{die_with_parent, fork, start_afresh};
pub use mounts::{
    attach_mount, clone_mount, map_mount, memory_filesystem, restrict_mount, run_in_mounts,
};
pub use spawn::{NotExecuted, Steps, spawn};

use nix::errno::Errno;
use nix::unistd::{SysconfVar, sysconf};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::thread::RawPthread;
use std::path::Path;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Opens the other end of the pty whose master is `master` (ioctl_tty(2), TIOCGPTPEER); works
/// although the pty lives in another mount namespace's devpts.
pub fn open_pty_peer(master: BorrowedFd) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the ioctl takes open flags by value and returns a new fd, which we then own.
    unsafe {
        let fd = libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags);
        if fd < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(OwnedFd::from_raw_fd(fd))
        }
    }
}

/// Sets the size of the terminal behind `master`, in characters (ioctl_tty(2), TIOCSWINSZ).
pub fn set_window_size(master: BorrowedFd, width: u16, height: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: height,
        ws_col: width,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the ioctl reads one winsize, which lives until it returns.
    let done = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// How many bytes can be read from `pipe` at once (pipe(7), FIONREAD).
pub fn bytes_to_read(pipe: &OwnedFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the ioctl writes one int, which lives until it returns.
    let done = unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(usize::try_from(bytes).unwrap_or(0))
    }
}

/// Receives the one fd that the peer of `socket` sends (unix(7), SCM_RIGHTS).
///
/// # Errors
/// From recvmsg(2); `InvalidData` if the message carries no fd.
pub fn receive_fd(socket: BorrowedFd) -> io::Result<OwnedFd> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let mut byte = [0; 4096];
    let mut iov = [io::IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 4]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut space), flags)?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            for fd in received {
                // SAFETY: the kernel has just made this fd for us, and nobody else knows it.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    let none = || io::Error::new(io::ErrorKind::InvalidData, "the message carries no fd");
    fds.into_iter().next().ok_or_else(none)
}

/// Sends `signal`, any number the kernel knows, to `pid` (kill(2)); 0 only asks.
pub fn kill(pid: u32, signal: u32) -> nix::Result<()> {
    // Beyond i32 there is no signal, and a pid that is not positive would be a group.
    let signal = i32::try_from(signal).map_err(|_| Errno::EINVAL)?;
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0);
    let pid = pid.ok_or(Errno::ESRCH)?;
    // SAFETY: takes two numbers.
    Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Holds process `pid`: what is done through the fd is done to it and to nobody who has its pid
/// later (pidfd_open(2)).
pub fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes two numbers and returns a new fd, which we then own.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        match i32::try_from(fd) {
            Ok(fd) if fd >= 0 => Ok(OwnedFd::from_raw_fd(fd)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Sends SIGKILL to the process that `pidfd` holds (pidfd_send_signal(2)).
pub fn pidfd_kill(pidfd: &OwnedFd) -> io::Result<()> {
    let (fd, none) = (pidfd.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
    // SAFETY: takes numbers, and no siginfo.
    match unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, libc::SIGKILL, none, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Puts `fd`, which must be non-blocking, into the loop.
///
/// # Errors
/// From epoll_ctl(2): a regular file cannot be waited for.
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, and stays the same fd, for as long as the AsyncFd has it.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

/// Becomes readable when process `pid` ends.
///
/// # Errors
/// From pidfd_open(2): ESRCH if there is no such process.
pub fn watch_process(pid: u32) -> io::Result<AsyncFd<OwnedFd>> {
    watch(pidfd(pid)?, Interest::READABLE)
}

/// One malloc arena, and memory given back early (mallopt(3)); to be called before any other thread
/// exists.
pub fn keep_heap_small() {
    // SAFETY: sets two tunables of the allocator.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 << 10);
    }
}

/// Takes over an fd that is known by its number only.
///
/// # Errors
/// If nothing is open there.
pub fn adopt(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD only marks; who calls this was told the number by the fd's former owner,
    // another process image of ours or the kernel, and is its only owner from here on.
    unsafe {
        if libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(number))
    }
}

/// How many processors this process may run on (sched_getaffinity(2)); at least one.
pub fn processors() -> usize {
    let Ok(set) = nix::sched::sched_getaffinity(nix::unistd::Pid::this()) else {
        return 1;
    };
    let allowed = |cpu: &usize| set.is_set(*cpu) == Ok(true);
    (0..nix::sched::CpuSet::count())
        .filter(allowed)
        .count()
        .max(1)
}

/// Joins `thread` if it has ended, and does not wait otherwise (pthread_tryjoin_np(3)). A thread that was
/// joined must not be named again.
pub fn join_if_ended(thread: RawPthread) -> bool {
    // SAFETY: who calls this has the handle of a thread that nobody else joins or detaches.
    unsafe { libc::pthread_tryjoin_np(thread, std::ptr::null_mut()) == 0 }
}

/// Gives freed memory back to the kernel (malloc_trim(3)), and the stack below the caller's.
pub fn release_memory() {
    // SAFETY: takes a number; the allocator does its own locking.
    unsafe { libc::malloc_trim(0) };
    release_stack();
}

/// Empties the pages of the stack that no call in progress uses (madvise(2)). Only the first
/// thread's stack has room below it that is nobody else's (mmap(2), `MAP_GROWSDOWN`).
#[inline(never)]
fn release_stack() {
    /// More than was ever used, and whole pages: none is larger than 64 KiB.
    const MOST: usize = 128 << 10;
    if nix::unistd::gettid() != nix::unistd::getpid() {
        return;
    }
    let Ok(Some(page)) = sysconf(SysconfVar::PAGE_SIZE) else {
        return;
    };
    let page = page as usize;
    let here = 0u8;
    // A page for the call itself.
    let end = ((&raw const here).addr() - page) & !(page - 1);
    let start = std::ptr::without_provenance_mut(end - MOST);
    // SAFETY: below the stack pointer, and what the ABI keeps there for this function, nothing is
    // in use; addresses that are not mapped are skipped.
    unsafe { libc::madvise(start, MOST, libc::MADV_DONTNEED) };
}

/// Makes a child that idles in a user namespace of its own, whose maps are still empty, until it
/// is killed; it dies with this thread. It is not reaped here.
///
/// # Errors
/// From clone3(2), whose CLONE_NEWUSER a sandbox may refuse.
pub fn idle_in_user_namespace() -> io::Result<u32> {
    // SAFETY: all zeros is a valid clone_args: no flags, no addresses.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = libc::CLONE_NEWUSER.cast_unsigned().into();
    args.exit_signal = libc::SIGCHLD.cast_unsigned().into();
    let parent = std::process::id().cast_signed();
    // SAFETY: without CLONE_VM the child has its own copy of all memory, this stack included, as
    // after fork. It allocates nothing, takes no lock and never returns: only system calls follow.
    unsafe {
        match libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                // What this process has open is none of the child's business.
                libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0);
                while libc::getppid() == parent {
                    libc::pause();
                }
                libc::_exit(0)
            }
            pid => Ok(pid as u32),
        }
    }
}

/// `struct loop_info64` (linux/loop.h).
#[repr(C)]
struct LoopInfo {
    /// Device, inode, device to be, offset, size limit: the kernel's to fill in, or none.
    numbers: [u64; 5],
    /// Number, kind of encryption, length of its key: none.
    small: [u32; 3],
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` (linux/loop.h).
#[repr(C)]
struct LoopConfig {
    fd: u32,
    /// 0: what suits the file.
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
pub const LO_FLAGS_READ_ONLY: u32 = 1;
pub const LO_FLAGS_AUTOCLEAR: u32 = 4;
pub const LO_FLAGS_DIRECT_IO: u32 = 16;

/// The number of a loop device that nobody uses, or has used until now (LOOP_CTL_GET_FREE);
/// `control` is /dev/loop-control.
pub fn free_loop_device(control: BorrowedFd) -> nix::Result<u32> {
    // SAFETY: the ioctl takes no argument and returns a number.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    Errno::result(number).map(i32::cast_unsigned)
}

/// Has the loop device `device` give out what is in `file` (LOOP_CONFIGURE, Linux 5.8); `name`
/// is what losetup(8) shows of it.
pub fn configure_loop_device(
    device: BorrowedFd,
    file: BorrowedFd,
    flags: u32,
    name: &Path,
) -> nix::Result<()> {
    let mut file_name = [0; 64];
    let name = name.as_os_str().as_bytes();
    let length = name.len().min(file_name.len() - 1);
    file_name[..length].copy_from_slice(&name[..length]);
    let config = LoopConfig {
        fd: file.as_raw_fd().cast_unsigned(),
        block_size: 0,
        info: LoopInfo {
            numbers: [0; 5],
            small: [0; 3],
            flags,
            file_name,
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: the ioctl reads one loop_config, which has the kernel's layout and lives until it
    // returns.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    Errno::result(done).map(drop)
}
