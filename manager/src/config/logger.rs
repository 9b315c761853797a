// SPDX-License-Identifier: Apache-2.0
//! `[logger]`: how much is kept of what containers write.

use serde::Deserialize;

/// The logger that `run -d` gives its containers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Logger {
    /// A file that would grow beyond this many bytes is set aside.
    pub max_size: u64,
    /// So many of those are kept.
    pub max_files: u32,
}

impl Default for Logger {
    fn default() -> Self {
        Self {
            max_size: 10 << 20,
            max_files: 3,
        }
    }
}
