// SPDX-License-Identifier: Apache-2.0
//! Loop devices: a file that is mounted as if it were a disk (contract N4).

use super::options::Image;
use crate::error::of_call;
use crate::sys;
use nix::errno::Errno;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

const CONTROL: &str = "/dev/loop-control";

/// How often a device that was free a moment ago may be somebody else's now.
const RACES: u32 = 100;

/// A device, open. Without a mount of it, it is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Device {
    pub path: PathBuf,
    _open: File,
}

/// What failed, and at which file.
#[derive(Debug)]
pub(super) struct Failure {
    pub doing: &'static str,
    pub path: PathBuf,
    pub error: io::Error,
}

/// Sets up a loop device for `file` that is free again when its last user, the mount, is gone.
pub(super) fn attach(file: &Path, image: Image, readonly: bool) -> Result<Device, Failure> {
    let open = |path: &Path, readonly: bool| {
        let file = File::options().read(true).write(!readonly).open(path);
        file.map_err(failed("open", path))
    };
    let backing = open(file, readonly)?;
    let control = open(Path::new(CONTROL), false)?;
    let mut flags = sys::LO_FLAGS_AUTOCLEAR;
    if readonly {
        flags |= sys::LO_FLAGS_READ_ONLY;
    }
    if image.direct {
        flags |= sys::LO_FLAGS_DIRECT_IO;
    }
    let mut races = RACES;
    loop {
        let number = sys::free_loop_device(control.as_fd());
        let number =
            number.map_err(|errno| failed("find a free device with", CONTROL)(of_call(errno)))?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = open(&path, readonly)?;
        match sys::configure_loop_device(device.as_fd(), backing.as_fd(), flags, file) {
            Ok(()) => {
                // A kernel may refuse to mount what somebody has open to write to
                // (BLK_DEV_WRITE_MOUNTED).
                let _open = open(&path, true)?;
                drop(device);
                return Ok(Device { path, _open });
            }
            // Somebody else was given it, too, and came first.
            Err(Errno::EBUSY) if races > 0 => races -= 1,
            Err(errno) => return Err(failed("set up", path)(of_call(errno))),
        }
    }
}

fn failed(doing: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Failure {
    let path = path.as_ref().to_owned();
    move |error| Failure { doing, path, error }
}
