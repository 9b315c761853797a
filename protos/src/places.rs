// SPDX-License-Identifier: Apache-2.0
//! Where a VM has what its host gives it: names on which the shim and the agent must agree.

/// The host's files, by virtio-fs.
pub const SHARE: &str = "/run/share";
/// Memory that containers share: a directory for each.
pub const MEMORY: &str = "/run/shm";
/// In the share, in a container's directory.
pub const ROOTFS: &str = "rootfs";

/// The root filesystem of this container.
pub fn rootfs(id: &str) -> String {
    format!("{SHARE}/{id}/{ROOTFS}")
}
/// Root filesystems that the guest mounts itself.
pub const ROOTS: &str = "/run/roots";
/// In the directory of one: what comes of its mounts.
pub const TOP: &str = "top";

/// A file in the share with something in it: who has read it has an answer.
pub const ANSWERED: &str = ".answered";
/// Sockets at which the agent listens for the host's.
pub const SOCKETS: &str = "/run/sockets";
/// Copies of volumes that the host swaps: a directory for each.
pub const MIRRORS: &str = "/run/mirrors";
