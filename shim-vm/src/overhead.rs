// SPDX-License-Identifier: Apache-2.0
//! What a VM costs its host, by /proc: told beside what its containers use in it.

use crate::vm::Vm;
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use protos::Message;
use protos::vm::{Host, Metrics, Process};
use std::io;
use task::aside;

/// The encoded [`Metrics`] of the VM, to be appended to a container's.
pub async fn of(vm: &Vm) -> Vec<u8> {
    let host = Some(host(vm).await);
    Metrics { host }.encode_to_vec()
}

/// What its processes use; one that is gone by now is left out.
pub async fn host(vm: &Vm) -> Host {
    let pids = [vm.pid(), vm.files_pid(), std::process::id()];
    // The kernel looks at every page: not in the loop.
    let told = aside::run(move || {
        let [vmm, files, shim] = pids.map(|pid| match process(pid) {
            Ok(process) => Some(process),
            Err(e) => {
                log::debug!("cost of process {pid}: {e}");
                None
            }
        });
        Host { vmm, files, shim }
    });
    told.await
}

/// # Errors
/// If there is no such process, or it may not be looked at.
fn process(pid: u32) -> io::Result<Process> {
    let maps = task::proc::text(format!("/proc/{pid}/smaps_rollup"))?;
    let none = || io::Error::new(io::ErrorKind::InvalidData, "no Pss");
    let clock = clock_getcpuclockid(Pid::from_raw(pid.cast_signed()))?;
    let used = clock_gettime(clock)?;
    Ok(Process {
        pid,
        memory: pss(&maps).ok_or_else(none)?,
        cpu_usec: (used.tv_sec() * 1_000_000 + used.tv_nsec() / 1000).unsigned_abs(),
    })
}

/// The line `Pss: <number> kB`, in bytes.
fn pss(maps: &str) -> Option<u64> {
    let number = maps.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: u64 = number.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_by_its_own_files() {
        assert_eq!(
            pss("Rss:  9 kB\nPss:                 345 kB\nPss_Dirty: 1 kB\n"),
            Some(345 << 10)
        );
        assert_eq!(pss("Pss_Dirty: 1 kB\n"), None);
        let own = process(std::process::id()).unwrap();
        assert!(own.memory > 100 << 10, "{own:?}");
        assert!(process(u32::MAX >> 1).is_err());
    }

    /// Containerd's message and ours in the same bytes, each as if it were alone.
    #[test]
    fn the_same_bytes_are_both_messages() {
        use protos::cgroups::v2::{Metrics as Containers, PidsStat};
        let pids = Some(PidsStat {
            current: 3,
            limit: 7,
        });
        let of_container = Containers {
            pids,
            ..Default::default()
        };
        let of_host = Metrics {
            host: Some(Host {
                shim: process(std::process::id()).ok(),
                ..Default::default()
            }),
        };
        let mut bytes = of_container.encode_to_vec();
        bytes.extend(of_host.encode_to_vec());
        assert_eq!(Containers::decode(bytes.as_slice()).unwrap(), of_container);
        assert_eq!(Metrics::decode(bytes.as_slice()).unwrap(), of_host);
    }
}
