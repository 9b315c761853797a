// SPDX-License-Identifier: Apache-2.0
//! What the process that runs a VM is shut in: a user of its own, namespaces of its own, a root
//! with nothing but the files it begins with, few system calls, and no way to leave its memory
//! behind.
//!
//! ```text
//!  /            tmpfs, read-only
//!  /kernel      what is booted           /usr/bin/qemu-…    where it is on the host
//!  /initrd                               /lib64/ld-….so     its dynamic loader
//!  /dev/kvm     with KVM                 /lib/…  /usr/share/qemu …  its libraries, its firmware
//! ```
//!
//! All of it is set up in the new process, between fork and exec, so the host sees no mount of it.
//! There is no /proc, and neither landlock: what the root does not have needs no more rules.

use crate::filter;
use crate::program::Program;
use crate::users::User;
use nix::mount::MsFlags;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Threads at most: processors, QEMU's own, and its workers, of which there may be 64 in a pool.
pub const THREADS: u64 = 512;
/// Files that may be open: each device has a few.
const FILES: u64 = 1024;
/// Nothing is dumped, neither into a file, for which a page is needed at least, nor into a pipe, for
/// which the kernel takes this number, unlike 0, as a refusal (core(5)).
const CORE: u64 = 1;

/// How the root of a jail gets something.
#[derive(Debug, PartialEq)]
pub enum Part {
    Directory(PathBuf),
    /// An empty file, to mount something on.
    File(PathBuf),
    /// What `from` is on the host.
    Bind {
        from: PathBuf,
        to: PathBuf,
        flags: MsFlags,
    },
    /// The character device of this number, of the jail's user, in a filesystem of its own that is all of
    /// the directory where it is.
    Node {
        to: PathBuf,
        device: u64,
    },
}

/// Where a process is, and who.
pub struct Jail {
    /// The user and the group, and another group if need be.
    pub user: u32,
    pub group: Option<u32>,
    /// Without one it has an empty one of its own.
    pub network: Option<OwnedFd>,
    /// An empty directory, where the root is mounted for a moment.
    pub place: PathBuf,
    /// In this order, paths relative to the root.
    pub parts: Vec<Part>,
    /// Of each resource, how much.
    pub limits: [(nix::sys::resource::Resource, u64); 3],
    pub filter: Vec<libc::sock_filter>,
    /// Files that are open from this number on, whoever left them so, are not when it begins.
    pub fds: i32,
    /// Its parent, which it dies with, unless a keeper sees to it.
    pub parent: OwnedFd,
    pub outlives_parent: bool,
}

/// A file or directory of the host's that is in the root.
pub struct Shown {
    pub from: PathBuf,
    /// Absolute.
    pub to: PathBuf,
    pub flags: MsFlags,
    /// It is a device that is only root's, and whose number this is: the jail's user has one of its own.
    pub node: Option<u64>,
}

impl Shown {
    /// Data: a file or directory that is only read.
    pub fn data(from: &Path, to: &Path) -> Self {
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        Self::with(from, to, flags)
    }

    /// What is executed, where it is on the host.
    pub fn code(path: &Path) -> Self {
        Self::with(path, path, MsFlags::MS_RDONLY | MsFlags::MS_NODEV)
    }

    /// A device.
    pub fn device(path: &Path) -> Self {
        let node = fs::metadata(path).ok().and_then(|file| {
            let others_may = [0o060, 0o006].iter().any(|may| file.mode() & may == *may);
            (!others_may).then(|| file.rdev())
        });
        let shown = Self::with(path, path, MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC);
        Self { node, ..shown }
    }

    fn with(from: &Path, to: &Path, flags: MsFlags) -> Self {
        Self {
            from: from.to_owned(),
            to: to.to_owned(),
            flags: flags | MsFlags::MS_NOSUID,
            node: None,
        }
    }
}

/// The parts of a root in which `program` finds `shown` beside what it needs to begin. It looks for
/// all of them on the host, which may take as long as a disk.
pub fn look_up(program: &Program, mut shown: Vec<Shown>) -> Vec<Part> {
    let code = program.libraries.iter().chain(&program.modules);
    let code = code.chain(&program.loader).chain([&program.path]);
    shown.extend(code.map(|path| Shown::code(path)));
    shown.extend(program.data.iter().map(|dir| Shown::data(dir, dir)));
    parts(shown, Path::is_dir)
}

impl Jail {
    /// One with a root of `parts`, which is mounted for a moment at `place`, and the `fds` first files
    /// open.
    ///
    /// # Errors
    /// If this process can't be held.
    pub fn new(
        user: &User,
        group: Option<u32>,
        network: Option<OwnedFd>,
        place: PathBuf,
        fds: i32,
        parts: Vec<Part>,
    ) -> io::Result<Self> {
        use nix::sys::resource::Resource;
        Ok(Self {
            user: user.id,
            group,
            network,
            place,
            parts,
            limits: [
                (Resource::RLIMIT_CORE, CORE),
                (Resource::RLIMIT_NPROC, THREADS),
                (Resource::RLIMIT_NOFILE, FILES),
            ],
            filter: filter::program(),
            fds,
            parent: task::sys::pidfd(std::process::id())?,
            outlives_parent: task::record::is_kept(),
        })
    }
}

/// What makes a root with all that is `shown`: what is above each, and then itself, unless it comes
/// with another.
fn parts(shown: Vec<Shown>, is_dir: impl Fn(&Path) -> bool) -> Vec<Part> {
    // In the order of their paths: what comes with another comes after it.
    let shown: BTreeMap<PathBuf, Shown> =
        shown.into_iter().map(|one| (one.to.clone(), one)).collect();
    let mut parts: Vec<Part> = Vec::new();
    let mut made: Vec<PathBuf> = Vec::new();
    for (path, one) in shown {
        if made.last().is_some_and(|above| path.starts_with(above)) {
            continue;
        }
        let to = path.strip_prefix("/").unwrap_or(&path).to_owned();
        let mut above: Vec<&Path> = to.ancestors().skip(1).collect();
        above.pop(); // the root
        for dir in above.into_iter().rev() {
            let dir = Part::Directory(dir.to_owned());
            if !parts.contains(&dir) {
                parts.push(dir);
            }
        }
        if let Some(device) = one.node {
            parts.push(Part::Node { to, device });
            continue;
        }
        parts.push(if is_dir(&one.from) {
            Part::Directory(to.clone())
        } else {
            Part::File(to.clone())
        });
        parts.push(Part::Bind {
            from: one.from,
            to,
            flags: one.flags,
        });
        made.push(path);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_has_its_place_and_none_is_made_twice() {
        let code = |path: &str| Shown::code(Path::new(path));
        let shown = vec![
            code("/q/lib"),
            code("/q/lib/ld.so"),
            code("/q/lib-more"),
            code("/q/bin/q"),
            Shown::data(Path::new("/boot/k"), Path::new("/kernel")),
            Shown {
                node: Some(7),
                ..code("/dev/d")
            },
        ];
        let is_dir = |path: &Path| path.to_string_lossy().contains("/lib");
        let said: Vec<String> = parts(shown, is_dir)
            .into_iter()
            .map(|part| match part {
                Part::Directory(path) => format!("mkdir {}", path.display()),
                Part::File(path) => format!("touch {}", path.display()),
                Part::Node { to, device } => format!("mknod {} {device}", to.display()),
                Part::Bind { from, to, flags } => {
                    assert!(flags.contains(MsFlags::MS_RDONLY | MsFlags::MS_NOSUID));
                    format!("bind {} {}", from.display(), to.display())
                }
            })
            .collect();
        let expected = [
            "mkdir dev",
            "mknod dev/d 7",
            "touch kernel",
            "bind /boot/k kernel",
            "mkdir q",
            "mkdir q/bin",
            "touch q/bin/q",
            "bind /q/bin/q q/bin/q",
            "mkdir q/lib",
            "bind /q/lib q/lib",
            "mkdir q/lib-more",
            "bind /q/lib-more q/lib-more",
        ];
        assert_eq!(said, expected);
    }
}
