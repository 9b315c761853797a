// SPDX-License-Identifier: Apache-2.0
//! Making an exec's process, and ending it and what a failed one leaves.

use super::cli::Console;
use super::failure::Failure;
use super::{Oci, SIGKILL, streams_of};
use crate::aside;
use crate::bundle::write_private;
use crate::container::Container;
use crate::error::{Error, Result};
use crate::foreign::read_made;
use crate::process::exec::Exec;
use crate::reaper::Reaper;
use crate::service::Engine;
use crate::stdio::{self, Io};
use crate::sys;
use nix::errno::Errno;
use protos::ttrpc::Context;
use std::fs;
use std::io;

const FAILED: &str = "OCI runtime exec failed";

/// Sends `signal` to the process of an exec, which was not reaped.
///
/// # Errors
/// NotFound if it has ended, else code Unknown.
pub fn kill(pid: u32, signal: u32) -> Result<()> {
    match sys::kill(pid, signal) {
        Ok(()) => Ok(()),
        Err(Errno::ESRCH) => Err(Error::finished()),
        Err(e) => Err(Error::Refused(format!(
            "unknown error after kill: signal {signal}: {}",
            io::Error::from(e)
        ))),
    }
}

impl Container<Oci> {
    pub(super) async fn make_exec(
        &self,
        engine: &Engine<Oci>,
        exec: &Exec,
        context: &Context,
    ) -> Result<(u32, Io)> {
        engine.expects_move();
        let process = &exec.process;
        let of = streams_of(engine, self, exec.id());
        let ends = process.ends.take();
        let prepared = stdio::prepare(&process.paths, ends, of, &engine.runtime.reaper, context);
        let (streams, prepared) = prepared.await?;
        let content = exec.take_spec();
        let direct = self.make_directly(engine, exec.id(), &content, &streams, context);
        if let Some(made) = direct.await.map_err(|failure| failure.oci(FAILED))? {
            process.made_at.set(Some(made.at()));
            let io = prepared.connect(std::future::ready(Ok(())), |never| never);
            return Ok((made.pid, io.await?));
        }
        let pid_file = self.bundle.pid(&process.id);
        let spec = self.bundle.exec_spec(exec.id());
        let (old, wanted) = (pid_file.clone(), spec.clone());
        let written = aside::run(move || {
            let _ = fs::remove_file(old);
            write_private(&wanted, &content).map_err(Error::io("write", &wanted))
        });
        written.await?;
        let socket = prepared.console_socket().map(ToOwned::to_owned);
        let console = Console(socket.as_deref());
        let run = self
            .own
            .cli
            .exec(&self.id, exec.id(), console, streams, context);
        let made = prepared
            .connect(run, |failure: Failure| failure.oci(FAILED))
            .await;
        let failed = made.is_err();
        let born = aside::run(move || {
            let _ = fs::remove_file(&spec);
            let born = read_made(&pid_file);
            if failed {
                let _ = fs::remove_file(&pid_file);
            }
            born
        });
        match (made, born.await) {
            (Ok(io), Ok((pid, at))) => {
                process.made_at.set(at);
                Ok((pid, io))
            }
            (Ok(_), Err(e)) => Err(Failure::broken_promise(e.to_string()).oci(FAILED)),
            (Err(e), born) => {
                // The runtime made it, and failed all the same: nobody will ever ask for it.
                if let Ok((pid, _)) = born
                    && Reaper::is_child(pid)
                {
                    let _ = sys::kill(pid, SIGKILL);
                }
                Err(e)
            }
        }
    }

    /// Kills what failed execs have left (T23). In a pid namespace of its own orphans go to the
    /// container's init, so a child of ours there that nobody tracks is one that an OCI runtime
    /// made and told nobody of. Cgroups below may be those of other containers. Not to be called
    /// while an exec is being started.
    pub(super) fn kill_strays(&self, engine: &Engine<Oci>) {
        if !self.own.own_pid_namespace {
            return;
        }
        for pid in self.cgroup_members() {
            // A child that is not reaped: the pid can be nobody else's.
            if Reaper::is_child(pid) && !engine.runtime.join.is_tracked(pid) {
                log::warn!("{}: process {pid} of a failed exec is killed", self.id);
                let _ = sys::kill(pid, SIGKILL);
            }
        }
    }

    /// The pids in the container's cgroup itself, not in those that it has made below.
    fn cgroup_members(&self) -> Vec<u32> {
        let cgroup = self.own.cgroup.borrow();
        let members = cgroup.as_ref().map(|cgroup| cgroup.members());
        members.unwrap_or_default()
    }
}
