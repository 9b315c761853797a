// SPDX-License-Identifier: Apache-2.0
//! The system calls that QEMU may make, from before its first instruction on: those of a program
//! that computes, waits, and uses the files that it was given.
//!
//! There is none to make a socket that could reach anybody, a process, a namespace or a mount, to
//! look into another process, or to get at the kernel's rarer parts (bpf, io_uring, keyrings, perf).
//! `execve` is there, because it is how QEMU begins; QEMU's own `-sandbox` takes that away before
//! there is a guest, and all that could be executed is QEMU itself. What is not there answers ENOSYS,
//! with which programs and libraries that try something new know what to do.

use crate::bpf::{Otherwise, Program, When};
use libc::sock_filter;

/// Allowed, whatever the arguments are. Many are the C library's.
const ALLOWED: &[libc::c_long] = &[
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_msync,
    libc::SYS_mlock,
    libc::SYS_munlock,
    libc::SYS_membarrier,
    libc::SYS_memfd_create,
    // Files that are open.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_getdents64,
    libc::SYS_fchdir,
    // Names, in a root with next to nothing in it.
    libc::SYS_openat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getcwd,
    // Sockets that are open.
    libc::SYS_listen,
    libc::SYS_accept4,
    libc::SYS_accept,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    // Waiting, and time.
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_signalfd4,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_timer_create,
    libc::SYS_timer_settime,
    libc::SYS_timer_gettime,
    libc::SYS_timer_getoverrun,
    libc::SYS_timer_delete,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_futex,
    libc::SYS_restart_syscall,
    // Signals: there is no other process to send one to.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    // Threads.
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // About itself and the machine.
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_getgroups,
    libc::SYS_getrusage,
    libc::SYS_times,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getcpu,
    libc::SYS_getrandom,
    // Its beginning, and `-sandbox`: a filter is only ever added to those that are there.
    libc::SYS_execve,
    libc::SYS_seccomp,
];

/// The older forms of some of these, which only this architecture has.
#[cfg(target_arch = "x86_64")]
const OLDER: &[libc::c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_wait,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_time,
    libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[libc::c_long] = &[];

/// What prctl(2) may be asked for: not PR_SET_PDEATHSIG, by which QEMU ends with its shim.
const PRCTL: [u32; 7] = [
    libc::PR_SET_NAME.cast_unsigned(),
    libc::PR_GET_NAME.cast_unsigned(),
    libc::PR_SET_TIMERSLACK.cast_unsigned(),
    libc::PR_MCE_KILL.cast_unsigned(),
    libc::PR_SET_NO_NEW_PRIVS.cast_unsigned(),
    libc::PR_SET_SECCOMP.cast_unsigned(),
    libc::PR_GET_SECCOMP.cast_unsigned(),
];
/// Of socketpair(2), whatever the type is.
const UNIX: u32 = libc::AF_UNIX.cast_unsigned();

/// The filter (seccomp(2), SECCOMP_SET_MODE_FILTER).
pub fn program() -> Vec<sock_filter> {
    Program::new(Otherwise::Refuse)
        .allow(ALLOWED)
        .allow(OLDER)
        .allow_threads()
        .allow_when(libc::SYS_prctl, &[When::OneOf(0, &PRCTL)])
        // Two ends that only know each other: vhost-user makes some.
        .allow_when(libc::SYS_socketpair, &[When::OneOf(0, &[UNIX])])
        // Limits are read, not set: the new one is at no address.
        .allow_when(libc::SYS_prlimit64, &[When::Null(2)])
        .end()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::tests::{ALLOW, REFUSE, answer};

    #[test]
    fn qemu_computes_waits_and_uses_what_it_was_given() {
        let program = program();
        let thread = (libc::CLONE_THREAD | libc::CLONE_VM) as u64;
        let unix = libc::AF_UNIX as u64;
        for (number, arguments, expected) in [
            (libc::SYS_read, [0, 0, 0], ALLOW),
            (libc::SYS_ptrace, [0, 0, 0], REFUSE),
            (libc::SYS_process_vm_readv, [0, 0, 0], REFUSE),
            (libc::SYS_pidfd_open, [0, 0, 0], REFUSE),
            (libc::SYS_bpf, [0, 0, 0], REFUSE),
            (libc::SYS_io_uring_setup, [0, 0, 0], REFUSE),
            (libc::SYS_socket, [unix, 0, 0], REFUSE),
            (libc::SYS_socketpair, [unix, 0, 0], ALLOW),
            (libc::SYS_socketpair, [libc::AF_INET as u64, 0, 0], REFUSE),
            (libc::SYS_clone, [thread, 0, 0], ALLOW),
            (libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0], REFUSE),
            (
                libc::SYS_clone,
                [thread | libc::CLONE_NEWNET as u64, 0, 0],
                REFUSE,
            ),
            (libc::SYS_clone3, [thread, 0, 0], REFUSE),
            (libc::SYS_prctl, [libc::PR_SET_NAME as u64, 0, 0], ALLOW),
            (
                libc::SYS_prctl,
                [libc::PR_SET_PDEATHSIG as u64, 0, 0],
                REFUSE,
            ),
            (libc::SYS_prlimit64, [0, 7, 0], ALLOW),
            (libc::SYS_prlimit64, [0, 7, 1], REFUSE),
            (libc::SYS_prlimit64, [0, 7, 1 << 32], REFUSE),
        ] {
            assert_eq!(
                answer(&program, number, arguments),
                expected,
                "{number} {arguments:?}"
            );
        }
    }
}
