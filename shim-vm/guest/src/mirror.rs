// SPDX-License-Identifier: Apache-2.0
//! Volumes that the host swaps as a whole, as the kubelet does with those of a ConfigMap: containers have
//! a copy in the guest's memory, which is swapped in the same steps. So inotify(7) tells of it, which it does
//! not of what happens on the host.
//!
//! ```text
//!  ..2026_11_30.7/       the files, which come whole before
//!  ..data                a link to that: what is renamed
//!  name -> ..data/name   what programs open
//! ```

use nix::unistd::{Gid, Uid, chown};
use protos::guest::MirrorRequest;
use protos::places::{MIRRORS, SHARE};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use task::below::single;

const DATA: &str = "..data";
const NEW: &str = "..data_tmp";
/// The most that a copy has: names, and bytes. The host looks before; but it may be another by then.
const MOST: (usize, u64) = (1024, 8 << 20);

/// Makes the copy, or swaps it. It waits for the host.
///
/// # Errors
/// From the system calls; then the copy is as it was.
pub fn mirror(request: &MirrorRequest) -> io::Result<()> {
    let (source, dir) = (Path::new(&request.source), place(&request.name)?);
    let data = single(&request.data)?;
    if !source.starts_with(SHARE) {
        return Err(io::Error::other(format!("{source:?} is not in the share")));
    }
    fs::create_dir_all(&dir)?;
    like(&dir, &fs::metadata(source)?)?;
    let (from, to) = (source.join(data), dir.join(data));
    let now = fs::read_link(dir.join(DATA)).ok();
    if now.as_deref() != Some(Path::new(data)) {
        // What is left of one that failed.
        let _ = fs::remove_dir_all(&to);
        let mut left = MOST;
        if let Err(e) = copy(&from, &to, &mut left) {
            let _ = fs::remove_dir_all(&to);
            return Err(e);
        }
        let _ = fs::remove_file(dir.join(NEW));
        symlink(data, dir.join(NEW))?;
        fs::rename(dir.join(NEW), dir.join(DATA))?;
    }
    let names = names(&to)?;
    for name in &names {
        match symlink(Path::new(DATA).join(name), dir.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    for name in self::names(&dir)? {
        let is_hidden = name.to_string_lossy().starts_with("..");
        let old = dir.join(&name);
        if is_hidden && name != *DATA && name != *data {
            fs::remove_dir_all(old)?;
        } else if !is_hidden && !names.contains(&name) {
            fs::remove_file(old)?;
        }
    }
    Ok(())
}

/// The copy of this name, if there is one, is of no use any more.
pub fn forget(name: &str) {
    if let Ok(dir) = place(name) {
        let _ = fs::remove_dir_all(dir);
    }
}

fn place(name: &str) -> io::Result<std::path::PathBuf> {
    Ok(Path::new(MIRRORS).join(single(name)?))
}

fn names(dir: &Path) -> io::Result<BTreeSet<OsString>> {
    let names = fs::read_dir(dir)?;
    names.map(|entry| Ok(entry?.file_name())).collect()
}

/// Directories and files, with their owners and modes.
fn copy(from: &Path, to: &Path, left: &mut (usize, u64)) -> io::Result<()> {
    let found = fs::symlink_metadata(from)?;
    let size = if found.is_file() { found.len() } else { 0 };
    let (names, bytes) = *left;
    let less = names.checked_sub(1).zip(bytes.checked_sub(size));
    *left = less.ok_or_else(|| io::Error::other("it is too large for a copy"))?;
    if found.is_dir() {
        fs::create_dir(to)?;
        for entry in fs::read_dir(from)? {
            let name = entry?.file_name();
            copy(&from.join(&name), &to.join(&name), left)?;
        }
    } else if found.is_file() {
        let mut file = File::create_new(to)?;
        io::copy(&mut io::Read::take(File::open(from)?, size), &mut file)?;
    } else {
        return Ok(());
    }
    like(to, &found)
}

fn like(path: &Path, found: &Metadata) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(found.uid()), Gid::from_raw(found.gid()));
    chown(path, Some(uid), Some(gid))?;
    fs::set_permissions(path, Permissions::from_mode(found.mode() & 0o7777))
}
