// SPDX-License-Identifier: Apache-2.0
//! Why a node could not be changed, in words for whoever reads the pod's log.

use std::io;
use std::path::Path;

pub type Result<T> = std::result::Result<T, Failure>;

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{0}")]
    Usage(String),
    #[error("{path}: {source}")]
    Io { path: String, source: io::Error },
    /// It is somebody's own, and nothing was changed.
    #[error("{path}: {why}; nothing was changed")]
    Config { path: String, why: String },
    #[error("{0}: they have to end first")]
    InUse(String),
    #[error("{0}: {1}")]
    Daemon(&'static str, String),
}

/// For `map_err`: what an operation on `path` ended with.
pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let path = path.display().to_string();
    move |source| Failure::Io { path, source }
}
