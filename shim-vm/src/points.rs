// SPDX-License-Identifier: Apache-2.0
//! The mount points in a root filesystem that can't be written to: the guest's runtime would make
//! them, as runtimes do before they make the root read-only, but the guest may not.

use nix::errno::Errno;
use nix::fcntl::{OFlag, ResolveFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use serde_json::Value;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use task::below::open_below;

const DIRECTORY: Mode = Mode::from_bits_truncate(0o755);
const FILE: Mode = Mode::from_bits_truncate(0o644);

#[derive(Debug, PartialEq)]
pub struct Point {
    /// In the container, relative to its root, without `..`.
    pub path: PathBuf,
    /// What is bound there, on the host or in the guest, both of which have it.
    source: Option<PathBuf>,
}

/// Those that config.json's mounts need, and its working directory, but for those that are in
/// another mount.
pub fn of(spec: &Value) -> Vec<Point> {
    let mounts = spec["mounts"].as_array().into_iter().flatten();
    let wanted = mounts.map(|mount| (&mount["destination"], mount["source"].as_str()));
    let all = wanted.chain([(&spec["process"]["cwd"], None)]);
    let mut points: Vec<Point> = Vec::new();
    for (path, source) in all {
        let path = inside(Path::new(path.as_str().unwrap_or_default()));
        if path.as_os_str().is_empty() || points.iter().any(|has| path.starts_with(&has.path)) {
            continue;
        }
        let source = source.map(PathBuf::from).filter(|path| path.is_absolute());
        points.push(Point { path, source });
    }
    points
}

/// `path` from a root directory on, out of which `..` does not lead.
fn inside(path: &Path) -> PathBuf {
    let mut inside = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => inside.push(name),
            Component::ParentDir => drop(inside.pop()),
            _ => {}
        }
    }
    inside
}

/// Makes `point` below `root`, as if that were the root directory, with what it is in. It may be
/// there.
///
/// # Errors
/// From the system calls that make it; of a name that leads nowhere, too.
pub fn make(root: BorrowedFd, point: &Point) -> io::Result<()> {
    let source = point.source.as_ref().and_then(|path| path.metadata().ok());
    let file = source.is_some_and(|source| !source.is_dir());
    let mut parent = find(root, Path::new("."))?;
    let mut at = PathBuf::new();
    let mut names = point.path.iter().peekable();
    while let Some(name) = names.next() {
        at.push(name);
        if let Some(found) = there(find(root, &at))? {
            parent = found;
            continue;
        }
        if file && names.peek().is_none() {
            let new = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            openat(&parent, name, new, FILE)?;
        } else {
            mkdirat(&parent, name, DIRECTORY)?;
            parent = find(root, &at)?;
        }
    }
    Ok(())
}

fn there(found: nix::Result<OwnedFd>) -> nix::Result<Option<OwnedFd>> {
    match found {
        Err(Errno::ENOENT) => Ok(None),
        found => found.map(Some),
    }
}

fn find(root: BorrowedFd, path: &Path) -> nix::Result<OwnedFd> {
    open_below(root, path, OFlag::O_PATH, ResolveFlag::RESOLVE_IN_ROOT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_is_in_another_mount_is_none_of_the_roots() {
        let spec = json!({
            "process": {"cwd": "/work"},
            "mounts": [
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts"},
                {"destination": "etc/../etc/hosts", "type": "bind", "source": "/h/hosts"},
                {"destination": "/../data", "type": "bind", "source": "/h/data"},
                {"destination": "/data/more", "type": "bind", "source": "/h/more"},
                {"destination": "/"},
                {},
            ],
        });
        let point = |path: &str, source: Option<&str>| Point {
            path: path.into(),
            source: source.map(PathBuf::from),
        };
        let expected = [
            point("dev", None),
            point("etc/hosts", Some("/h/hosts")),
            point("data", Some("/h/data")),
            point("work", None),
        ];
        assert_eq!(of(&spec), expected);
        assert_eq!(of(&json!({"process": {"cwd": "/"}})), []);
    }

    /// Links in an image are those of its own root, and who swaps one meanwhile gains nothing.
    #[test]
    fn points_are_made_in_the_root_whatever_its_links_say() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("root/run")).unwrap();
        fs::create_dir_all(at("host/run")).unwrap();
        fs::write(at("host/file"), "alive").unwrap();
        symlink("/run", at("root/var")).unwrap();
        symlink("../../../..", at("root/up")).unwrap();
        symlink(at("host"), at("root/out")).unwrap();
        symlink("/proc/self/root", at("root/magic")).unwrap();
        let root = fs::File::open(at("root")).unwrap();
        let make = |path: &str, source: Option<&Path>| {
            let (path, source) = (PathBuf::from(path), source.map(Path::to_owned));
            super::make(root.as_fd(), &Point { path, source })
        };
        make("run", None).unwrap();
        make("var/secrets/deep", None).unwrap();
        assert!(at("root/run/secrets/deep").is_dir());
        make("etc/hosts", Some(&at("host/file"))).unwrap();
        assert!(at("root/etc/hosts").is_file());
        make("mnt", Some(&at("host"))).unwrap();
        assert!(at("root/mnt").is_dir());
        make("up/here", None).unwrap();
        assert!(at("root/here").is_dir());
        assert!(make("out/x", None).is_err(), "it leads nowhere");
        assert!(make("magic/x", None).is_err());
        make("run/secrets", Some(&at("host/file"))).unwrap();
        let names: Vec<_> = fs::read_dir(at("host")).unwrap().collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }
}
