// SPDX-License-Identifier: Apache-2.0
//! FUSE mounts, which are made and unmade by helper programs (contract N6).
//!
//! The helpers run as every other command of ours: as children of the reaper. The program that
//! serves the filesystem is a child of the helper's; it goes when its mount does.

use crate::command::Command;
use crate::oci::{Failure, Streams, run};
use crate::reaper::Reaper;
use protos::ttrpc::Context;
use protos::types::Mount;
use std::path::{Path, PathBuf};

/// The programs that unmount, the newer one first.
const UNMOUNT: [&str; 2] = ["fusermount3", "fusermount"];

/// True for what the kernel calls the filesystems that [`unmount`] is for.
pub(super) fn serves(kind: &[u8]) -> bool {
    kind == b"fuse" || kind.starts_with(b"fuse.")
}

/// The command that mounts `one`, a filesystem `kind` of the helper `program`'s, at `target`.
pub(super) fn command(program: &str, kind: &str, one: &Mount, target: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg(&one.source).arg(target);
    for option in &one.options {
        command.args(["-o", option]);
    }
    command.args(["-t", kind]);
    command
}

/// Runs a helper to its end; it is killed when the caller gives up.
pub(super) async fn mount(
    reaper: &Reaper,
    helper: Command,
    context: &Context,
) -> Result<(), Failure> {
    run(reaper, helper, Streams::Captured, context)
        .await
        .map(drop)
}

/// Unmounts `points`, as far as the helpers can; the rest is for umount2(2).
pub(super) async fn unmount(reaper: &Reaper, points: Vec<PathBuf>) {
    for point in points {
        for program in UNMOUNT {
            let mut command = Command::new(program);
            command.arg("-u").arg(&point);
            match run(reaper, command, Streams::Captured, &Context::background()).await {
                Ok(_) => break,
                Err(failure) => log::debug!("{program} -u {}: {failure}", point.display()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n6_the_helper_is_told_everything() {
        let one = Mount {
            r#type: "fuse3.fuse-overlayfs".into(),
            source: "overlay".into(),
            target: String::new(),
            options: vec!["lowerdir=/a b".into(), "ro".into()],
        };
        let command = command("mount.fuse3", "fuse-overlayfs", &one, Path::new("/r"));
        let expected =
            r#""mount.fuse3" "overlay" "/r" "-o" "lowerdir=/a b" "-o" "ro" "-t" "fuse-overlayfs""#;
        assert_eq!(format!("{command:?}"), expected);
    }

    #[test]
    fn n6_only_filesystems_of_fuse_are_the_helpers() {
        for (kind, ours) in [
            ("fuse", true),
            ("fuse.fuse-overlayfs", true),
            ("fuseblk", false),
            ("fusectl", false),
            ("overlay", false),
        ] {
            assert_eq!(serves(kind.as_bytes()), ours, "{kind}");
        }
    }
}
