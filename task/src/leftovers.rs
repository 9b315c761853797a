// SPDX-License-Identifier: Apache-2.0
//! What the OCI runtime does not know of a container whose shim is gone: processes and cgroups of
//! a create that was cut off, an init whose records are lost, half a start in the bundle.

use crate::bundle::Bundle;
use crate::cgroup::{Remains, path_of};
use crate::foreign::{read_pid, written_at};
use crate::oci::Options;
use crate::process::ProcessId;
use crate::{proc, sys};
use nix::time::{ClockId, clock_gettime};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// What may be left of one container.
pub struct Leftovers {
    bundle: Bundle,
    cgroups: Option<Remains>,
}

impl Leftovers {
    /// Looks where config.json says; one that can't be read tells of no cgroup.
    pub fn of(bundle: Bundle, id: &str, options: &Options) -> Self {
        let cgroup = |bundle: &Bundle, id: &str| -> Option<PathBuf> {
            let spec = bundle.read_spec().ok()?;
            let systemd = options.systemd_cgroup;
            Some(path_of(spec.cgroups_path(), id, systemd))
        };
        let cgroups = cgroup(&bundle, id).map(|path| {
            let other = |bundle: Bundle| {
                let id = bundle.path().file_name()?.to_str()?.to_owned();
                cgroup(&bundle, &id)
            };
            let others: Vec<PathBuf> = bundle.siblings().into_iter().filter_map(other).collect();
            Remains::find(&path, &others)
        });
        Self { bundle, cgroups }
    }

    /// Removes cgroups that nobody is in: what is left of a create that was given up.
    pub async fn remove_empty_cgroups(&self) -> bool {
        match &self.cgroups {
            Some(cgroups) => cgroups.remove_empty().await,
            None => true,
        }
    }

    /// Ends all of it. False if it resists.
    pub async fn end(&self) -> bool {
        let ended = match &self.cgroups {
            Some(cgroups) => cgroups.end().await,
            None => true,
        };
        kill_init(&self.bundle);
        self.bundle.remove_rubbish();
        ended
    }
}

/// Kills the process in init.pid, if it is still the one that was meant: made after the bundle
/// and before the file was written. Whoever has the pid now, instead of it, is younger.
fn kill_init(bundle: &Bundle) {
    let file = bundle.pid(&ProcessId::Init);
    let Ok(pid) = read_pid(&file) else { return };
    let Ok(process) = sys::pidfd(pid) else { return };
    let born = started(pid);
    let config = written_at(&bundle.path().join("config.json"));
    if let (Some(born), Some(config), Some(written)) = (born, config, written_at(&file))
        && (config..=written).contains(&born)
    {
        let _ = sys::pidfd_kill(&process);
    }
}

/// When process `pid` was started, to a clock tick (proc_pid_stat(5)).
fn started(pid: u32) -> Option<SystemTime> {
    const TICKS: u64 = 100;
    let ticks = proc::started(pid)?;
    let up = clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?;
    let age = Duration::from(up)
        .checked_sub(Duration::from_millis(ticks.saturating_mul(1000) / TICKS))?;
    SystemTime::now().checked_sub(age)
}
