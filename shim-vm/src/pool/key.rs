// SPDX-License-Identifier: Apache-2.0
//! Of what kind a VM is: all that it was booted with. A shim takes none but one that it would have booted
//! just so.

use super::KIND;
use crate::config::{Accel, Config};
use crate::image::{AGENT, Image};
use crate::program::Program;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The program that a process executes, whatever its path has become.
pub const OWN: &str = "/proc/self/exe";

/// A file as it is now: one that is changed or replaced is another.
#[derive(Debug, Serialize)]
struct File {
    path: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl File {
    fn at(path: &Path) -> io::Result<Self> {
        let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
        let file = fs::metadata(path).map_err(named)?;
        Ok(Self {
            path: path.to_owned(),
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            changed: (file.ctime(), file.ctime_nsec()),
        })
    }
}

/// It is only written, and compared.
#[derive(Debug, Serialize)]
struct Kind<'a> {
    shim: File,
    agent: (&'a str, &'a str),
    kernel: File,
    initrd: File,
    abilities: String,
    qemu: File,
    /// What QEMU reads beside itself.
    around: String,
    libraries: Option<File>,
    accel: String,
    memory: u64,
    vcpus: u32,
    max_open_files: u64,
    /// Its file server may make some for the host.
    has_container_sockets: bool,
    users: (u32, u32),
    checkpoints: bool,
}

/// The directory of the sockets of VMs in store that are as `config` wants them, of `image`, run by
/// `program`; `shim` is the program that all of them are served by, this process's if there is none.
///
/// # Errors
/// If a file can't be looked at.
pub fn sockets(
    shim: Option<&Path>,
    config: &Config,
    image: &Image,
    accel: Accel,
    program: &Program,
) -> io::Result<PathBuf> {
    let mut own = File::at(shim.unwrap_or(Path::new(OWN)))?;
    own.path = PathBuf::new();
    let kind = Kind {
        shim: own,
        agent: AGENT,
        kernel: File::at(&image.kernel)?,
        initrd: File::at(&image.initrd)?,
        abilities: format!("{:?}", image.abilities),
        qemu: File::at(&program.path)?,
        around: format!("{program:?}"),
        libraries: File::at(Path::new("/etc/ld.so.cache")).ok(),
        accel: format!("{accel:?}"),
        memory: config.memory,
        vcpus: config.vcpus,
        max_open_files: config.max_open_files,
        has_container_sockets: !config.container_sockets.is_empty(),
        users: (config.first_user, config.users),
        checkpoints: config.checkpoints,
    };
    let digest = Sha256::digest(serde_json::to_vec(&kind)?);
    let name: String = digest[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(config.pool.directory.join(format!("{KIND}{name}")))
}
