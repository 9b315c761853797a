// SPDX-License-Identifier: Apache-2.0
//! Which agent goes with which shim: a digest of all that the agent is made of here, which the
//! build scripts of both include. An image with another agent is found out before it is booted.

use sha2::{Digest, Sha256};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Below the workspace.
const AGENT: [&str; 6] = [
    "Cargo.lock",
    "protos/proto",
    "protos/src",
    "task/src",
    "shim-vm/netlink/src",
    "shim-vm/guest/src",
];

/// Gives the crate being built the variable AGENT_BUILD.
///
/// # Errors
/// If a file can't be read.
pub fn tell() -> io::Result<()> {
    let own = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let workspace = own.ancestors().find(|dir| dir.join("Cargo.lock").exists());
    let workspace = workspace.ok_or_else(|| io::Error::other("no Cargo.lock above the crate"))?;
    let mut digest = Sha256::new();
    for name in AGENT {
        println!("cargo:rerun-if-changed={}", workspace.join(name).display());
        add(&mut digest, workspace, Path::new(name))?;
    }
    let bytes = digest.finalize();
    let build: String = bytes[..6]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    println!("cargo:rustc-env=AGENT_BUILD={build}");
    Ok(())
}

/// Names and contents, in the order of the names.
fn add(digest: &mut Sha256, workspace: &Path, name: &Path) -> io::Result<()> {
    let path = workspace.join(name);
    if path.is_dir() {
        let entries: io::Result<Vec<_>> = fs::read_dir(&path)?.collect();
        let mut names: Vec<_> = entries?.iter().map(fs::DirEntry::file_name).collect();
        names.sort();
        return names
            .iter()
            .try_for_each(|entry| add(digest, workspace, &name.join(entry)));
    }
    let bytes = fs::read(&path)?;
    digest.update(name.as_os_str().as_encoded_bytes());
    digest.update(bytes.len().to_be_bytes());
    digest.update(bytes);
    Ok(())
}
