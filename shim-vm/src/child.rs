// SPDX-License-Identifier: Apache-2.0
//! A process that the shim runs for a VM: its pid, and its end.

use crate::jail::Jail;
use crate::sys;
use std::io;
use std::os::fd::OwnedFd;
use std::process::Command;
use task::reaper::{self, ExitStatus, NotExecuted, Reaper};
use task::record;
use tokio::sync::watch;

const SIGKILL: u32 = 9;

/// A child; it dies with the shim, and is reaped by it. Where the shim has a keeper, it is the keeper's
/// child once that shim has died, and goes on.
pub struct Child {
    pub pid: u32,
    is_ours: bool,
    /// Of one that somebody else reaps, whenever that is.
    pidfd: Option<OwnedFd>,
    program: String,
    not_executed: Option<NotExecuted>,
    ended: watch::Receiver<Option<ExitStatus>>,
}

impl Child {
    /// Forks one that executes `command`, as the only process in its pid namespace, and does not
    /// wait until it does: see [`Child::runs`].
    ///
    /// # Errors
    /// If there can be none; the text names the program.
    pub fn fork(mut command: Command, reaper: &Reaper) -> Result<Self, String> {
        task::sys::start_afresh(&mut command);
        if !record::is_kept() {
            // The last change to the new process: one of its user would undo it.
            task::sys::die_with_parent(&mut command);
        }
        Self::of(command, reaper)
    }

    /// The same, in `jail`.
    ///
    /// # Errors
    /// Those of [`Child::fork`].
    pub fn jailed(mut command: Command, jail: Jail, reaper: &Reaper) -> Result<Self, String> {
        // Before the jail, which allows few system calls.
        task::sys::start_afresh(&mut command);
        sys::confine(&mut command, jail);
        Self::of(command, reaper)
    }

    fn of(mut command: Command, reaper: &Reaper) -> Result<Self, String> {
        let program = command.get_program().display().to_string();
        let forked = sys::with_new_pids(|| task::sys::fork(&mut command)).unwrap_or_else(Err);
        let (pid, not_executed) = forked.map_err(|e| cannot(&program, &e))?;
        Ok(Self {
            program,
            not_executed: Some(not_executed),
            ..Self::take_over(pid, reaper)
        })
    }

    /// One that another image of this process has started, and that executes its program.
    pub fn take_over(pid: u32, reaper: &Reaper) -> Self {
        let is_ours = Reaper::is_child(pid) || !record::is_kept();
        Self {
            is_ours,
            ..Self::watched(pid, reaper.adopt(pid))
        }
    }

    /// One that process `parent` has started, and that executes its program: if it is not that one's
    /// child any more, it has ended.
    pub fn of_another(pid: u32, parent: u32) -> Self {
        // Held before it is looked at: so it is this very process that is watched, and killed.
        let pidfd = task::sys::pidfd(pid).ok();
        let pidfd = pidfd.filter(|_| task::proc::parent(pid) == Some(parent));
        match pidfd {
            Some(pidfd) => Self {
                pidfd: Some(pidfd),
                ..Self::watched(pid, Reaper::watch(pid))
            },
            None => Self {
                ended: watch::channel(Some(ExitStatus::Code(u8::MAX))).1,
                ..Self::watched(pid, Reaper::watch(0))
            },
        }
    }

    fn watched(pid: u32, mut child: reaper::Child) -> Self {
        let (sender, ended) = watch::channel(None);
        tokio::task::spawn_local(async move {
            let status = child.exit().await;
            sender.send_replace(Some(status));
        });
        Self {
            pid,
            is_ours: false,
            pidfd: None,
            program: String::new(),
            not_executed: None,
            ended,
        }
    }

    /// Waits until it executes its program, which may be on a disk that stands still, or has ended.
    ///
    /// # Errors
    /// If it can't; the text names the program.
    pub async fn runs(&mut self) -> Result<(), String> {
        match self.not_executed.take() {
            Some(it) => it.settled().await.map_err(|e| cannot(&self.program, &e)),
            None => Ok(()),
        }
    }

    /// Waits until it has ended.
    pub async fn wait(&self) -> ExitStatus {
        let mut ended = self.ended.clone();
        let status = ended.wait_for(Option::is_some).await;
        // Who sends is there until it has sent.
        let status = status.ok().and_then(|status| *status);
        status.unwrap_or(ExitStatus::Code(u8::MAX))
    }

    /// Ends it now; [`Child::wait`] tells when it is done.
    pub fn kill(&self) {
        if let Some(pidfd) = &self.pidfd {
            let _ = task::sys::pidfd_kill(pidfd);
            return;
        }
        // Until it is reaped its pid is nobody else's; a keeper does so when the VM is gone.
        if self.ended.borrow().is_none() && (!self.is_ours || Reaper::is_child(self.pid)) {
            let _ = task::sys::kill(self.pid, SIGKILL);
        }
    }
}

fn cannot(program: &str, e: &io::Error) -> String {
    format!("start {program}: {e}")
}
