// SPDX-License-Identifier: Apache-2.0
//! Our two sockets: made here, or inherited from systemd, which then keeps clients waiting while
//! we are away.

use crate::config::{Config, Grpc};
use crate::store::make_dir;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::UnixAddr;
use nix::sys::socket::getsockname;
use std::fs::{self, File, Permissions};
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The first inherited fd (sd_listen_fds(3)).
const FIRST_FD: i32 = 3;

/// Sockets that somebody left open for us, by path, and what else the image before us did.
#[derive(Default)]
pub struct Sockets {
    inherited: Vec<(PathBuf, UnixListener)>,
    pub files: Vec<File>,
}

/// Names the fds that the image before us left open, sockets and locks: "5,6,7,8".
pub const PASSED_ON: &str = "DUNNAGE_SOCKETS";

/// The sockets once more, and the locks, for the image that comes after us: clients queue meanwhile.
pub struct Kept([OwnedFd; 4]);

impl Kept {
    /// Leaves them open over exec(2), and tells `command` of them.
    ///
    /// # Errors
    /// From fcntl(2).
    pub fn pass_on(&self, command: &mut Command) -> std::io::Result<()> {
        for fd in &self.0 {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        let numbers = self.0.each_ref().map(|fd| fd.as_raw_fd().to_string());
        command.env(PASSED_ON, numbers.join(","));
        Ok(())
    }
}

impl Bound {
    /// # Errors
    /// From fcntl(2).
    pub fn keep(&self, [root, state]: [File; 2]) -> std::io::Result<Kept> {
        let copy = |listener: &tokio::net::UnixListener| listener.as_fd().try_clone_to_owned();
        let sockets = (copy(&self.grpc)?, copy(&self.ttrpc)?);
        Ok(Kept([sockets.0, sockets.1, root.into(), state.into()]))
    }
}

/// What we listen on.
pub struct Bound {
    pub grpc: tokio::net::UnixListener,
    pub ttrpc: tokio::net::UnixListener,
}

/// Removes the socket that a daemon before us left at `path`.
///
/// # Errors
/// A text, if somebody listens there, or if it is no socket.
pub fn make_way(path: &Path) -> Result<(), String> {
    let failed = |what: &dyn std::fmt::Display| format!("{}: {what}", path.display());
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(&e)),
        Ok(found) if !found.file_type().is_socket() => return Err(failed(&"is no socket")),
        Ok(_) => {}
    }
    if UnixStream::connect(path).is_ok() {
        return Err(failed(&"another daemon is there"));
    }
    fs::remove_file(path).map_err(|e| failed(&e))
}

impl Sockets {
    /// Takes over what systemd, or the image before us, passed on. Call it before any file is opened.
    pub fn inherited() -> Self {
        let number = |name: &str| std::env::var(name).ok()?.parse::<i32>().ok();
        let for_us = number("LISTEN_PID") == i32::try_from(std::process::id()).ok();
        let count = if for_us {
            number("LISTEN_FDS").unwrap_or(0)
        } else {
            0
        };
        let passed_on = std::env::var(PASSED_ON).unwrap_or_default();
        let passed_on: Vec<i32> = passed_on
            .split(',')
            .filter_map(|number| number.parse().ok())
            .collect();
        let numbers = (0..count)
            .map(|n| FIRST_FD + n)
            .filter(|fd| !passed_on.contains(fd));
        let numbers: Vec<i32> = numbers.chain(passed_on.iter().copied()).collect();
        let fds = numbers
            .into_iter()
            .filter_map(|fd| task::sys::adopt(fd).ok());
        let mut found = Self::default();
        for fd in fds {
            let address = getsockname::<UnixAddr>(fd.as_raw_fd());
            match address.as_ref().map(UnixAddr::path) {
                Ok(Some(path)) => found.inherited.push((path.to_owned(), fd.into())),
                _ => found.files.push(fd.into()),
            }
        }
        found
    }

    /// Listens on both sockets.
    ///
    /// # Errors
    /// A text with the path; also if another daemon serves there.
    pub fn bind(mut self, config: &Config) -> Result<Bound, String> {
        let Grpc {
            address,
            uid,
            gid,
            mode,
        } = &config.grpc;
        Ok(Bound {
            grpc: self.one(address, *mode, (*uid, *gid))?,
            ttrpc: self.one(&config.ttrpc.address, 0o600, (0, 0))?,
        })
    }

    /// An inherited one stays as whoever made it wanted it.
    fn one(
        &mut self,
        path: &Path,
        mode: u32,
        (uid, gid): (u32, u32),
    ) -> Result<tokio::net::UnixListener, String> {
        let failed = |e: std::io::Error| format!("{}: {e}", path.display());
        let found = self.inherited.iter().position(|(of, _)| of == path);
        let listener = match found {
            Some(at) => self.inherited.swap_remove(at).1,
            None => {
                if let Some(dir) = path.parent() {
                    make_dir(dir).map_err(failed)?;
                }
                make_way(path)?;
                // Nobody may come in between making it and restricting it.
                let old = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o777));
                let bound = UnixListener::bind(path);
                nix::sys::stat::umask(old);
                let bound = bound.map_err(failed)?;
                chown(path, Some(uid), Some(gid)).map_err(failed)?;
                fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed)?;
                bound
            }
        };
        listener.set_nonblocking(true).map_err(failed)?;
        tokio::net::UnixListener::from_std(listener).map_err(failed)
    }
}
