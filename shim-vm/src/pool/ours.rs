// SPDX-License-Identifier: Apache-2.0
//! What a process has of who has started it: a VM that was taken has it of its shim, not of the pool.

use crate::limits::write;
use crate::sys;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Has the processes `pids` be where this process is: in its cgroups, with its priority, and as easily
/// killed for lack of memory. One that has ended is left out.
///
/// # Errors
/// What can't be set of one that runs.
pub fn as_ours(pids: &[u32]) -> io::Result<()> {
    let nice = sys::nice()?;
    let score = task::proc::text("/proc/self/oom_score_adj")?;
    let own = task::proc::text("/proc/self/cgroup")?;
    let mounts = task::proc::text("/proc/self/mountinfo")?;
    for pid in pids {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let has = task::proc::text(process.join("cgroup")).unwrap_or_default();
        let set = set_nice(&process, nice);
        let set = set.and_then(|()| write(&process.join("oom_score_adj"), score.trim()));
        let other = own
            .lines()
            .filter(|line| !has.lines().any(|it| it == *line));
        let dirs = other.filter_map(|line| dir_of(line, &mounts));
        let set = dirs.fold(set, |set, dir| {
            set.and_then(|()| write(&dir.join("cgroup.procs"), &pid.to_string()))
        });
        match set {
            Err(e) if process.join("exe").exists() => {
                return Err(io::Error::new(e.kind(), format!("process {pid}: {e}")));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Of all of its threads: a new one has that of who has made it.
fn set_nice(process: &Path, nice: i32) -> io::Result<()> {
    for _ in 0..2 {
        for thread in fs::read_dir(process.join("task"))? {
            let name = thread?.file_name();
            match name
                .to_string_lossy()
                .parse()
                .map(|id| sys::set_nice(id, nice))
            {
                Ok(Err(e)) if e.raw_os_error() != Some(libc::ESRCH) => return Err(e),
                _ => {}
            }
        }
    }
    Ok(())
}

/// The directory that a line of a process's cgroup file (cgroups(7)) means, where `mounts` (of
/// proc_pid_mountinfo(5)) has its hierarchy.
fn dir_of(line: &str, mounts: &str) -> Option<PathBuf> {
    let mut words = line.splitn(3, ':').skip(1);
    let (controllers, path) = (words.next()?, words.next()?);
    let of_mount = |line: &str| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut filesystem = filesystem.split(' ');
        let kind = filesystem.next()?;
        let options: Vec<&str> = filesystem.next_back()?.split(',').collect();
        let is_it = match controllers {
            "" => kind == "cgroup2",
            _ => kind == "cgroup" && controllers.split(',').all(|one| options.contains(&one)),
        };
        let mut mount = mount.split(' ').skip(3);
        let (root, point) = (mount.next()?, mount.next()?);
        let below = Path::new(path).strip_prefix(root).ok()?;
        is_it.then(|| Path::new(point).join(below))
    };
    mounts.lines().find_map(of_mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_found_in_its_hierarchy() {
        let mounts = "\
25 31 0:22 / /sys rw - sysfs sysfs rw\n\
33 25 0:28 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n\
35 25 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
36 25 0:31 /pods /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
37 25 0:32 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n";
        for (line, dir) in [
            ("0::/a.service", Some("/sys/fs/cgroup/unified/a.service")),
            ("4:cpu,cpuacct:/", Some("/sys/fs/cgroup/cpu,cpuacct/")),
            ("5:memory:/pods/a", Some("/sys/fs/cgroup/memory/a")),
            ("5:memory:/a", None),
            ("1:name=systemd:/b:c", Some("/sys/fs/cgroup/systemd/b:c")),
            ("6:pids:/", None),
            ("", None),
        ] {
            assert_eq!(
                dir_of(line, mounts).as_deref(),
                dir.map(Path::new),
                "{line}"
            );
        }
    }
}
