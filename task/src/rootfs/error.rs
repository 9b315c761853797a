// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with a mount, in the words of who wanted it.

use super::Refusal;
use crate::error::words;
use crate::oci::Failure;
use protos::types::Mount;
use std::io;
use std::path::PathBuf;

/// Why a root filesystem could not be made or taken down.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// Nothing was mounted.
    #[error("mount source: {source_path:?}, target: {target:?}, fstype: {kind}: {refusal}")]
    Refused {
        kind: String,
        source_path: String,
        target: String,
        refusal: Refusal,
    },
    #[error(
        "mount source: {source_path:?}, target: {target:?}, fstype: {kind}, \
         options: {options:?}: {}",
        words(error)
    )]
    Mount {
        kind: String,
        source_path: String,
        target: PathBuf,
        options: String,
        error: io::Error,
    },
    #[error(
        "mount source: {source_path:?}, target: {target:?}, fstype: {kind}: \
         {doing} {}: {}", path.display(), words(error)
    )]
    Prepare {
        kind: String,
        source_path: String,
        target: PathBuf,
        doing: &'static str,
        path: PathBuf,
        error: io::Error,
    },
    /// A helper program mounts, and did not.
    #[error("mount helper {command} failed: {failure}")]
    Helper { command: String, failure: Failure },
    #[error("mount target {target:?} in {rootfs:?}: {}", words(error))]
    Target {
        rootfs: PathBuf,
        target: String,
        error: io::Error,
    },
    #[error("unmount {path:?}: {}", words(error))]
    Unmount { path: PathBuf, error: io::Error },
    #[error("what is mounted at {path:?}: {}", words(error))]
    Lookup { path: PathBuf, error: io::Error },
    #[error("mount thread: {0}")]
    Thread(#[from] io::Error),
}

impl MountError {
    pub(super) fn refused(one: Mount, refusal: Refusal) -> Self {
        Self::Refused {
            kind: one.r#type,
            source_path: one.source,
            target: one.target,
            refusal,
        }
    }
}
