// SPDX-License-Identifier: Apache-2.0
//! A disk that is soon full: a small tmpfs, for as long as a test has it.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs;
use std::path::{Path, PathBuf};

/// What half of a [`FullDisk`] is filled with, until it is removed.
const BALLAST: &str = "ballast";

pub struct FullDisk(PathBuf);

impl FullDisk {
    /// Mounts one of `size` bytes on a new directory. Half of it is taken.
    pub fn half_full(dir: PathBuf, size: usize) -> Self {
        fs::create_dir(&dir).expect("a new directory");
        let options = format!("size={size}");
        mount(
            Some("tmpfs"),
            &dir,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .expect("mount a tmpfs");
        fs::write(dir.join(BALLAST), vec![0; size / 2]).expect("ballast");
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// There is room again.
    pub fn make_room(&self) {
        fs::remove_file(self.0.join(BALLAST)).expect("remove the ballast");
    }
}

impl Drop for FullDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}
