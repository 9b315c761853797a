// SPDX-License-Identifier: Apache-2.0
//! The only place that waits for children.
//!
//! Two kinds of children end up here: those that this process made through [`Reaper::spawn`] or
//! handed to [`Reaper::adopt`], whose exits go to who did so, and orphans that the kernel gave us as the
//! subreaper (containers among them), whose exits go to the [`Heir`] of [`Reaper::run`]. A claim is
//! made in the same synchronous step as the child, and the loop runs on the same thread, so an exit
//! that comes early always finds its owner. What the heir has no room for is not reaped.
//!
//! A pid is as good as a pidfd here: all of them are children, and a child's pid is nobody else's
//! until this loop reaps it. So runc's `--pidfd-socket` would tell nothing more: an orphan's exit
//! comes with its pid alone, before or after the pidfd does. Where the parent is somebody else,
//! `pidfd_open(2)` and the time of the start tell processes apart (`leftovers`).

mod turns;

pub use crate::sys::NotExecuted;
pub use crate::sys::wait::{Ended, ExitStatus};

use crate::command::Command;
use crate::signals::Signals;
use crate::sys;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::oneshot;
use turns::Turns;

/// Reaps for the whole process.
pub struct Reaper {
    sigchld: Signals,
    claims: RefCell<HashMap<u32, oneshot::Sender<Ended>>>,
    pub turns: Turns,
    /// There is no program that could be run.
    #[cfg(test)]
    no_programs: bool,
}

/// A command that runs. Dropping it leaves it running; its exit is then nobody's business.
pub struct Child {
    pub pid: u32,
    ended: Option<Ended>,
    exit: oneshot::Receiver<Ended>,
}

impl Child {
    /// Waits until it has ended.
    pub async fn exit(&mut self) -> ExitStatus {
        self.end().await.status
    }

    /// The same, with what it used.
    pub async fn end(&mut self) -> Ended {
        if let Some(ended) = self.ended {
            return ended;
        }
        match (&mut self.exit).await {
            Ok(ended) => *self.ended.insert(ended),
            // The reaper lives as long as the process; without it nothing is known.
            Err(_) => std::future::pending().await,
        }
    }

    /// True once it was reaped.
    pub fn has_ended(&self) -> bool {
        self.ended.is_some() || !self.exit.is_empty()
    }

    /// Sends `signal` unless it has ended: a reaped pid may be somebody else's by now.
    pub fn kill(&self, signal: Signal) {
        if !self.has_ended() {
            let _ = kill(Pid::from_raw(self.pid.cast_signed()), signal);
        }
    }
}

impl Reaper {
    /// Takes over SIGCHLD of this thread, so call it before any other thread is started.
    ///
    /// # Errors
    /// From sigprocmask(2), signalfd(2) or the runtime's epoll.
    pub fn new() -> io::Result<Rc<Self>> {
        let sigchld = Signals::new([Signal::SIGCHLD])?;
        // For what is forked later; without it that only waits.
        let _ = sys::limits::make_room(io::stdin());
        Ok(Rc::new(Self {
            sigchld,
            claims: RefCell::default(),
            turns: Turns::new(sys::processors()),
            #[cfg(test)]
            no_programs: false,
        }))
    }

    /// One that finds no program to execute.
    #[cfg(test)]
    pub fn imagined() -> io::Result<Rc<Self>> {
        let mut reaper = Self::new()?;
        Rc::get_mut(&mut reaper)
            .ok_or(io::ErrorKind::Other)?
            .no_programs = true;
        Ok(reaper)
    }

    /// Starts a child that executes `command`, and claims its exit. It does not wait until the child
    /// does: on a busy machine that takes until the child has its turn, and its program may be on a
    /// disk that stands still. Why it does not, [`NotExecuted`] tells.
    ///
    /// # Errors
    /// Those of [`Command::spawn`].
    pub fn spawn(&self, command: &Command) -> io::Result<(Child, NotExecuted)> {
        #[cfg(test)]
        if self.no_programs {
            return Err(io::ErrorKind::NotFound.into());
        }
        let (pid, not_executed) = command.spawn()?;
        Ok((self.adopt(pid), not_executed))
    }

    /// Claims the exit of `pid`, a child that is there already and not reaped. If it is a child of our
    /// parent's ([`crate::record`]), that it has ended is told all the same, with status 255.
    pub fn adopt(&self, pid: u32) -> Child {
        if sys::wait::has_ended(pid).is_err() && crate::record::is_kept() {
            return Self::watch(pid);
        }
        let (sender, exit) = oneshot::channel();
        self.claims.borrow_mut().insert(pid, sender);
        let ended = None;
        Child { pid, ended, exit }
    }

    /// Watches `pid`, a child of somebody else's: that it has ended is told with status 255.
    pub fn watch(pid: u32) -> Child {
        let (sender, exit) = oneshot::channel();
        let end = sys::watch_process(pid);
        tokio::task::spawn_local(async move {
            if let Ok(end) = end {
                let _ = end.readable().await;
            }
            let _ = sender.send(Ended {
                status: ExitStatus::Code(u8::MAX),
                used: Duration::ZERO,
            });
        });
        let ended = None;
        Child { pid, ended, exit }
    }

    /// True if `pid` is a child of this process now, ended or not. One that was reaped is not: its
    /// number may be somebody else's.
    pub fn is_child(pid: u32) -> bool {
        sys::wait::has_ended(pid).is_ok()
    }

    /// True if `pid` is a child of this process that has not ended: until this loop reaps it,
    /// nobody else can have its number.
    pub fn runs(pid: u32) -> bool {
        sys::wait::has_ended(pid) == Ok(false)
    }

    /// Reaps for ever, and tells `heir` of every child that nobody spawned here.
    pub async fn run(&self, heir: &impl Heir) -> io::Error {
        loop {
            // Before the first signal too: another process image may have left zombies.
            self.reap(heir);
            tokio::select! {
                signal = self.sigchld.next() => {
                    if let Err(e) = signal {
                        return e;
                    }
                }
                () = heir.has_room() => {}
            }
        }
    }

    /// Reaps all that may be reaped now: one signal may stand for many children.
    fn reap(&self, heir: &impl Heir) {
        let told = |(pid, ended): (u32, Ended)| {
            let claim = self.claims.borrow_mut().remove(&pid);
            match claim {
                Some(claim) => drop(claim.send(ended)),
                None => heir.reaped(pid, ended.status),
            }
        };
        loop {
            if let Some(known) = heir.takes_only() {
                let claimed: Vec<u32> = self.claims.borrow().keys().copied().collect();
                let all = claimed.into_iter().chain(known);
                return all.filter_map(|pid| next_zombie(Some(pid))).for_each(told);
            }
            match next_zombie(None) {
                Some(child) => told(child),
                None => return,
            }
        }
    }
}

/// Who is told of children that nobody claimed.
pub trait Heir {
    fn reaped(&self, pid: u32, status: ExitStatus);

    /// The children that may be reaped now, if there is no room to keep the exits of more than these.
    /// Others stay zombies, and so their exits are not lost: the kernel has them, and counts each
    /// among the processes that its container may have.
    fn takes_only(&self) -> Option<Vec<u32>> {
        None
    }

    /// Waits until more may be reaped than could be before.
    fn has_room(&self) -> impl Future<Output = ()> {
        std::future::pending()
    }
}

impl<F: Fn(u32, ExitStatus)> Heir for F {
    fn reaped(&self, pid: u32, status: ExitStatus) {
        self(pid, status);
    }
}

/// Reaps one that has ended, or `only` this.
fn next_zombie(only: Option<u32>) -> Option<(u32, Ended)> {
    sys::wait::reap(only).unwrap_or_else(|e| {
        log::error!("waitpid: {e}");
        None
    })
}
