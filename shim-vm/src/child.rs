//! A process that the shim runs for a VM: its pid, and its end.

use crate::jail::Jail;
use crate::sys;
use std::io;
use std::process::Command;
use task::reaper::{self, ExitStatus, Reaper};
use tokio::sync::watch;

const SIGKILL: u32 = 9;

/// A child; it dies with the shim, and is reaped by it.
pub struct Child {
    pub pid: u32,
    ended: watch::Receiver<Option<ExitStatus>>,
}

impl Child {
    /// # Errors
    /// If it can't be started; the text names the program.
    pub fn spawn(mut command: Command, reaper: &Reaper) -> Result<Self, String> {
        // The last change to the new process: one of its user would undo it.
        task::sys::die_with_parent(&mut command);
        let spawned = reaper.spawn(&mut command);
        Self::of(&command, spawned)
    }

    /// The same, in `jail`; it is the only process in its pid namespace.
    ///
    /// # Errors
    /// Those of [`Child::spawn`].
    pub fn jailed(mut command: Command, jail: Jail, reaper: &Reaper) -> Result<Self, String> {
        // Before the jail, which allows few system calls.
        task::sys::start_afresh(&mut command);
        sys::confine(&mut command, jail);
        let spawned = sys::with_new_pids(|| command.spawn()).unwrap_or_else(Err);
        Self::of(&command, spawned.map(|child| reaper.adopt(child.id())))
    }

    fn of(command: &Command, spawned: io::Result<reaper::Child>) -> Result<Self, String> {
        let program = command.get_program().display().to_string();
        let mut child = spawned.map_err(|e| format!("start {program}: {e}"))?;
        let pid = child.pid;
        let (sender, ended) = watch::channel(None);
        tokio::task::spawn_local(async move {
            let status = child.exit().await;
            sender.send_replace(Some(status));
        });
        Ok(Self { pid, ended })
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
        // Until it is reaped its pid is nobody else's.
        if self.ended.borrow().is_none() && Reaper::is_child(self.pid) {
            let _ = task::sys::kill(self.pid, SIGKILL);
        }
    }
}
