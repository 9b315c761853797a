// SPDX-License-Identifier: Apache-2.0
//! What a containerd, its shims and their containers can leave on a machine: where to look, and
//! how to take it away.

use super::ctr::ends_within;
use crate::{proc, wait};
use nix::mount::{MntFlags, umount2};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A namespace, and the name of its containerd's directory in /tmp: `dnc<pid of the test>-<count>`.
pub const PREFIX: &str = "dnc";

/// Processes of shims that serve the containerd in `dir`: pid, and whether it is a daemon rather
/// than a `start` or `delete`.
pub fn shims(dir: &Path) -> Vec<(i32, bool)> {
    let address = dir.join("c.sock");
    let shim = |pid: i32| {
        let words = proc::words(pid, "cmdline");
        let after = |flag: &str| words.iter().skip_while(|w| *w != flag).nth(1);
        // Not ctr, which has no -namespace.
        let ours = Path::new(after("-address")?) == address && after("-namespace").is_some();
        let daemon = !matches!(words.last().map(String::as_str), Some("start" | "delete"));
        (ours && proc::alive(pid)).then_some((pid, daemon))
    };
    proc::all().into_iter().filter_map(shim).collect()
}

/// Everything of the containerd in `dir` that must be gone once its containers are deleted.
pub fn find(dir: &Path, ids: &BTreeSet<String>) -> Vec<String> {
    let mut left = Vec::new();
    for (shim, _) in shims(dir) {
        left.push(format!("shim {}", proc::describe(shim)));
    }
    for group in container_cgroups(dir) {
        left.push(format!("cgroup {}", group.display()));
        for pid in processes(&group) {
            left.push(format!("  with process {}", proc::describe(pid)));
        }
    }
    left.extend(
        proc::mounts_under(dir)
            .into_iter()
            .map(|mount| format!("mount {mount}")),
    );
    let mut places = bundles(dir);
    places.extend(runc_states(dir));
    places.extend(pods(dir));
    places.push(dir.join("tmp"));
    for place in places {
        left.extend(
            entries(&place)
                .iter()
                .map(|path| format!("file {}", path.display())),
        );
    }
    left.extend(
        networks(ids)
            .iter()
            .map(|path| format!("network {}", path.display())),
    );
    let sockets = ids
        .iter()
        .flat_map(|id| sockets(dir, id))
        .filter(|path| path.exists());
    left.extend(sockets.map(|path| format!("socket {}", path.display())));
    left
}

/// Takes everything away, by force.
pub fn remove(dir: &Path, ids: &BTreeSet<String>) {
    let config = dir.join("config.toml").to_string_lossy().into_owned();
    let daemon = |pid: &i32| proc::words(*pid, "cmdline").contains(&config);
    let everyone = || {
        let mut pids: Vec<i32> = shims(dir).into_iter().map(|(pid, _)| pid).collect();
        pids.extend(proc::all().into_iter().filter(daemon));
        pids.extend(
            container_cgroups(dir)
                .iter()
                .flat_map(|group| processes(group)),
        );
        pids.retain(|&pid| proc::alive(pid));
        pids
    };
    // A killed shim's runc may still put a process into a cgroup: look again, a few times.
    for _ in 0..5 {
        let pids = everyone();
        for group in container_cgroups(dir) {
            let _ = fs::write(group.join("freezer.state"), "THAWED");
            let _ = fs::write(group.join("cgroup.freeze"), "0");
        }
        for &pid in &pids {
            let _ = wait::signal(pid, libc::SIGKILL);
        }
        for &pid in &pids {
            ends_within(pid, Duration::from_secs(5));
        }
        if pids.is_empty() {
            break;
        }
    }
    let mut mounts = proc::mounts_under(dir);
    mounts.sort_by_key(|mount| std::cmp::Reverse(mount.len()));
    for mount in mounts {
        let _ = umount2(Path::new(&mount), MntFlags::MNT_DETACH);
    }
    let bundles = bundles(dir);
    let bundles = bundles.iter().flat_map(|place| entries(place));
    let mut ids = ids.clone();
    ids.extend(bundles.filter_map(|bundle| Some(bundle.file_name()?.to_str()?.to_owned())));
    for path in ids.iter().flat_map(|id| sockets(dir, id)) {
        let _ = fs::remove_file(path);
    }
    for path in networks(&ids) {
        let _ = fs::remove_file(path);
    }
    for group in container_cgroups(dir).iter().rev().chain(&cgroups(dir)) {
        let _ = fs::remove_dir(group);
    }
    for place in runc_states(dir) {
        let _ = fs::remove_dir_all(place);
    }
    let _ = fs::remove_dir_all(dir);
}

/// Takes away what tests left whose process was killed.
pub fn sweep() {
    for dir in entries(Path::new("/tmp")) {
        let name = namespace(&dir);
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split_once('-'));
        let Some((pid, count)) = owner else { continue };
        let (Ok(pid), Ok(_)) = (pid.parse::<i32>(), count.parse::<u32>()) else {
            continue;
        };
        if !proc::alive(pid) && dir.join("config.toml").exists() {
            remove(&dir, &BTreeSet::new());
        }
    }
}

/// The namespace of Kubernetes' containers, whatever the directory is.
pub const KUBERNETES: &str = "k8s.io";

/// The directory and the containerd namespace have one name.
fn namespace(dir: &Path) -> &str {
    dir.file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
}

/// Directories of bundles and of their work files.
fn bundles(dir: &Path) -> Vec<PathBuf> {
    let tasks = "io.containerd.runtime.v2.task";
    let tasks = [dir.join("s").join(tasks), dir.join("r").join(tasks)];
    tasks.iter().flat_map(|place| entries(place)).collect()
}

/// Where runc keeps containers: its usual place, and one in the directory for Kubernetes'.
fn runc_states(dir: &Path) -> Vec<PathBuf> {
    let roots = entries(&dir.join("runc"));
    let mut places: Vec<PathBuf> = roots.iter().flat_map(|root| entries(root)).collect();
    places.push(Path::new("/run/containerd/runc").join(namespace(dir)));
    places
}

/// Where containerd keeps the files of pods and their containers.
fn pods(dir: &Path) -> Vec<PathBuf> {
    let place = |root: &str| dir.join(root).join("io.containerd.grpc.v1.cri");
    let names = |place: PathBuf| [place.join("sandboxes"), place.join("containers")];
    [place("r"), place("s")]
        .into_iter()
        .flat_map(names)
        .collect()
}

/// What the CNI library remembers of networks that pods are in.
fn networks(ids: &BTreeSet<String>) -> Vec<PathBuf> {
    let mut found = entries(Path::new("/var/lib/cni/results"));
    found.retain(|path| {
        let name = path.to_string_lossy();
        ids.iter().any(|id| name.contains(&format!("-{id}-")))
    });
    found
}

/// Where the shim of a container, or of a group, listens (contract B31).
fn sockets(dir: &Path, id: &str) -> [PathBuf; 2] {
    [namespace(dir), KUBERNETES].map(|namespace| {
        let name = dir.join("c.sock").join(namespace).join(id);
        let digest = Sha256::digest(name.to_string_lossy().as_bytes());
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Path::new("/run/containerd/s").join(digest)
    })
}

/// `/sys/fs/cgroup/<namespace>`, on v1 once per hierarchy. runc leaves them, empty.
fn cgroups(dir: &Path) -> Vec<PathBuf> {
    let root = PathBuf::from("/sys/fs/cgroup");
    let places = entries(&root).into_iter().chain([root]);
    places
        .map(|place| place.join(namespace(dir)))
        .filter(|path| path.is_dir())
        .collect()
}

/// All cgroups below those, parents before children.
fn container_cgroups(dir: &Path) -> Vec<PathBuf> {
    let mut groups = cgroups(dir);
    let own = groups.len();
    let mut next = 0;
    while next < groups.len() {
        let below = entries(&groups[next])
            .into_iter()
            .filter(|path| path.is_dir());
        groups.extend(below.collect::<Vec<_>>());
        next += 1;
    }
    groups.split_off(own)
}

fn processes(cgroup: &Path) -> Vec<i32> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect()
}
