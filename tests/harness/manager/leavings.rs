// SPDX-License-Identifier: Apache-2.0
//! What a daemon and its shims can leave on a machine.

use super::Manager;
use crate::containerd::ctr;
use crate::{proc, wait};
use std::fs;
use std::path::{Path, PathBuf};

/// Processes of the shims that serve this socket, by their command line.
pub fn shims(socket: &Path) -> Vec<i32> {
    let socket = socket.display().to_string();
    let is_shim = |&pid: &i32| {
        let words = proc::words(pid, "cmdline");
        words.contains(&socket) && words.iter().any(|word| word == "-id")
    };
    let alive = proc::all().into_iter().filter(|&pid| proc::alive(pid));
    alive.filter(is_shim).collect()
}

/// What is in a directory, if it is there.
pub fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect()
}

/// The cgroups that runc made for a namespace; their parent stays when the containers go.
pub fn remove_cgroups(namespace: &str) {
    let controllers = fs::read_dir("/sys/fs/cgroup").into_iter().flatten();
    for controller in controllers.filter_map(Result::ok) {
        let dir = controller.path().join(namespace);
        for child in fs::read_dir(&dir)
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
        {
            let _ = fs::remove_dir(child.path());
        }
        let _ = fs::remove_dir(dir);
    }
}

impl Manager {
    /// What a loss of power does: no process is left, nor anything in /run.
    pub fn reboot(&mut self, containers: &[i32]) {
        self.kill();
        for pid in self.shims().iter().chain(containers) {
            let _ = wait::signal(*pid, libc::SIGKILL);
        }
        for pid in containers {
            assert!(ctr::ends_within(*pid, super::DEADLINE), "{pid} lives");
        }
        // Before anything is removed: what is mounted there is not ours.
        for mount in proc::mounts_under(&self.state()).iter().rev() {
            let flags = nix::mount::MntFlags::MNT_DETACH;
            nix::mount::umount2(mount.as_str(), flags).expect("unmount");
        }
        assert!(proc::mounts_under(&self.state()).is_empty());
        fs::remove_dir_all(self.state()).expect("remove the state");
        let _ = fs::remove_dir_all(Path::new("/run/containerd/runc").join(self.namespace()));
        remove_cgroups(&self.namespace());
        self.restart();
    }
}
