// SPDX-License-Identifier: Apache-2.0
//! Binaries: where the shims' are and ours is, and whether one is still the same.

use crate::failure::{Failure, invalid, not_found};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use task::aside;

/// Inode and time of change of a binary.
pub type Identity = (u64, i64);

/// The binary of a runtime: an absolute path, or `a.b.NAME.VERSION` (shim_manager.go:383-459).
///
/// # Errors
/// `InvalidArgument` for what is neither, `NotFound` if there is no such binary.
pub async fn resolve(runtime: &str) -> Result<PathBuf, Failure> {
    if runtime.starts_with('/') {
        let found = first_file(vec![runtime.into()]).await;
        return found.ok_or_else(|| not_found(format!("runtime {runtime:?}")));
    }
    let mut parts = runtime.rsplit('.');
    let (version, name) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    if runtime.contains('/') || name.is_empty() || version.is_empty() {
        return Err(invalid(format!(
            "invalid runtime name {runtime}, correct runtime name should be either format \
             like `io.containerd.runc.v2` or a full path to the binary"
        )));
    }
    let binary = format!("containerd-shim-{name}-{version}");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let beside = std::env::current_exe().ok();
    let beside = beside.as_deref().and_then(Path::parent).map(Path::to_owned);
    let candidates = std::env::split_paths(&path)
        .chain(beside)
        .map(|dir| dir.join(&binary));
    let found = first_file(candidates.collect()).await;
    found.ok_or_else(|| {
        not_found(format!(
            "runtime {runtime:?}: binary {binary:?} not installed"
        ))
    })
}

async fn first_file(paths: Vec<PathBuf>) -> Option<PathBuf> {
    aside::run(move || paths.into_iter().find(|path| path.is_file())).await
}

/// Where our own is, or what has taken its place.
pub fn program() -> PathBuf {
    let path = std::env::current_exe().unwrap_or_else(|_| "dunnage".into());
    let text = path.to_string_lossy();
    text.strip_suffix(" (deleted)")
        .map_or(path.clone(), PathBuf::from)
}

/// What tells a binary from another of the same name.
pub async fn identity(shim: &Path) -> Option<Identity> {
    let shim = shim.to_owned();
    let metadata = aside::run(move || fs::metadata(shim)).await.ok()?;
    Some((metadata.ino(), metadata.mtime()))
}
