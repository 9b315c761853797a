// SPDX-License-Identifier: Apache-2.0
//! The part of the unsafe list that starts programs.
//!
//! A child that has a copy of this process's memory costs more than many a program that it executes: the
//! kernel copies the tables of all pages, and each page that either of the two writes to afterwards. So
//! the child shares the memory, and has a stack of its own (clone(2), `CLONE_VM`); and this process goes on
//! meanwhile, for the program may be on a disk that stands still.
//!
//! Two threads of control in one memory, of which one is not known to the C library: the child calls
//! nothing but the kernel, without errno, which is the other's. What it reads was made for it before, and
//! stays as it is until the kernel says that the child has left the memory (`CLONE_CHILD_CLEARTID`).

use super::{limits, watch};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, PoisonError};
use syscalls::{Sysno, syscall};
use tokio::io::Interest;

/// Why a forked child could not execute its program: a pipe in which the child writes the number of
/// the error, in native bytes, and which it closes otherwise.
pub struct NotExecuted {
    pipe: io::PipeReader,
    /// What the child may still use of this process's.
    memory: Option<Memory>,
}

impl NotExecuted {
    pub(super) fn of(pipe: io::PipeReader, memory: Option<Memory>) -> Self {
        Self { pipe, memory }
    }

    /// Its pipe, which can be read without a wait: another child that is on its way to its program, which
    /// may be on a disk that stands still, holds the other end, too.
    ///
    /// # Errors
    /// From pipe(2).
    pub(super) fn pipe() -> io::Result<(io::PipeReader, io::PipeWriter)> {
        let (read, write) = io::pipe()?;
        let nonblocking = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
        nix::fcntl::fcntl(&read, nonblocking)?;
        Ok((read, write))
    }

    /// The error of exec(2), if there was one: to be asked once the child has ended, or has shown
    /// that it executes the program.
    pub fn error(mut self) -> Option<io::Error> {
        let mut number = [0; 4];
        let read = self.pipe.read_exact(&mut number);
        read.ok()
            .map(|()| io::Error::from_raw_os_error(i32::from_ne_bytes(number)))
    }

    /// Waits until the child executes its program, or has ended before that without an error, as
    /// one that was killed has.
    ///
    /// # Errors
    /// That of exec(2), or of what the child was to do before it.
    pub async fn settled(self) -> io::Result<()> {
        let pipe = watch(self.pipe.into(), Interest::READABLE)?;
        drop(pipe.readable().await?);
        let pipe = pipe.into_inner().into();
        Self::of(pipe, self.memory).error().map_or(Ok(()), Err)
    }
}

/// What a child does, in the order of these fields from the last to the first.
pub struct Steps {
    /// The first of these that can be executed is.
    pub programs: Vec<CString>,
    pub args: Vec<CString>,
    /// What is set, beside what is inherited.
    pub env: Vec<CString>,
    pub dir: Option<CString>,
    /// Which file is to have which number; none has a number at which another is to be.
    pub files: Vec<(RawFd, RawFd)>,
    /// A mount namespace.
    pub mounts: Option<RawFd>,
    pub leads_group: bool,
    pub dies_with_parent: bool,
}

/// Starts a child that takes these steps, and does not wait for it. It inherits this process's variables
/// of those names for which that says so.
///
/// # Errors
/// From pipe(2), mmap(2) or clone(2).
pub fn spawn(steps: Steps, is_inherited: impl Fn(&[u8]) -> bool) -> io::Result<(u32, NotExecuted)> {
    let (read, write) = NotExecuted::pipe()?;
    let first = steps.files.iter().map(|&(_, number)| number + 1).max();
    let mut write = OwnedFd::from(write);
    if let Some(first) = first.filter(|&first| write.as_raw_fd() < first) {
        write = limits::from(&write, first)?;
    }
    let memory = Memory::new(steps, is_inherited, write.as_raw_fd())?;
    let child = memory.child();
    // A handler of this process's would run in the child on this process's memory.
    let mut mask = SigSet::empty();
    sigprocmask(
        SigmaskHow::SIG_SETMASK,
        Some(&SigSet::all()),
        Some(&mut mask),
    )?;
    let flags = libc::CLONE_VM | libc::CLONE_CHILD_CLEARTID | libc::SIGCHLD;
    // SAFETY: `start` reads what `memory` keeps until the child has left, on a stack that is its own, and
    // calls nothing but the kernel.
    let pid = unsafe {
        let none = null_mut::<c_void>();
        let left = (*child).is_in.as_ptr();
        libc::clone(start, memory.stack(), flags, child.cast(), none, none, left)
    };
    let pid = Errno::result(pid);
    let restored = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None);
    match pid {
        Ok(pid) => {
            restored?;
            Ok((pid.cast_unsigned(), NotExecuted::of(read, Some(memory))))
        }
        Err(e) => {
            // SAFETY: there is no child.
            unsafe { (*child).is_in.store(0, Ordering::Relaxed) };
            Err(e.into())
        }
    }
}

/// What a child reads.
struct Child {
    steps: Steps,
    programs: Vec<*const c_char>,
    /// With a null pointer at the end of each.
    args: Vec<*const c_char>,
    env: Vec<*const c_char>,
    open_files: Option<libc::rlimit>,
    parent: c_int,
    /// Where it writes the number of its error.
    not_executed: RawFd,
    /// 0 once it has left the memory.
    is_in: AtomicI32,
}

/// This process's variables of these names, where they are: nothing here changes them.
fn inherited(is_inherited: impl Fn(&[u8]) -> bool) -> Vec<*const c_char> {
    unsafe extern "C" {
        /// environ(7)
        static environ: *const *const c_char;
    }
    let mut all = Vec::new();
    // SAFETY: a list of pointers to texts, or none, with a null pointer at its end. What changes it does so
    // before this process has anything to start.
    unsafe {
        let mut next = environ;
        while !next.is_null() && !(*next).is_null() {
            let text = CStr::from_ptr(*next).to_bytes();
            // As the standard library reads them: a name is not empty, and may begin with the sign.
            let end = text.iter().skip(1).position(|&byte| byte == b'=');
            if end.is_some_and(|end| is_inherited(&text[..=end])) {
                all.push(*next);
            }
            next = next.add(1);
        }
    }
    all
}

/// The memory of a child's that this process must not use for anything else, until the child has left it.
pub struct Memory {
    child: *mut Child,
    stack: *mut c_void,
}

// SAFETY: one thread at a time has it, and the child only reads what it points to.
unsafe impl Send for Memory {}

/// Those of children that nobody waits for, and that have not left: a program's disk may stand still.
static LATER: Mutex<Vec<Memory>> = Mutex::new(Vec::new());

impl Memory {
    /// In bytes, of which most are never touched; below it is a page that nobody can.
    const STACK: usize = 64 << 10;

    fn new(
        steps: Steps,
        is_inherited: impl Fn(&[u8]) -> bool,
        not_executed: RawFd,
    ) -> io::Result<Self> {
        Self::sweep();
        let open_files = limits::to_restore()?;
        // SAFETY: new memory, that nobody else has. Its lowest page, with which a stack would end, is taken
        // away again.
        let stack = unsafe {
            let (all, private) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
            let flags = private | libc::MAP_ANONYMOUS | libc::MAP_STACK;
            let stack = libc::mmap(null_mut(), Self::STACK, all, flags, -1, 0);
            if stack == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            libc::mprotect(stack, 1, libc::PROT_NONE);
            stack
        };
        let pointers =
            |all: &[CString]| -> Vec<_> { all.iter().map(|text| text.as_ptr()).collect() };
        let mut env = inherited(is_inherited);
        env.extend(pointers(&steps.env));
        let child = Box::new(Child {
            programs: pointers(&steps.programs),
            args: [pointers(&steps.args), vec![null()]].concat(),
            env: [env, vec![null()]].concat(),
            open_files,
            parent: nix::unistd::getpid().as_raw(),
            not_executed,
            is_in: AtomicI32::new(1),
            steps,
        });
        let child = Box::into_raw(child);
        Ok(Self { child, stack })
    }

    fn child(&self) -> *mut Child {
        self.child
    }

    /// Where the stack begins, which grows down.
    fn stack(&self) -> *mut c_void {
        self.stack.wrapping_byte_add(Self::STACK)
    }

    fn is_in_use(&self) -> bool {
        // SAFETY: it is there until this is dropped.
        unsafe { (*self.child).is_in.load(Ordering::Acquire) != 0 }
    }

    /// Gives back what children have left since.
    fn sweep() {
        let mut later = LATER.lock().unwrap_or_else(PoisonError::into_inner);
        let left: Vec<Self> = later.extract_if(.., |memory| !memory.is_in_use()).collect();
        drop(later);
        drop(left);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let Self { child, stack } = *self;
        if self.is_in_use() {
            let mut later = LATER.lock().unwrap_or_else(PoisonError::into_inner);
            later.push(Self { child, stack });
            return;
        }
        // SAFETY: the child has left, and nobody else has the pointers.
        unsafe {
            drop(Box::from_raw(child));
            libc::munmap(stack, Self::STACK);
        }
    }
}

/// The child, which has this process's memory.
extern "C" fn start(child: *mut c_void) -> c_int {
    // SAFETY: what `spawn` gave, which lives until this process has left.
    let child = unsafe { &*child.cast::<Child>() };
    let Err(e) = execute(child);
    let number = e.into_raw().to_ne_bytes();
    // SAFETY: the call reads what lives until it returns; the other never does.
    unsafe {
        let (text, length) = (number.as_ptr(), number.len());
        let _ = syscall!(Sysno::write, child.not_executed, text, length);
        let _ = syscall!(Sysno::exit_group, 127);
    }
    127
}

fn execute(child: &Child) -> Result<std::convert::Infallible, syscalls::Errno> {
    let Child { steps, .. } = child;
    // SAFETY: the calls take numbers, and read what lives until this process has left.
    unsafe {
        if steps.dies_with_parent {
            syscall!(Sysno::prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL)?;
            // Whose parent is dead by now will not be told any more.
            if syscall!(Sysno::getppid)? as c_int != child.parent {
                return Err(syscalls::Errno::ESRCH);
            }
        }
        if steps.leads_group {
            syscall!(Sysno::setpgid, 0, 0)?;
        }
        if let Some(namespace) = steps.mounts {
            syscall!(Sysno::setns, namespace, libc::CLONE_NEWNS)?;
        }
        for &(file, number) in &steps.files {
            syscall!(Sysno::dup3, file, number, 0)?;
        }
        if let Some(dir) = &steps.dir {
            syscall!(Sysno::chdir, dir.as_ptr())?;
        }
        if let Some(limit) = &child.open_files {
            let limit: *const libc::rlimit = limit;
            let none = null::<libc::rlimit>();
            syscall!(Sysno::prlimit64, 0, libc::RLIMIT_NOFILE, limit, none)?;
        }
        forget_signals()?;
        let mut refused = syscalls::Errno::ENOENT;
        for &program in &child.programs {
            let (args, env) = (child.args.as_ptr(), child.env.as_ptr());
            match syscall!(Sysno::execve, program, args, env) {
                // As execvp(3): what may be found elsewhere is looked for there.
                Err(syscalls::Errno::EACCES) => refused = syscalls::Errno::EACCES,
                Err(syscalls::Errno::ENOENT | syscalls::Errno::ENOTDIR) => {}
                Err(e) => return Err(e),
                Ok(_) => {}
            }
        }
        Err(refused)
    }
}

/// No signal has a handler, which is this process's, and none is blocked any more; what is ignored stays
/// so but for SIGPIPE, which the standard library has ignored for this process.
///
/// # Safety
/// In a process of one thread that does not need its handlers.
unsafe fn forget_signals() -> Result<(), syscalls::Errno> {
    /// A `struct sigaction` of the kernel's is not longer; its first word is the handler.
    type Action = [usize; 4];
    const SET: usize = size_of::<u64>();
    const LAST: c_int = 64;
    let default: Action = [libc::SIG_DFL; 4];
    // SAFETY: the calls read and write what lives until they return.
    unsafe {
        for signal in 1..=LAST {
            let mut action = default;
            let none = null::<Action>();
            syscall!(Sysno::rt_sigaction, signal, none, &raw mut action, SET)?;
            let is_handled = ![libc::SIG_DFL, libc::SIG_IGN].contains(&action[0]);
            if is_handled || signal == libc::SIGPIPE {
                let none = null_mut::<Action>();
                syscall!(Sysno::rt_sigaction, signal, &raw const default, none, SET)?;
            }
        }
        let blocked = 0_u64;
        let none = null_mut::<u64>();
        let how = libc::SIG_SETMASK;
        syscall!(Sysno::rt_sigprocmask, how, &raw const blocked, none, SET)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Command;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;

    fn wait_for(fd: &impl AsFd) {
        let mut ready = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        poll(&mut ready, PollTimeout::NONE).unwrap();
    }

    fn is_kept(stack: *mut c_void) -> bool {
        let later = LATER.lock().unwrap();
        later.iter().any(|memory| memory.stack == stack)
    }

    #[test]
    fn memory_is_given_back_once_its_child_executes_its_program() {
        let (reader, writer) = io::pipe().unwrap();
        let mut command = Command::new("/bin/cat");
        command.stdin(reader);
        let (pid, not_executed) = command.spawn().unwrap();
        let stack = not_executed.memory.as_ref().unwrap().stack;
        wait_for(&not_executed.pipe);
        drop(not_executed);
        assert!(!is_kept(stack));
        assert_eq!(crate::sys::wait::has_ended(pid), Ok(false));
        drop(writer);
    }
}
