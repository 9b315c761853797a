// SPDX-License-Identifier: Apache-2.0
//! What of a container's mounts is of the host's.

use serde_json::Value;
use std::path::{Path, PathBuf};

/// A bind mount of the host's, to be shown to the guest.
#[derive(Debug, PartialEq)]
pub struct Volume {
    pub source: PathBuf,
    pub readonly: bool,
    /// So is all that is mounted in it.
    pub recursively: bool,
    /// What the host mounts in it later appears in it.
    pub follows: bool,
    /// Without what else is mounted in it.
    pub alone: bool,
    /// What processes share there is memory, which must be the guest's own.
    pub memory: bool,
    /// Its place among the mounts.
    pub(super) mount: usize,
}

impl Volume {
    /// A file that is no mount of the container's.
    pub fn file(source: PathBuf, readonly: bool) -> Self {
        Self {
            source,
            readonly,
            recursively: readonly,
            follows: false,
            alone: true,
            memory: false,
            mount: usize::MAX,
        }
    }
}

/// Without a source of the host's, a mount has nothing of it.
pub(super) fn volumes(spec: &Value) -> Vec<Volume> {
    let mut volumes = Vec::new();
    let mounts = spec["mounts"].as_array();
    for (place, mount) in mounts.into_iter().flatten().enumerate() {
        let options: Vec<&str> = mount["options"]
            .as_array()
            .map(|list| list.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        let has = |name: &str| options.contains(&name);
        if !(mount["type"] == "bind" || has("bind") || has("rbind")) {
            continue;
        }
        let memory = mount["destination"] == "/dev/shm";
        let source = Path::new(mount["source"].as_str().unwrap_or_default());
        // The kernel's own: the guest has them too.
        let kernels = ["/proc", "/sys", "/dev"];
        if kernels.iter().any(|own| source.starts_with(own)) && !memory {
            continue;
        }
        volumes.push(Volume {
            source: source.into(),
            readonly: has("ro") || has("rro"),
            recursively: has("rro"),
            follows: ["slave", "rslave", "shared", "rshared"]
                .into_iter()
                .any(has),
            alone: has("bind") && !has("rbind"),
            memory,
            mount: place,
        });
    }
    volumes
}
