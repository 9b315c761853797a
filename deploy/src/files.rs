// SPDX-License-Identifier: Apache-2.0
//! The programs and the guest image on the node: each file is replaced in one step, so that whoever
//! starts it has the old one or the new one.

use crate::failure::{Result, io};
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What a node needs of a release; without an image there are no VMs.
const PROGRAMS: [&str; 2] = ["containerd-shim-runc-v2", "containerd-shim-vm-v2"];
const GUEST: &str = "lib/dunnage/guest";

/// Copies what is not there, or not the same; how many files that were.
///
/// # Errors
/// What could not be read or written. What was there works as before.
pub fn install(from: &Path, to: &Path) -> Result<usize> {
    let mut changed = 0;
    // The image first: a shim refuses one that is not of its own build.
    for file in guest(from)? {
        let name = file.strip_prefix(from).unwrap_or(&file).to_owned();
        changed += usize::from(replace(&file, &to.join(name), 0o644)?);
    }
    for name in PROGRAMS {
        let name = Path::new("bin").join(name);
        changed += usize::from(replace(&from.join(&name), &to.join(&name), 0o755)?);
    }
    Ok(changed)
}

/// Removes what was installed, and the directories that are empty then.
///
/// # Errors
/// What could not be removed.
pub fn remove(to: &Path) -> Result<()> {
    for name in PROGRAMS {
        gone(fs::remove_file(to.join("bin").join(name)), to)?;
    }
    gone(fs::remove_dir_all(to.join(GUEST)), to)?;
    for dir in ["lib/dunnage", "lib", "bin", "etc", ""] {
        match fs::remove_dir(to.join(dir)) {
            Err(e) if e.kind() == ErrorKind::DirectoryNotEmpty => {}
            // It may be what is mounted, in a directory that nobody can write to.
            Err(e) if dir.is_empty() && is_mounted(&e) => {}
            removed => gone(removed, to)?,
        }
    }
    Ok(())
}

fn is_mounted(e: &std::io::Error) -> bool {
    matches!(
        e.kind(),
        ErrorKind::ResourceBusy | ErrorKind::ReadOnlyFilesystem
    )
}

/// What is not there need not be removed.
fn gone(removed: std::io::Result<()>, of: &Path) -> Result<()> {
    match removed {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(io(of)),
    }
}

/// The files of all flavours of the image.
fn guest(from: &Path) -> Result<Vec<PathBuf>> {
    let list = |dir: &Path| -> Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(dir) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(io(dir))?,
        };
        let paths = entries.map(|entry| Ok(entry.map_err(io(dir))?.path()));
        let mut paths: Vec<PathBuf> = paths.collect::<Result<_>>()?;
        paths.sort();
        Ok(paths)
    };
    let mut files = Vec::new();
    for flavour in list(&from.join(GUEST))? {
        files.extend(list(&flavour)?);
    }
    Ok(files)
}

/// True if `to` was not the same.
fn replace(from: &Path, to: &Path, mode: u32) -> Result<bool> {
    if same(from, to)? {
        return Ok(false);
    }
    let dir = to.parent().unwrap_or(to);
    fs::create_dir_all(dir).map_err(io(dir))?;
    let mut new = to.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    fs::copy(from, &new).map_err(io(from))?;
    fs::set_permissions(&new, fs::Permissions::from_mode(mode)).map_err(io(&new))?;
    let written = fs::File::open(&new).and_then(|file| file.sync_all());
    written.map_err(io(&new))?;
    fs::rename(&new, to).map_err(io(to))?;
    Ok(true)
}

/// By content, a piece at a time: a kernel has 50 MB.
fn same(from: &Path, to: &Path) -> Result<bool> {
    let mut one = fs::File::open(from).map_err(io(from))?;
    let Ok(mut other) = fs::File::open(to) else {
        return Ok(false);
    };
    let length = |file: &fs::File| file.metadata().map(|it| it.len()).ok();
    if length(&one) != length(&other) {
        return Ok(false);
    }
    let (mut left, mut right) = ([0; 65536], [0; 65536]);
    loop {
        let n = one.read(&mut left).map_err(io(from))?;
        if n == 0 {
            return Ok(true);
        }
        if other.read_exact(&mut right[..n]).is_err() || left[..n] != right[..n] {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(dir: &Path) -> PathBuf {
        let from = dir.join("from");
        fs::create_dir_all(from.join("bin")).unwrap();
        fs::create_dir_all(from.join(GUEST).join("distro")).unwrap();
        for name in PROGRAMS {
            fs::write(from.join("bin").join(name), name).unwrap();
        }
        fs::write(from.join(GUEST).join("distro/initrd"), "initrd").unwrap();
        from
    }

    #[test]
    fn what_is_the_same_is_left_and_what_is_not_is_another_file() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (release(dir.path()), dir.path().join("to"));
        assert_eq!(install(&from, &to).unwrap(), 3);
        let shim = to.join("bin").join(PROGRAMS[0]);
        let first = fs::metadata(&shim).unwrap();
        assert_eq!(first.mode() & 0o777, 0o755);
        assert_eq!(install(&from, &to).unwrap(), 0);
        fs::write(
            from.join("bin").join(PROGRAMS[0]),
            "CONTAINERD-shim-runc-v2",
        )
        .unwrap();
        assert_eq!(install(&from, &to).unwrap(), 1);
        // Whoever runs the old one still does.
        assert_ne!(fs::metadata(&shim).unwrap().ino(), first.ino());
    }

    #[test]
    fn only_what_was_installed_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (release(dir.path()), dir.path().join("to"));
        install(&from, &to).unwrap();
        fs::write(to.join("bin/another"), "").unwrap();
        remove(&to).unwrap();
        let left: Vec<_> = fs::read_dir(&to).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "{left:?}");
        fs::remove_file(to.join("bin/another")).unwrap();
        remove(&to).unwrap();
        assert!(!to.exists());
        remove(&to).unwrap();
    }
}
