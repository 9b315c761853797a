// SPDX-License-Identifier: Apache-2.0
//! A configuration file, which others read while it changes: it is replaced in one step.

use crate::failure::{Failure, Result, io};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Empty, if it is not there.
pub fn read(path: &Path) -> Result<String> {
    match fs::read_to_string(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(String::new()),
        text => text.map_err(io(path)),
    }
}

/// In one step, with the mode that it has; true if it was another text.
pub fn write(path: &Path, text: &str) -> Result<bool> {
    if read(path)? == text {
        return Ok(false);
    }
    let mode = fs::metadata(path).map_or(0o644, |it| it.permissions().mode());
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Whoever reads all files of a directory leaves those with a dot.
    let new = path.with_file_name(format!(".{name}.new"));
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(io(dir))?;
    }
    fs::write(&new, text).map_err(io(&new))?;
    fs::set_permissions(&new, fs::Permissions::from_mode(mode)).map_err(io(&new))?;
    let written = fs::File::open(&new).and_then(|file| file.sync_all());
    written.map_err(io(&new))?;
    fs::rename(&new, path).map_err(io(path))?;
    Ok(true)
}

/// A file of our own: `begin` is how it begins.
///
/// # Errors
/// If somebody else's is there: it stays as it is.
pub fn write_own(path: &Path, begin: &str, text: &str) -> Result<bool> {
    let old = read(path)?;
    if !old.is_empty() && !old.starts_with(begin) {
        return Err(Failure::Config {
            path: path.display().to_string(),
            why: "it is not of dunnage-node".into(),
        });
    }
    write(path, &format!("{begin}{text}"))
}

/// True if it was there, and was ours.
pub fn remove_own(path: &Path, begin: &str) -> Result<bool> {
    if !read(path)?.starts_with(begin) {
        return Ok(false);
    }
    fs::remove_file(path).map_err(io(path))?;
    Ok(true)
}
