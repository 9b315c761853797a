// SPDX-License-Identifier: Apache-2.0
//! Where a process's cgroups are mounted.

use crate::rootfs::mountinfo::{self, Mount};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// The version 1 controllers that are read here, those that an OCI runtime surely uses first.
const CONTROLLERS: [&str; 9] = [
    "devices", "freezer", "memory", "pids", "cpu", "cpuacct", "blkio", "hugetlb", "rdma",
];

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    V1(Dirs),
    /// `dir` is at or below `root`, where the hierarchy is mounted.
    V2 {
        root: PathBuf,
        dir: PathBuf,
    },
}

impl Place {
    /// If a directory of it is gone, the same place where all of them are.
    pub fn gone(&self) -> Option<Self> {
        /// No cgroup can have this name.
        const NOWHERE: &str = "\n";
        match self {
            Self::V1(Dirs(dirs)) => {
                dirs.iter().find(|(_, dir)| !dir.exists())?;
                let gone = dirs.iter().map(|(name, dir)| (*name, dir.join(NOWHERE)));
                Some(Self::V1(Dirs(gone.collect())))
            }
            Self::V2 { root, dir } => (!dir.exists()).then(|| Self::V2 {
                root: root.clone(),
                dir: dir.clone(),
            }),
        }
    }
}

/// The directory of each version 1 controller that the container has.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Dirs(pub Vec<(&'static str, PathBuf)>);

impl Dirs {
    /// The directories of those controllers that are read here.
    pub fn named(dirs: Vec<(String, PathBuf)>) -> Self {
        let known = |name: &str| CONTROLLERS.into_iter().find(|known| *known == name);
        let dirs = dirs.into_iter();
        Self(
            dirs.filter_map(|(name, dir)| Some((known(&name)?, dir)))
                .collect(),
        )
    }

    pub fn get(&self, controller: &str) -> Option<&Path> {
        self.0
            .iter()
            .find(|(name, _)| *name == controller)
            .map(|(_, dir)| dir.as_path())
    }
}

/// Reads a process's `/proc/<pid>/cgroup` and our `mountinfo`; `None` if the process is in no
/// cgroup but the root of each hierarchy. `sys` is where version 2 alone would be mounted.
pub(super) fn place(cgroups: &[u8], mountinfo: &[u8], sys: &Path) -> Option<Place> {
    let at_sys = mountinfo::parse(mountinfo)
        .filter(|m| mountinfo::path(m.point) == sys)
        .last();
    if let Some(mount) = at_sys.filter(|mount| mount.kind == b"cgroup2") {
        let (_, path) = entries(cgroups).find(|(controllers, _)| controllers.is_empty())?;
        return Some(Place::V2 {
            dir: below(&mount, path)?,
            root: sys.to_owned(),
        });
    }
    let dirs: Vec<_> = CONTROLLERS
        .into_iter()
        .filter_map(|name| {
            let has = |list: &[u8]| list.split(|&b| b == b',').any(|one| one == name.as_bytes());
            let (_, path) = entries(cgroups).find(|(controllers, _)| has(controllers))?;
            let dir = mountinfo::parse(mountinfo)
                .filter(|mount| mount.kind == b"cgroup" && has(mount.options))
                .find_map(|mount| below(&mount, path))?;
            Some((name, dir))
        })
        .collect();
    (!dirs.is_empty()).then_some(Place::V1(Dirs(dirs)))
}

/// The cgroup that a process is in according to its `/proc/<pid>/cgroup`, as found in `mount`; the
/// root too.
pub(super) fn own(mount: &Mount, cgroups: &[u8]) -> Option<PathBuf> {
    let lines = cgroups.split(|&byte| byte == b'\n').filter_map(|line| {
        let mut fields = line.splitn(3, |&byte| byte == b':').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    let mut of_mount = lines.filter(|(controllers, _)| match mount.kind {
        b"cgroup2" => controllers.is_empty(),
        _ => mount.options.split(|&byte| byte == b',').any(|option| {
            let mut list = controllers.split(|&byte| byte == b',');
            list.any(|controller| !controller.is_empty() && controller == option)
        }),
    });
    below(mount, of_mount.next()?.1)
}

/// `cgroup.procs` of each hierarchy in which `theirs`, a process's `/proc/<pid>/cgroup`, says something
/// else than `ours`.
///
/// # Errors
/// The line whose hierarchy is not in `mountinfo`, or which says the root, where nobody is put.
pub(super) fn elsewhere(
    theirs: &[u8],
    ours: &[u8],
    mountinfo: &[u8],
) -> Result<Vec<PathBuf>, String> {
    let lines = |text| <[u8]>::split(text, |&byte| byte == b'\n');
    let others =
        lines(theirs).filter(|line| !line.is_empty() && !lines(ours).any(|it| it == *line));
    let procs = |line: &[u8]| {
        let mounts = mountinfo::parse(mountinfo)
            .filter(|mount| mount.kind == b"cgroup" || mount.kind == b"cgroup2");
        let dir = mounts.filter_map(|mount| own(&mount, line)).next();
        let dir = dir.filter(|_| !line.ends_with(b":/"));
        let not_here = || format!("cgroup {}", String::from_utf8_lossy(line));
        dir.map(|dir| dir.join("cgroup.procs")).ok_or_else(not_here)
    };
    others.map(procs).collect()
}

/// The lines `<id>:<controllers>:<path>` of `/proc/<pid>/cgroup` (cgroups(7)), without the id.
/// Left out are paths that are nobody's own: the root, which is also where version 1 puts a
/// process that has exited and waits to be reaped.
fn entries(cgroups: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    cgroups.split(|&byte| byte == b'\n').filter_map(|line| {
        let mut fields = line.splitn(3, |&byte| byte == b':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        (path != b"/").then_some((controllers, path))
    })
}

/// Where the cgroup `path` is found within `mount`; `None` if it is outside of it, or deleted. (It
/// starts with `/..` if it is outside of our cgroup namespace.)
fn below(mount: &Mount, whole: &[u8]) -> Option<PathBuf> {
    let path = Path::new(OsStr::from_bytes(whole));
    let path = path.strip_prefix(mountinfo::path(mount.root)).ok()?;
    let inside = path
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    let dir = mountinfo::path(mount.point).join(path);
    // What the kernel says of a cgroup that is gone may as well be the end of one's name.
    let is_gone = whole.ends_with(b" (deleted)") && !dir.exists();
    (inside && !is_gone).then_some(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of mountinfo for (root, mount point, type, superblock options).
    fn mountinfo(mounts: &[(&str, &str, &str, &str)]) -> String {
        let line = |(root, point, kind, options): &(&str, &str, &str, &str)| {
            format!("31 23 0:28 {root} {point} rw shared:9 - {kind} {kind} {options}\n")
        };
        let others = "22 27 0:21 / /proc rw - proc proc rw\n".to_owned();
        others + &mounts.iter().map(line).collect::<String>()
    }

    fn found(cgroups: &str, mounts: &[(&str, &str, &str, &str)]) -> Option<Place> {
        place(
            cgroups.as_bytes(),
            mountinfo(mounts).as_bytes(),
            Path::new("/sys/fs/cgroup"),
        )
    }

    fn v1(dirs: &[(&'static str, &str)]) -> Option<Place> {
        Some(Place::V1(Dirs(
            dirs.iter().map(|(name, dir)| (*name, dir.into())).collect(),
        )))
    }

    fn v2(dir: &str) -> Option<Place> {
        Some(Place::V2 {
            root: "/sys/fs/cgroup".into(),
            dir: dir.into(),
        })
    }

    const UNIFIED: &[(&str, &str, &str, &str)] = &[("/", "/sys/fs/cgroup", "cgroup2", "rw")];

    const LEGACY: &[(&str, &str, &str, &str)] = &[
        ("/", "/sys/fs/cgroup", "tmpfs", "rw,mode=755"),
        (
            "/",
            "/sys/fs/cgroup/systemd",
            "cgroup",
            "rw,xattr,name=systemd",
        ),
        (
            "/",
            "/sys/fs/cgroup/cpu,cpuacct",
            "cgroup",
            "rw,cpu,cpuacct",
        ),
        ("/", "/sys/fs/cgroup/memory", "cgroup", "rw,memory"),
        ("/", "/sys/fs/cgroup/devices", "cgroup", "rw,devices"),
    ];

    #[test]
    fn version_2_alone_has_one_directory() {
        assert_eq!(found("0::/k8s/c1\n", UNIFIED), v2("/sys/fs/cgroup/k8s/c1"));
        assert_eq!(found("0::/a:b c\n", UNIFIED), v2("/sys/fs/cgroup/a:b c"));
    }

    #[test]
    fn version_1_has_one_for_each_controller() {
        let cgroups =
            "5:name=systemd:/s/c1\n4:cpu,cpuacct:/c/c1\n3:memory:/m/c1\n2:devices:/d/c1\n";
        let expected = v1(&[
            ("devices", "/sys/fs/cgroup/devices/d/c1"),
            ("memory", "/sys/fs/cgroup/memory/m/c1"),
            ("cpu", "/sys/fs/cgroup/cpu,cpuacct/c/c1"),
            ("cpuacct", "/sys/fs/cgroup/cpu,cpuacct/c/c1"),
        ]);
        assert_eq!(found(cgroups, LEGACY), expected);
    }

    /// O4: where both versions are mounted, version 1 counts.
    #[test]
    fn o4_hybrid_counts_as_version_1() {
        let mut hybrid = LEGACY.to_vec();
        hybrid.push(("/", "/sys/fs/cgroup/unified", "cgroup2", "rw"));
        let place = found("3:memory:/c1\n0::/c1\n", &hybrid);
        assert_eq!(place, v1(&[("memory", "/sys/fs/cgroup/memory/c1")]));
    }

    #[test]
    fn what_is_mounted_last_is_what_counts() {
        let mut both = LEGACY.to_vec();
        both.extend(UNIFIED);
        assert_eq!(
            found("3:memory:/c1\n0::/c2\n", &both),
            v2("/sys/fs/cgroup/c2")
        );
    }

    #[test]
    fn a_mount_of_a_part_shows_only_that_part() {
        let within: &[_] = &[
            (
                "/docker/abc",
                "/sys/fs/cgroup/memory",
                "cgroup",
                "rw,memory",
            ),
            ("/docker/abc", "/sys/fs/cgroup/pids", "cgroup", "rw,pids"),
            ("/", "/host/pids", "cgroup", "rw,pids"),
        ];
        let cgroups = "2:pids:/elsewhere/c1\n3:memory:/docker/abc/c1\n";
        let expected = v1(&[
            ("memory", "/sys/fs/cgroup/memory/c1"),
            ("pids", "/host/pids/elsewhere/c1"),
        ]);
        assert_eq!(found(cgroups, within), expected);
        let within: &[_] = &[("/docker/abc", "/sys/fs/cgroup", "cgroup2", "rw")];
        assert_eq!(
            found("0::/docker/abc/c1\n", within),
            v2("/sys/fs/cgroup/c1")
        );
        assert_eq!(found("0::/docker/abc\n", within), v2("/sys/fs/cgroup"));
        assert_eq!(found("0::/docker/abcd\n", within), None);
    }

    #[test]
    fn nobody_owns_a_root_or_what_is_not_there() {
        // What is left of a version 1 process until it is reaped.
        assert_eq!(found("3:memory:/\n2:devices:/\n", LEGACY), None);
        assert_eq!(found("0::/\n", UNIFIED), None);
        assert_eq!(found("0::/c1 (deleted)\n", UNIFIED), None);
        assert_eq!(found("0::/../c1\n", UNIFIED), None);
        assert_eq!(found("", UNIFIED), None);
        assert_eq!(found("3:memory:/c1\n", &[]), None);
        let some_at_root = "3:memory:/c1\n2:devices:/\n";
        assert_eq!(
            found(some_at_root, LEGACY),
            v1(&[("memory", "/sys/fs/cgroup/memory/c1")])
        );
    }
}
