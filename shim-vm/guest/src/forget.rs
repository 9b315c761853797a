// SPDX-License-Identifier: Apache-2.0
//! Files of the share that the guest's kernel is to forget: what the host has removed, and what nobody
//! uses. The host has each file open that is known here.

use crate::boot::SHARE;
use crate::{mirror, roots};
use protos::guest::ForgetRequest;
use std::fs;
use std::io;
use std::path::{Component, Path};

/// Whoever writes 3 to it has the kernel forget files that are not in use, and what it has read of them.
const DROP: &str = "/proc/sys/vm/drop_caches";
const UNUSED: &str = "3";

/// Does so; it waits for the host.
///
/// # Errors
/// If a name is none in the share, or the kernel does not do it.
pub fn forget(request: &ForgetRequest) -> io::Result<()> {
    if !request.names.is_empty() {
        // What was mounted there ends now.
        roots::answered()?;
    }
    for name in &request.names {
        let path = Path::new(name);
        if !path
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
        {
            return Err(io::Error::other(format!(
                "{name:?} is no name in the share"
            )));
        }
        if let Some(number) = path.file_name().filter(|_| path.components().count() > 1) {
            mirror::forget(&number.to_string_lossy());
        }
        // The kernel asks the host for it, and if it is not there forgets it, and all that was in it.
        match fs::symlink_metadata(Path::new(SHARE).join(path)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => log::warn!("{name}, which the host has removed: {e}"),
            Ok(_) => log::debug!("{name} is there again"),
        }
    }
    if request.unused {
        fs::write(DROP, UNUSED)?;
    }
    Ok(())
}
