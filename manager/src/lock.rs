// SPDX-License-Identifier: Apache-2.0
//! The locks of root and state: two daemons on either would undo each other's containers.
//!
//! `<root>/root.lock` and `<state>/state.lock` are locked (flock(2)) for as long as a daemon has
//! them, and tell its pid. The image that comes after us in the same process has them from us.

use crate::config::Config;
use crate::store::make_dir;
use crate::sys;
use nix::errno::Errno;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Takes both, from those that the image before us left open or anew.
///
/// # Errors
/// A text that names the key, and who has it.
pub fn take(config: &Config, left: &mut Vec<File>) -> Result<[File; 2], String> {
    Ok([
        one("root", &config.root, left)?,
        one("state", &config.state, left)?,
    ])
}

fn one(key: &str, dir: &Path, left: &mut Vec<File>) -> Result<File, String> {
    let path = dir.join(format!("{key}.lock"));
    let failed = |e: io::Error| format!("{key}: {}: {e}", path.display());
    make_dir(dir).map_err(failed)?;
    let mut options = File::options();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600);
    let mut file = options.open(&path).map_err(failed)?;
    let identity = |file: &File| file.metadata().map(|it| (it.dev(), it.ino())).ok();
    let is_this = |of: &File| identity(of) == identity(&file);
    if let Some(at) = left.iter().position(is_this) {
        return Ok(left.swap_remove(at));
    }
    match sys::lock(&file) {
        Err(Errno::EWOULDBLOCK) => {
            let pid = task::proc::text(&path).unwrap_or_default();
            let dir = dir.display();
            return Err(format!("{key}: {dir} belongs to the daemon with pid {pid}"));
        }
        // Not every file system has locks.
        Err(e) => log::warn!("{}: {e}: who else uses it is not seen", path.display()),
        Ok(()) => {}
    }
    // For people; on a full disk they have to look for themselves.
    let _ = file.set_len(0);
    let _ = file.write_all(std::process::id().to_string().as_bytes());
    Ok(file)
}
