// SPDX-License-Identifier: Apache-2.0
//! The system calls that the file server may make: what serving files takes, from the moment on
//! when it has its root and before it has heard a word of the guest's.
//!
//! Whoever takes it over can do with the share what the guest can do anyway, and nothing else: no
//! socket, process, mount, namespace or module is made, no other process looked at, no program
//! executed, and no memory becomes code. The first call of any other kind ends it, and the VM.

use crate::bpf::{Otherwise, Program, When};
use libc::sock_filter;

/// Whatever the arguments are.
const ALLOWED: &[libc::c_long] = &[
    // Names in the share, and what is behind them.
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_readlinkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_fchmodat,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    // Which file it is, when the VM is saved. Nothing is opened by that.
    libc::SYS_name_to_handle_at,
    // By a name in /proc/self/fd, where virtiofsd goes for these.
    libc::SYS_fchdir,
    libc::SYS_getxattr,
    libc::SYS_setxattr,
    libc::SYS_listxattr,
    libc::SYS_removexattr,
    // Files that are open.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_copy_file_range,
    libc::SYS_lseek,
    libc::SYS_getdents64,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_syncfs,
    libc::SYS_flock,
    libc::SYS_fchmod,
    libc::SYS_fgetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_flistxattr,
    libc::SYS_fremovexattr,
    libc::SYS_dup,
    libc::SYS_close,
    // Who asks: user, groups, and the power to keep a setgid bit.
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_umask,
    // QEMU, at the other end of a socket that is there.
    libc::SYS_accept4,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_eventfd2,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    // The C library's and Rust's own.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_clock_gettime,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_geteuid,
    libc::SYS_getegid,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// The older forms of some of these, which only this architecture has.
#[cfg(target_arch = "x86_64")]
const OLDER: &[libc::c_long] = &[libc::SYS_epoll_wait, libc::SYS_time];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[libc::c_long] = &[];

/// What fcntl(2) may be asked for.
const FCNTL: [u32; 5] = [
    libc::F_DUPFD_CLOEXEC.cast_unsigned(),
    libc::F_GETFD.cast_unsigned(),
    libc::F_SETFD.cast_unsigned(),
    libc::F_GETFL.cast_unsigned(),
    libc::F_SETFL.cast_unsigned(),
];

/// What makes a socket that has a name in the share.
const SOCKETS: [libc::c_long; 2] = [libc::SYS_bind, libc::SYS_listen];

/// The filter (seccomp(2)) for a process with this pid, that makes unix sockets or none.
pub fn program(pid: u32, with_sockets: bool) -> Vec<sock_filter> {
    let code = libc::PROT_EXEC.cast_unsigned();
    let name = libc::PR_SET_NAME.cast_unsigned();
    let unix = libc::AF_UNIX.cast_unsigned();
    let program = match Program::new(Otherwise::Kill) {
        program if with_sockets => program
            .allow(&SOCKETS)
            .allow_when(libc::SYS_socket, &[When::OneOf(0, &[unix])]),
        program => program,
    };
    program
        .allow(ALLOWED)
        .allow(OLDER)
        .allow_when(libc::SYS_mmap, &[When::HasNone(2, code)])
        .allow_when(libc::SYS_mprotect, &[When::HasNone(2, code)])
        .allow_when(libc::SYS_fcntl, &[When::OneOf(1, &FCNTL)])
        .allow_when(libc::SYS_prctl, &[When::OneOf(0, &[name])])
        .allow_threads()
        // A thread that panics ends the process.
        .allow_when(libc::SYS_tgkill, &[When::OneOf(0, &[pid])])
        .end()
}
