// SPDX-License-Identifier: Apache-2.0
//! How children end, as the kernel tells it: in numbers, whether or not they have a name.
//!
//! A process can die of any signal up to 64, and nix has names for those up to 31 only: when its
//! waitpid(2) meets another, the child is reaped and nobody learns which one it was.

use nix::errno::Errno;
use std::time::Duration;

/// A child that was reaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub status: ExitStatus,
    /// Of processors, that it and its own children used for which it has waited.
    pub used: Duration,
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    Code(u8),
    /// A signal's number, a real-time one's too.
    Signal(u8),
}

impl ExitStatus {
    /// What a wait status says (wait(2)); `None` of a child that was stopped, or goes on.
    fn of(status: libc::c_int) -> Option<Self> {
        // Neither has more than eight bits.
        if libc::WIFEXITED(status) {
            Some(Self::Code(libc::WEXITSTATUS(status) as u8))
        } else if libc::WIFSIGNALED(status) {
            Some(Self::Signal(libc::WTERMSIG(status) as u8))
        } else {
            None
        }
    }

    pub fn success(self) -> bool {
        self == Self::Code(0)
    }

    /// The shell's number: the code, or 128 plus the signal (X1).
    pub fn number(self) -> u32 {
        match self {
            Self::Code(code) => code.into(),
            Self::Signal(signal) => 128 + u32::from(signal),
        }
    }
}

impl std::fmt::Display for ExitStatus {
    /// As Go's `os.ProcessState` writes it (syscall/zerrors_linux_amd64.go).
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const NAMES: [&str; 15] = [
            "hangup",
            "interrupt",
            "quit",
            "illegal instruction",
            "trace/breakpoint trap",
            "aborted",
            "bus error",
            "floating point exception",
            "killed",
            "user defined signal 1",
            "segmentation fault",
            "user defined signal 2",
            "broken pipe",
            "alarm clock",
            "terminated",
        ];
        match *self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(signal) => match NAMES.get(usize::from(signal).wrapping_sub(1)) {
                Some(name) => write!(f, "signal: {name}"),
                None => write!(f, "signal: signal {signal}"),
            },
        }
    }
}

/// Reaps a child that has ended, or `only` this one; `None` if there is none now.
///
/// # Errors
/// From wait4(2).
pub fn reap(only: Option<u32>) -> nix::Result<Option<(u32, Ended)>> {
    let which = only.map_or(-1, u32::cast_signed);
    let flags = libc::WNOHANG | libc::__WALL;
    loop {
        let mut status = 0;
        // SAFETY: all zeros is an rusage that says nothing. The call writes one int and one rusage,
        // which live until it returns.
        let (pid, usage) = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            let pid = libc::wait4(which, &raw mut status, flags, &raw mut usage);
            (pid, usage)
        };
        match Errno::result(pid) {
            Ok(0) | Err(Errno::ECHILD) => return Ok(None),
            Ok(pid) => {
                if let Some(status) = ExitStatus::of(status) {
                    let used = duration(usage.ru_utime) + duration(usage.ru_stime);
                    return Ok(Some((pid.cast_unsigned(), Ended { status, used })));
                }
            }
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
    }
}

fn duration(time: libc::timeval) -> Duration {
    let (seconds, micros) = (time.tv_sec.unsigned_abs(), time.tv_usec.unsigned_abs());
    Duration::from_secs(seconds) + Duration::from_micros(micros)
}

/// True if the child `pid` has ended; it is not reaped.
///
/// # Errors
/// ECHILD if `pid` is no child of this process.
pub fn has_ended(pid: u32) -> nix::Result<bool> {
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    // SAFETY: all zeros is a siginfo_t of nobody. The call writes one, which lives until it
    // returns: a child's, which has a pid, or nobody's.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        Errno::result(libc::waitid(libc::P_PID, pid, &raw mut info, flags))?;
        Ok(info.si_pid() != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// X1: every status that wait(2) knows.
    #[test]
    fn a_status_is_a_code_or_any_signal() {
        assert_eq!(ExitStatus::of(0), Some(ExitStatus::Code(0)));
        assert_eq!(ExitStatus::of(255 << 8), Some(ExitStatus::Code(255)));
        for signal in 1..=64_u8 {
            for core_dumped in [0, 0x80] {
                let ended = ExitStatus::of(i32::from(signal) | core_dumped);
                assert_eq!(ended, Some(ExitStatus::Signal(signal)));
                assert_eq!(ended.unwrap().number(), 128 + u32::from(signal));
            }
        }
        assert_eq!(ExitStatus::of(0x137f), None, "stopped");
        assert_eq!(ExitStatus::of(0xffff), None, "continued");
    }

    #[test]
    fn ends_are_worded_as_by_go() {
        for (status, text) in [
            (ExitStatus::Code(3), "exit status 3"),
            (ExitStatus::Signal(9), "signal: killed"),
            (ExitStatus::Signal(15), "signal: terminated"),
            (ExitStatus::Signal(16), "signal: signal 16"),
            (ExitStatus::Signal(37), "signal: signal 37"),
        ] {
            assert_eq!(status.to_string(), text);
        }
    }
}
