// SPDX-License-Identifier: Apache-2.0
//! Images of filesystems, as far as the host looks at them: what they are, and what says that they are
//! the ones that were meant.

use protos::types::Mount;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use task::rootfs::Verity;

/// Where a filesystem says what it is, and in which bytes (linux/magic.h).
const MAGIC: [(&str, u64, &[u8]); 2] = [
    ("erofs", 1024, &0xe0f5_e1e2_u32.to_le_bytes()),
    ("ext4", 1080, &0xef53_u16.to_le_bytes()),
];
/// More than any description of an image has.
const LONGEST: u64 = 64 << 10;

/// Whether `mount` is of an image of its kind.
///
/// # Errors
/// If not, or if it can't be read.
pub fn check(mount: &Mount) -> Result<(), String> {
    let Some((kind, at, magic)) = MAGIC.iter().find(|(kind, ..)| *kind == mount.r#type) else {
        return Ok(());
    };
    let mut found = vec![0; magic.len()];
    let read = File::open(&mount.source).and_then(|file| {
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("not a file"));
        }
        file.read_exact_at(&mut found, *at)
    });
    match read {
        Ok(()) if found == *magic => Ok(()),
        Ok(()) => Err(format!("not {kind}")),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(format!("too short for {kind}")),
        Err(e) => Err(e.to_string()),
    }
}

/// What the file `path` says of the image that it is beside.
///
/// # Errors
/// If it says nothing of that kind.
pub fn verity(path: &Path) -> Result<Verity, String> {
    let wrong = |why: String| format!("{}: {why}", path.display());
    let mut text = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(LONGEST).read_to_end(&mut text));
    read.map_err(|e| wrong(e.to_string()))?;
    serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))
}
