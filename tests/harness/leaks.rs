// SPDX-License-Identifier: Apache-2.0
//! What a test left on the machine: looked for after each one that passed, removed after all.

use crate::proc;
use crate::test::Test;
use crate::wait;
use nix::mount::{MntFlags, umount2};
use std::fs;
use std::path::{Path, PathBuf};

/// Everything of the test that is still there, one line each.
pub async fn of(test: &Test) -> Vec<String> {
    let mut found = Vec::new();
    // Killed processes take a moment to end, and the kernel to empty their cgroups.
    for pid in processes(test) {
        let _ = tokio::time::timeout(wait::DEADLINE / 4, wait::ended(pid)).await;
    }
    found.extend(
        processes(test)
            .into_iter()
            .map(|pid| format!("process {}", proc::describe(pid))),
    );
    found.extend(
        proc::mounts_under(test.dir())
            .into_iter()
            .map(|point| format!("mount {point}")),
    );
    found.extend(
        cgroups(test)
            .into_iter()
            .map(|dir| format!("cgroup {}", dir.display())),
    );
    let files = [
        names(&test.dir().join("run")),
        names(&test.dir().join("tmp")),
    ]
    .concat();
    found.extend(
        files
            .into_iter()
            .map(|file| format!("file {}", file.display())),
    );
    let sockets = test.sockets().into_iter().filter(|socket| socket.exists());
    found.extend(sockets.map(|socket| format!("socket {}", socket.display())));
    let vms = test.ids().into_iter().map(|id| test.vm_dir(&id));
    found.extend(
        vms.filter(|dir| dir.exists())
            .map(|dir| format!("VM {}", dir.display())),
    );
    let states = names(&test.runc_root());
    found.extend(
        states
            .into_iter()
            .map(|dir| format!("runtime's state {}", dir.display())),
    );
    found
}

/// Living processes that the test started, by whatever way.
fn processes(test: &Test) -> Vec<i32> {
    let own = std::process::id() as i32;
    let marked = |pid: &i32| *pid != own && proc::mentions(*pid, test.namespace());
    proc::all().into_iter().filter(marked).collect()
}

/// Control groups that carry the test's name, in every hierarchy.
fn cgroups(test: &Test) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for hierarchy in names(Path::new("/sys/fs/cgroup")) {
        let named = |dir: &PathBuf| dir.to_string_lossy().contains(test.namespace());
        found.extend(
            names(&hierarchy)
                .into_iter()
                .filter(|dir| dir.is_dir() && named(dir)),
        );
        if hierarchy.is_dir() && named(&hierarchy) {
            found.push(hierarchy);
        }
    }
    found
}

/// Paths of a directory's entries; none if it does not exist.
fn names(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect()
}

/// Removes all traces of the test, whatever state it is in.
pub async fn clean(test: &Test) {
    for pid in processes(test) {
        let _ = wait::signal(pid, libc::SIGKILL);
        if proc::alive(pid) {
            wait::ended(pid).await;
        }
    }
    // A process may have started another before it died.
    for pid in processes(test) {
        let _ = wait::signal(pid, libc::SIGKILL);
        wait::ended(pid).await;
    }
    for point in proc::mounts_under(test.dir()).into_iter().rev() {
        let _ = umount2(Path::new(&point), MntFlags::MNT_DETACH);
    }
    for dir in cgroups(test) {
        let gone = || fs::remove_dir(&dir).map_err(|e| e.to_string());
        if dir.exists() {
            wait::until(&format!("removal of {}", dir.display()), gone).await;
        }
    }
    for socket in test.sockets().into_iter().chain(test.stale_sockets()) {
        let _ = fs::remove_file(socket);
    }
    for id in test.ids() {
        let _ = fs::remove_dir_all(test.vm_dir(&id));
    }
    let _ = fs::remove_dir_all(test.runc_root());
    // Not while anything is mounted there: the removal would go on behind the mount.
    assert!(
        proc::mounts_under(test.dir()).is_empty(),
        "mounts under {}",
        test.dir().display()
    );
    fs::remove_dir_all(test.dir()).expect("removal of the test's directory");
}
