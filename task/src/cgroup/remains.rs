// SPDX-License-Identifier: Apache-2.0
//! What is left in the cgroups of a container that nobody keeps any more: found by the path that
//! config.json gives, killed, and removed.

use super::read;
use crate::rootfs::mountinfo;
use crate::sys;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

/// How long killed processes may take to be gone, dying ones, and how often they are looked for.
const LIMIT: Duration = Duration::from_secs(2);
const MOMENT: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(5);

/// A container's cgroup in every hierarchy that is mounted, by its path alone.
#[derive(Debug, PartialEq, Eq)]
pub struct Remains {
    dirs: Vec<PathBuf>,
    /// Cgroups below ours that other containers have.
    spared: Vec<PathBuf>,
}

/// Where an OCI runtime puts the container `id` (config-linux.md, "Control groups"; runc's
/// libcontainer/cgroups): `cgroupsPath`, or a default made of its id.
pub fn path_of(cgroups_path: Option<&str>, id: &str, systemd: bool) -> PathBuf {
    match cgroups_path.filter(|path| !path.is_empty()) {
        None => PathBuf::from(id),
        Some(path) if systemd => {
            let mut parts = path.splitn(3, ':');
            let mut next = || parts.next().unwrap_or_default();
            let (slice, prefix, name) = (next(), next(), next());
            let scope = match name.ends_with(".slice") {
                true => name.to_owned(),
                false => format!("{prefix}-{name}.scope"),
            };
            expand(if slice.is_empty() {
                "system.slice"
            } else {
                slice
            })
            .join(scope)
        }
        Some(path) => PathBuf::from(path),
    }
}

/// `a-b.slice` is within `a.slice` (systemd.slice(5)).
fn expand(slice: &str) -> PathBuf {
    let name = slice.trim_end_matches(".slice");
    let mut path = PathBuf::from("/");
    if name == "-" {
        return path;
    }
    for (at, _) in name.match_indices('-').chain([(name.len(), "")]) {
        path.push(format!("{}.slice", &name[..at]));
    }
    path
}

impl Remains {
    /// The cgroups at `path` (see [`path_of`]); a relative one is below our own. Those of `others`
    /// are left alone, and so is all of it if it is a root, ours, or one of theirs.
    pub fn find(path: &Path, others: &[PathBuf]) -> Self {
        let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read("/proc/self/cgroup").unwrap_or_default();
        let mut remains = Self::locate(path, others, &mounts, &own);
        let us = std::process::id();
        if remains
            .dirs
            .iter()
            .any(|dir| super::members(dir).contains(&us))
        {
            remains.dirs.clear();
        }
        remains
    }

    pub(crate) fn locate(path: &Path, others: &[PathBuf], mountinfo: &[u8], own: &[u8]) -> Self {
        let mut remains = Self {
            dirs: Vec::new(),
            spared: Vec::new(),
        };
        let normal = |path: &Path| {
            let mut parts = path.components().filter(|part| *part != Component::RootDir);
            path.components().count() > usize::from(path.is_absolute())
                && parts.all(|part| matches!(part, Component::Normal(_)))
        };
        if !normal(path) || others.iter().any(|other| path.starts_with(other)) {
            return remains;
        }
        let below = |other: &&PathBuf| normal(other) && other.starts_with(path);
        for mount in mountinfo::parse(mountinfo) {
            if mount.kind != b"cgroup" && mount.kind != b"cgroup2" {
                continue;
            }
            let point = mountinfo::path(mount.point);
            let base = if path.is_absolute() {
                point
            } else {
                let Some(own) = super::find::own(&mount, own) else {
                    continue;
                };
                // runc starts a version 2 cgroup beside its own: one with processes has no children.
                match own.parent() {
                    Some(parent) if mount.kind == b"cgroup2" && own != point => parent.to_owned(),
                    _ => own,
                }
            };
            let at = |path: &Path| base.join(path.strip_prefix("/").unwrap_or(path));
            remains.dirs.push(at(path));
            remains
                .spared
                .extend(others.iter().filter(below).map(|other| at(other)));
        }
        remains
    }

    /// Where the cgroup is, or would be, in each hierarchy.
    pub fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// Kills every process in the cgroups, frozen ones too, and removes what is empty then. False
    /// if something is still there after two seconds.
    pub async fn end(&self) -> bool {
        self.remove(LIMIT, kill_members).await
    }

    /// Removes the cgroups once they are empty. False if they are not within a moment.
    pub async fn remove_empty(&self) -> bool {
        self.remove(MOMENT, |_| ()).await
    }

    async fn remove(&self, limit: Duration, prepare: impl Fn(&Path)) -> bool {
        let end = Instant::now() + limit;
        loop {
            let trees: Vec<PathBuf> = self.dirs.iter().flat_map(|dir| read::tree(dir)).collect();
            let ours = |dir: &&PathBuf| !self.spared.iter().any(|spared| dir.starts_with(spared));
            for dir in trees.iter().filter(ours) {
                prepare(dir);
            }
            // The deepest first.
            for dir in trees.iter().rev().filter(ours) {
                let _ = fs::remove_dir(dir);
            }
            if self.is_gone() || (!self.spared.is_empty() && self.has_no_process()) {
                return true;
            }
            if Instant::now() > end {
                return false;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// True if there is no such cgroup.
    fn is_gone(&self) -> bool {
        !self.dirs.iter().any(|dir| dir.exists())
    }

    fn has_no_process(&self) -> bool {
        self.dirs.iter().all(|dir| super::members(dir).is_empty())
    }
}

fn kill_members(dir: &Path) {
    for pid in super::members(dir) {
        // The list may be old by now; with the process held, it says whose pid it is.
        if let Ok(process) = sys::pidfd(pid)
            && super::members(dir).contains(&pid)
        {
            let _ = sys::pidfd_kill(&process);
        }
    }
    super::thaw(dir);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtimes_put_containers_where_config_json_says() {
        let path = |path, systemd| path_of(path, "c", systemd);
        assert_eq!(path(None, false), Path::new("c"));
        assert_eq!(path(Some(""), false), Path::new("c"));
        assert_eq!(path(Some("/n/c"), false), Path::new("/n/c"));
        assert_eq!(
            path(Some("a-b.slice:cri:c"), true),
            Path::new("/a.slice/a-b.slice/cri-c.scope")
        );
        assert_eq!(
            path(Some(":cri:c"), true),
            Path::new("/system.slice/cri-c.scope")
        );
        assert_eq!(path(Some("-.slice:cri:c"), true), Path::new("/cri-c.scope"));
    }

    const MOUNTS: &[u8] = b"31 23 0:28 / /cg rw - tmpfs tmpfs rw\n\
        32 31 0:29 / /cg/memory rw - cgroup cgroup rw,memory\n\
        33 31 0:30 / /cg/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
        34 31 0:31 / /cg/unified rw - cgroup2 cgroup2 rw\n";
    const OWN: &[u8] = b"2:memory:/m\n1:name=systemd:/\n0::/u/v\n";

    fn located(path: &str, others: &[&str]) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let others: Vec<PathBuf> = others.iter().map(PathBuf::from).collect();
        let found = Remains::locate(Path::new(path), &others, MOUNTS, OWN);
        (found.dirs, found.spared)
    }

    #[test]
    fn every_hierarchy_is_searched() {
        let paths = |paths: [&str; 3]| paths.map(PathBuf::from).to_vec();
        assert_eq!(
            located("/n/c", &["/n/d"]),
            (
                paths(["/cg/memory/n/c", "/cg/systemd/n/c", "/cg/unified/n/c"]),
                vec![]
            )
        );
        assert_eq!(
            located("c", &[]).0,
            paths(["/cg/memory/m/c", "/cg/systemd/c", "/cg/unified/u/c"])
        );
        assert_eq!(
            located("/n", &["/n/d"]).1,
            paths(["/cg/memory/n/d", "/cg/systemd/n/d", "/cg/unified/n/d"])
        );
    }

    #[test]
    fn what_others_have_and_the_root_are_nobodys_remains() {
        for (path, others) in [
            ("/", &[][..]),
            ("", &[]),
            ("/n/../m", &[]),
            ("..", &[]),
            ("/pod", &["/pod"]),
            ("/pod/c", &["/pod"]),
        ] {
            assert_eq!(located(path, others), (vec![], vec![]), "{path}");
        }
    }
}
