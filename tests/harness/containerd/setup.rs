// SPDX-License-Identifier: Apache-2.0
//! What a private containerd is set up with: its config.toml, and what tests ask for beside it.

use super::release;
use crate::peers;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

const CONFIG: &str = r#"version = 2
root = "DIR/r"
state = "DIR/s"
disabled_plugins = [
    CRI
    "io.containerd.internal.v1.opt", "io.containerd.internal.v1.restart",
    "io.containerd.monitor.container.v1.restart", TRACING
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
]
[grpc]
address = "DIR/c.sock"
[debug]
level = "LEVEL"
"#;

const TRACING_PLUGINS: &str =
    r#""io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp","#;

const CRI_PLUGINS: &str = r#""io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime", "io.containerd.podsandbox.controller.v1.podsandbox",
    "io.containerd.nri.v1.nri","#;

/// What a containerd has that the plain ones of most tests have not.
#[derive(Default)]
pub(crate) struct Setup {
    /// The namespace of its containers; else it is named as the directory.
    pub namespace: Option<&'static str>,
    /// Whether it serves Kubernetes too.
    pub cri: bool,
    /// More of config.toml; DIR is the directory, SNAPSHOTTER the one to use.
    pub config: &'static str,
    /// The network namespace that it and its clients live in.
    pub network: Option<OwnedFd>,
    /// More of the environment of the daemon and of its clients; with it, containerd traces.
    pub env: Vec<(&'static str, String)>,
    /// Fills the directory before the start.
    pub prepare: Option<fn(&Path)>,
}

impl Setup {
    /// config.toml of a containerd in `dir`.
    pub(super) fn config(&self, dir: &Path) -> String {
        let level = std::env::var("CONTAINERD_LOG_LEVEL").unwrap_or_else(|_| "info".to_owned());
        let plugins = if self.cri {
            peers::cni()
        } else {
            PathBuf::new()
        };
        format!("{CONFIG}{}", self.config)
            .replace(
                "TRACING\n",
                if self.env.is_empty() {
                    TRACING_PLUGINS
                } else {
                    "\n"
                },
            )
            .replace("CRI\n", if self.cri { "\n" } else { CRI_PLUGINS })
            .replace("DIR", &dir.to_string_lossy())
            .replace("PLUGINS", &plugins.to_string_lossy())
            .replace("LEVEL", &level)
            .replace("SNAPSHOTTER", release::snapshotter())
    }
}
