// SPDX-License-Identifier: Apache-2.0
//! The containerds that are installed, and what suits them.

use super::SHIM;
use crate::peers;
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

/// An installed containerd: the line of `target/peers/versions` that tests/setup.sh wrote.
#[derive(Clone, Debug)]
pub struct Release {
    /// `1.6`, `1.7` or `2.1`; the latter is whatever 2.x Debian has.
    pub name: &'static str,
    /// As Debian counts, e.g. `1.7.24~ds1-6+deb13u1`.
    pub version: String,
    /// Where `containerd`, `ctr` and the release's Go shim are.
    pub bin: PathBuf,
}

impl Release {
    pub fn find(name: &'static str) -> Option<Self> {
        let (version, bin) = peers::version(&format!("containerd-{name}"))?;
        bin.join("containerd")
            .exists()
            .then_some(Self { name, version, bin })
    }

    /// containerd's own shim of this release. (An older one works under a newer containerd, a
    /// newer one is refused by an older containerd.)
    pub fn go_shim(&self) -> PathBuf {
        self.bin.join(SHIM)
    }

    /// The shim under test; where that is Go's, the one that belongs to this release.
    pub fn shim(&self) -> PathBuf {
        if peers::is_go() {
            self.go_shim()
        } else {
            peers::shim().to_owned()
        }
    }
}

/// overlayfs where /tmp can carry it, else native.
pub(super) fn snapshotter() -> &'static str {
    static SNAPSHOTTER: LazyLock<&str> = LazyLock::new(|| {
        use nix::mount::{MntFlags, MsFlags, mount, umount2};
        let dir = tempfile::tempdir_in("/tmp").expect("a directory in /tmp");
        let path = |name: &str| dir.path().join(name);
        for name in ["lower", "upper", "work", "merged"] {
            fs::create_dir(path(name)).expect("a directory in /tmp");
        }
        let [lower, upper, work] = ["lower", "upper", "work"].map(path);
        let (lower, upper, work) = (lower.display(), upper.display(), work.display());
        let data = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        let merged = path("merged");
        match mount(
            Some("overlay"),
            &merged,
            Some("overlay"),
            MsFlags::empty(),
            Some(&data[..]),
        ) {
            Ok(()) => {
                umount2(&merged, MntFlags::empty()).expect("umount");
                "overlayfs"
            }
            Err(_) => "native",
        }
    });
    &SNAPSHOTTER
}
