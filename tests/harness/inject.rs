// SPDX-License-Identifier: Apache-2.0
//! System calls that another process makes because we say so: what somebody could do who has taken
//! it over.

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::ffi::CString;
use std::io;

/// An argument of a system call.
#[derive(Clone, Copy, Debug)]
pub enum Arg<'a> {
    Number(i64),
    /// A text, which is put on its stack.
    Text(&'a str),
    /// Bytes, as many as there are.
    Bytes(&'a [u8]),
}

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Returned(i64),
    /// The error number.
    Refused(i32),
    /// The process is gone.
    Killed(Signal),
}

/// The first thread of a process, which goes on as if nothing had been when this is dropped.
pub struct Injected {
    pid: Pid,
    before: libc::user_regs_struct,
    gone: bool,
}

/// What may be at the end of the stack without belonging to it, in bytes (x86-64's ABI: 128).
const RED_ZONE: u64 = 4096;
/// The instruction.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

impl Injected {
    /// Stops `pid` where it waits for a system call.
    pub fn into(pid: i32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid);
        ptrace::attach(pid)?;
        let stopped = waitpid(pid, Some(WaitPidFlag::__WALL))?;
        assert!(matches!(stopped, WaitStatus::Stopped(..)), "{stopped:?}");
        let before = ptrace::getregs(pid)?;
        let word = ptrace::read(pid, (before.rip - 2) as *mut _)?;
        assert_eq!(word.to_ne_bytes()[..2], SYSCALL, "it computes");
        Ok(Self {
            pid,
            before,
            gone: false,
        })
    }

    /// Makes it make the system call `number`.
    pub fn call(&mut self, number: i64, args: &[Arg]) -> Outcome {
        assert!(!self.gone, "it is gone");
        let mut place = self.before.rsp - RED_ZONE;
        let mut values = [0; 6];
        for (value, arg) in values.iter_mut().zip(args) {
            let bytes = match arg {
                Arg::Number(number) => {
                    *value = *number as u64;
                    continue;
                }
                Arg::Text(text) => CString::new(*text).expect("a text").into_bytes_with_nul(),
                Arg::Bytes(bytes) => bytes.to_vec(),
            };
            place -= (bytes.len() as u64).next_multiple_of(16);
            *value = place;
            for (at, word) in (place..).step_by(8).zip(bytes.chunks(8)) {
                let mut whole = [0; 8];
                whole[..word.len()].copy_from_slice(word);
                let word = i64::from_ne_bytes(whole);
                ptrace::write(self.pid, at as *mut _, word).expect("its stack");
            }
        }
        let [rdi, rsi, rdx, r10, r8, r9] = values;
        let regs = libc::user_regs_struct {
            rip: self.before.rip - 2,
            rax: number as u64,
            // No call is to be made again.
            orig_rax: u64::MAX,
            rdi,
            rsi,
            rdx,
            r10,
            r8,
            r9,
            ..self.before
        };
        ptrace::setregs(self.pid, regs).expect("its registers");
        ptrace::step(self.pid, None).expect("a step");
        match waitpid(self.pid, Some(WaitPidFlag::__WALL)).expect("it") {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
            WaitStatus::Signaled(_, signal, _) => {
                self.gone = true;
                return Outcome::Killed(signal);
            }
            other => panic!("{other:?} after system call {number}"),
        }
        let result = ptrace::getregs(self.pid).expect("its registers").rax as i64;
        match result {
            -4095..=-1 => Outcome::Refused(-result as i32),
            result => Outcome::Returned(result),
        }
    }
}

impl Drop for Injected {
    fn drop(&mut self) {
        if !self.gone {
            let _ = ptrace::setregs(self.pid, self.before);
            let _ = ptrace::detach(self.pid, None);
        }
    }
}
