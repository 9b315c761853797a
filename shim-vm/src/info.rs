// SPDX-License-Identifier: Apache-2.0
//! What `-info` tells: who we are, and what a container in a VM can have (contract B24), as the OCI's
//! features. What is not announced does not work, or only by chance.

use crate::rootfs;
use protos::Any;
use protos::types::{RuntimeInfo, RuntimeVersion};
use serde_json::{Value, json};
use std::collections::HashMap;

const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// The info of a runtime called `name`, for containers with `options`.
pub fn info(name: &str, options: Option<Any>) -> RuntimeInfo {
    RuntimeInfo {
        name: name.into(),
        version: Some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").into(),
            revision: shim::revision().into(),
        }),
        options,
        features: Some(Any {
            type_url: FEATURES.into(),
            value: features().to_string().into_bytes(),
        }),
        annotations: HashMap::from([(
            shim::Mounts::ANNOTATION.to_owned(),
            rootfs::MOUNTS.annotation(),
        )]),
    }
}

/// Mounts with owners of their own are the host's to make, and the guest is shown what comes of them. The
/// labels of security modules are the host's, and not followed.
fn features() -> Value {
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.0",
        "hooks": ["prestart", "createRuntime", "poststart", "poststop"],
        "mountOptions": [
            "async", "atime", "bind", "defaults", "dev", "diratime", "dirsync", "exec", "idmap", "noatime",
            "nodev", "nodiratime", "noexec", "norelatime", "nostrictatime", "nosuid", "private", "rbind",
            "relatime", "remount", "ridmap", "ro", "rprivate", "rro", "rshared", "rslave", "rw", "shared", "slave",
            "strictatime", "suid", "sync", "tmpcopyup",
        ],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"],
            "cgroup": {"v1": false, "v2": true, "systemd": false, "systemdUser": false, "rdma": false},
            "seccomp": {"enabled": true},
            "apparmor": {"enabled": false},
            "selinux": {"enabled": false},
            "intelRdt": {"enabled": false},
            "mountExtensions": {"idmap": {"enabled": true}},
        },
    })
}
