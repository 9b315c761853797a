// SPDX-License-Identifier: Apache-2.0
//! What makes a shim's command fail: a text for containerd's log.

use std::io;
use std::path::Path;
use task::error::words;

pub type Result<T> = std::result::Result<T, Error>;

/// Printed on stderr after the runtime's name (contract B4).
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Error {
    text: String,
}

impl Error {
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into() }
    }

    /// `doing` `path` failed with `source`.
    pub fn io(doing: &str, path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::new(format!(
            "{doing} {}: {}",
            path.as_ref().display(),
            words(&source)
        ))
    }
}

impl From<task::Error> for Error {
    fn from(error: task::Error) -> Self {
        Self::new(error.to_string())
    }
}
