//! The system calls that QEMU may make, from before its first instruction on: those of a program
//! that computes, waits, and uses the files that it was given.
//!
//! There is none to make a socket that could reach anybody, a process, a namespace or a mount, to
//! look into another process, or to get at the kernel's rarer parts (bpf, io_uring, keyrings, perf).
//! `execve` is there, because it is how QEMU begins; QEMU's own `-sandbox` takes that away before
//! there is a guest, and all that could be executed is QEMU itself. What is not there answers ENOSYS,
//! with which programs and libraries that try something new know what to do.

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
const PRCTL: [libc::c_int; 7] = [
    libc::PR_SET_NAME,
    libc::PR_GET_NAME,
    libc::PR_SET_TIMERSLACK,
    libc::PR_MCE_KILL,
    libc::PR_SET_NO_NEW_PRIVS,
    libc::PR_SET_SECCOMP,
    libc::PR_GET_SECCOMP,
];

/// linux/audit.h: the machine, with 64 bits and the least significant byte first.
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;
/// Marks the system calls of x32, of which none is QEMU's.
const X32: u32 = 0x4000_0000;

/// Offsets in `struct seccomp_data`; of an argument, its lower half.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const fn argument(n: u32) -> u32 {
    16 + 8 * n
}

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const ANY_BIT: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();

/// One instruction; `yes` and `no` are how many to skip then.
fn code(code: u32, yes: usize, no: usize, k: u32) -> sock_filter {
    // Jumps are short: no block below has more than ten instructions.
    let [yes, no] = [yes, no].map(|skip| u8::try_from(skip).unwrap_or(u8::MAX));
    let code = code as u16;
    sock_filter {
        code,
        jt: yes,
        jf: no,
        k,
    }
}

fn give(answer: u32) -> sock_filter {
    code(RETURN, 0, 0, answer)
}

/// A block for the system call `number`, which the number is compared with; it ends in an answer.
fn of(number: libc::c_long, block: Vec<sock_filter>) -> impl Iterator<Item = sock_filter> {
    let compare = code(EQUAL, 0, block.len(), number as u32);
    std::iter::once(compare).chain(block)
}

/// The filter (seccomp(2), SECCOMP_SET_MODE_FILTER).
pub fn program() -> Vec<sock_filter> {
    let allow = || give(libc::SECCOMP_RET_ALLOW);
    let refuse = || give(REFUSE);
    let kill = || give(libc::SECCOMP_RET_KILL_PROCESS);
    let mut program = vec![
        code(LOAD, 0, 0, ARCHITECTURE),
        code(EQUAL, 1, 0, ARCH),
        kill(),
        code(LOAD, 0, 0, NUMBER),
        code(AT_LEAST, 0, 1, X32),
        kill(),
    ];
    for &number in ALLOWED.iter().chain(OLDER) {
        program.extend(of(number, vec![allow()]));
    }
    // A thread, in the namespaces that it is in. clone3's flags can't be seen from here: who finds
    // that there is none takes this.
    let thread = libc::CLONE_THREAD.cast_unsigned();
    let other = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    let clone = vec![
        code(LOAD, 0, 0, argument(0)),
        code(ANY_BIT, 0, 2, thread),
        code(ANY_BIT, 1, 0, other.cast_unsigned()),
        allow(),
        refuse(),
    ];
    program.extend(of(libc::SYS_clone, clone));
    let mut prctl = vec![code(LOAD, 0, 0, argument(0))];
    for option in PRCTL {
        prctl.extend([code(EQUAL, 0, 1, option.cast_unsigned()), allow()]);
    }
    prctl.push(refuse());
    program.extend(of(libc::SYS_prctl, prctl));
    // Two ends that only know each other: vhost-user makes some.
    let pair = vec![
        code(LOAD, 0, 0, argument(0)),
        code(EQUAL, 0, 1, libc::AF_UNIX.cast_unsigned()),
        allow(),
        refuse(),
    ];
    program.extend(of(libc::SYS_socketpair, pair));
    // Limits are read, not set: the new one is at no address.
    let prlimit = vec![
        code(LOAD, 0, 0, argument(2)),
        code(EQUAL, 0, 3, 0),
        code(LOAD, 0, 0, argument(2) + 4),
        code(EQUAL, 0, 1, 0),
        allow(),
        refuse(),
    ];
    program.extend(of(libc::SYS_prlimit64, prlimit));
    program.push(refuse());
    program
}
