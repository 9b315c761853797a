// SPDX-License-Identifier: Apache-2.0
//! Opening what a path names below a directory, and nothing outside of it, whoever changes names
//! meanwhile (openat2(2)).

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

/// Opens `path` below `dir` by these rules, without the links of /proc, and closed on execve(2).
///
/// # Errors
/// From openat2(2), but for EAGAIN: somebody has renamed or mounted something, wherever on the machine,
/// while the kernel went through a `..`, and it is looked up again.
pub fn open_below(
    dir: impl AsFd,
    path: &(impl NixPath + ?Sized),
    flags: OFlag,
    rules: ResolveFlag,
) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(rules | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    loop {
        match openat2(dir.as_fd(), path, how) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            opened => return opened,
        }
    }
}

/// `name`, if it is the name of something in a directory, and no way out of it.
///
/// # Errors
/// If it is not.
pub fn single(name: &str) -> io::Result<&str> {
    let mut parts = Path::new(name).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(only)), None) if only == name => Ok(name),
        _ => Err(io::Error::other(format!("{name:?} is no name"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Links through `..` are looked up while others rename, as on every busy machine.
    #[test]
    fn renames_elsewhere_are_nobodys_error() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("a/b")).unwrap();
        symlink("../a/../../a/b", root.join("a/up")).unwrap();
        let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
        fs::create_dir(&one).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    fs::rename(&one, &two).unwrap();
                    fs::rename(&two, &one).unwrap();
                }
            });
            let root = fs::File::open(&root).unwrap();
            let opened = (0..20_000).try_for_each(|_| {
                let rules = ResolveFlag::RESOLVE_IN_ROOT;
                open_below(&root, "a/up", OFlag::O_PATH, rules).map(drop)
            });
            done.store(true, Ordering::Relaxed);
            opened.unwrap();
        });
    }
}
