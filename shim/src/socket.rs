// SPDX-License-Identifier: Apache-2.0
//! The shim's socket: where it is, making it, finding out who has it (contract B31 to B34, B56).

use crate::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Where sockets are unless the caller says otherwise.
pub const DEFAULT_DIR: &str = "/run/containerd/s";
/// The bundle's link to another directory of sockets (B34).
pub const LINK: &str = "s";
/// The longest path that containerd's clients can connect to, in bytes.
const MAX_PATH: usize = 106;

/// The socket of a group of containers: every container of the group comes to the same path.
pub fn path(dir: &Path, grpc_address: &str, namespace: &str, group: &str) -> PathBuf {
    let joined = clean(&format!("{grpc_address}/{namespace}/{group}"));
    let mut name = String::with_capacity(64);
    for byte in Sha256::digest(joined) {
        // Writing to a String does not fail.
        let _ = write!(name, "{byte:02x}");
    }
    dir.join(name)
}

/// Go's `path.Join`: no empty and no `.` elements, `..` resolved.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let rooted = path.starts_with('/');
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    if rooted { format!("/{joined}") } else { joined }
}

/// A path as containerd writes addresses.
pub fn address(path: &Path) -> String {
    format!("unix://{}", path.display())
}

/// The path in an address that containerd wrote; abstract and foreign ones have none.
pub fn path_of(address: &str) -> Option<PathBuf> {
    let path = address.strip_prefix("unix://").unwrap_or(address);
    path.starts_with('/').then(|| path.into())
}

/// Who has the socket.
pub enum Bound {
    /// We do.
    Ours(UnixListener),
    /// A running shim of the same group.
    Theirs,
}

/// Listens at `path`, or finds the shim that does; a dead shim's socket is replaced (B33).
///
/// # Errors
/// If the path is too long, or the directory or the socket can't be made.
pub fn bind(path: &Path) -> Result<Bound> {
    if path.as_os_str().len() > MAX_PATH {
        let text = format!("socket path {}: over {MAX_PATH} bytes", path.display());
        return Err(Error::new(text));
    }
    let failed = |e: io::Error| Error::io("create socket", path, e);
    if let Some(dir) = path.parent() {
        let mut builder = DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(dir);
        made.map_err(|e| Error::io("create", dir, e))?;
    }
    let listener = match UnixListener::bind(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            if UnixStream::connect(path).is_ok() {
                return Ok(Bound::Theirs);
            }
            fs::remove_file(path).map_err(failed)?;
            UnixListener::bind(path).map_err(failed)?
        }
        other => other.map_err(failed)?,
    };
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(Bound::Ours(listener))
}

/// Removes the socket at `path` if nobody listens there.
pub fn remove_if_dead(path: &Path) {
    let refused = |e: io::Error| e.kind() == io::ErrorKind::ConnectionRefused;
    if UnixStream::connect(path).is_err_and(refused) {
        let _ = fs::remove_file(path);
    }
}

/// The bundle's link to a socket directory that is not the default (B34).
///
/// # Errors
/// If the link can't be made.
pub fn link_dir(dir: &Path) -> Result<()> {
    match symlink(dir, LINK) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(Error::io("link to", dir, e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// B31; the hash was seen on a running Go shim's socket.
    #[test]
    fn a_group_has_one_path() {
        let one = path(
            Path::new("/s"),
            "/run/containerd/containerd.sock",
            "default",
            "pod",
        );
        let joined = Sha256::digest("/run/containerd/containerd.sock/default/pod");
        let hex: String = joined.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(one, Path::new("/s").join(hex));
    }

    #[test]
    fn paths_join_as_in_go() {
        for (path, joined) in [
            ("/a//b/./c", "/a/b/c"),
            ("/a/../b", "/b"),
            ("/../b", "/b"),
            ("a/b/", "a/b"),
            ("//n/id", "/n/id"),
        ] {
            assert_eq!(clean(path), joined, "{path}");
        }
    }

    /// B33: who listens is found, and a socket that nobody listens at is made anew.
    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d/socket");
        let Bound::Ours(first) = bind(&path).unwrap() else {
            panic!()
        };
        assert!(matches!(bind(&path).unwrap(), Bound::Theirs));
        drop(first);
        let Bound::Ours(_second) = bind(&path).unwrap() else {
            panic!()
        };
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let long = dir.path().join("x".repeat(100));
        assert!(
            bind(&long)
                .err()
                .unwrap()
                .to_string()
                .contains("over 106 bytes")
        );
    }
}
