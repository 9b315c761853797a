// SPDX-License-Identifier: Apache-2.0
//! Where networks and their plugins are.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Networks of containers, by CNI.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    /// Where networks are described: `*.conflist` and `*.conf`, of which the first of a name counts.
    pub config_dirs: Vec<PathBuf>,
    /// Where the plugins are.
    pub plugin_dirs: Vec<PathBuf>,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            config_dirs: vec!["/etc/cni/net.d".into(), "/etc/dunnage/net.d".into()],
            // containerd's, and Debian's.
            plugin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
        }
    }
}

impl Network {
    /// # Errors
    /// A text with the key that does not fit.
    pub fn fits(&self) -> Result<(), String> {
        for (key, dirs) in [
            ("network.config_dirs", &self.config_dirs),
            ("network.plugin_dirs", &self.plugin_dirs),
        ] {
            // Plugins are told theirs as a list with colons.
            let bad = |dir: &&PathBuf| {
                dir.is_relative() || dir.as_os_str().as_encoded_bytes().contains(&b':')
            };
            if let Some(dir) = dirs.iter().find(bad) {
                return Err(format!(
                    "{key}: {dir:?} is not an absolute path without colons"
                ));
            }
        }
        Ok(())
    }
}
