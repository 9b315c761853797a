// SPDX-License-Identifier: Apache-2.0
//! What the kernel's files tell, most of all those of a process. All of it is bytes: the kernel keeps
//! 15 of a program's name, and cuts where that falls; cgroups and sockets have any names.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What the kernel puts behind the name of a file that is gone (d_path).
const DELETED: &[u8] = b" (deleted)";

/// A file of the kernel's as text; what is no UTF-8 becomes U+FFFD.
///
/// # Errors
/// From open(2) and read(2).
pub fn text(path: impl AsRef<Path>) -> io::Result<String> {
    let text = fs::read(path)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Of /proc/PID/stat (proc_pid_stat(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// `Z` for a zombie, `X` for one that is gone.
    pub state: u8,
    pub parent: u32,
    /// When it was started, in clock ticks after boot.
    pub started: u64,
}

/// Asks for process `pid`; `None` if there is none.
pub fn stat(pid: u32) -> Option<Stat> {
    stat_of(format!("/proc/{pid}/stat"))
}

/// What a file of this form says, a thread's too.
pub fn stat_of(path: impl AsRef<Path>) -> Option<Stat> {
    parse(&fs::read(path).ok()?)
}

fn parse(stat: &[u8]) -> Option<Stat> {
    // The name, in parentheses, may hold anything, parentheses too.
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    let fields = std::str::from_utf8(&stat[end + 1..]).ok()?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    Some(Stat {
        state: *fields.first()?.as_bytes().first()?,
        parent: fields.get(1)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

/// Every process there is, ended or not.
///
/// # Errors
/// From opendir(3).
pub fn all() -> io::Result<impl Iterator<Item = u32>> {
    let entries = fs::read_dir("/proc")?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()))
}

/// When `pid` was started, in clock ticks after boot.
pub fn started(pid: u32) -> Option<u64> {
    Some(stat(pid)?.started)
}

/// The parent of `pid`.
pub fn parent(pid: u32) -> Option<u32> {
    Some(stat(pid)?.parent)
}

/// True if `pid` is alive (a zombie is not) and, where `started` is not 0, was started then.
pub fn is_alive(pid: u32, started: u64) -> bool {
    stat(pid).is_some_and(|stat| {
        !matches!(stat.state, b'Z' | b'X') && (started == 0 || stat.started == started)
    })
}

/// The words of its command line; what is no UTF-8 in them becomes U+FFFD. None for a zombie or a
/// process that is gone.
pub fn command_line(pid: u32) -> Vec<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = line.strip_suffix(b"\0").unwrap_or(&line);
    let words = words.split(|&byte| byte == 0);
    let words = words.map(|word| String::from_utf8_lossy(word).into_owned());
    words.filter(|_| !line.is_empty()).collect()
}

/// Whose it is: its real, effective, saved and file system user (proc_pid_status(5)). The owner of
/// its files in /proc is another where it may not be looked at.
pub fn users(pid: u32) -> Option<[u32; 4]> {
    let status = text(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let users: Vec<u32> = line
        .split_whitespace()
        .filter_map(|id| id.parse().ok())
        .collect();
    users.try_into().ok()
}

/// The program it runs, by the path that it had when it was started; it may be gone from there.
pub fn program(pid: u32) -> Option<PathBuf> {
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let mut path = path.into_os_string().into_vec();
    // The kernel says so of a file that was replaced.
    if path.ends_with(DELETED) {
        path.truncate(path.len() - DELETED.len());
    }
    Some(PathBuf::from(OsString::from_vec(path)))
}

/// True for a process of our own user's that runs a file of our own root directory whose name begins
/// so: anybody may call a process of theirs what they like, and so may a container.
pub fn is_ours(pid: u32, begin: &str) -> bool {
    // A file that was put aside for a new one has another ending.
    let named = program(pid).is_some_and(|path| {
        let name = path.file_name().map(OsStrExt::as_bytes);
        name.is_some_and(|name| name.starts_with(begin.as_bytes()))
    });
    let root = |pid: &str| {
        let root = fs::metadata(format!("/proc/{pid}/root/")).ok()?;
        Some((root.dev(), root.ino()))
    };
    let own = nix::unistd::geteuid().as_raw();
    named && users(pid) == Some([own; 4]) && root("self") == root(&pid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_any_bytes() {
        let rest = "S 17 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 1 2 3\n";
        let expected = Stat {
            state: b'S',
            parent: 17,
            started: 4711,
        };
        for name in [
            &b"sh"[..],
            b"uberwachungsdi\xc3",
            b"a) Z 1 (b",
            b") ",
            b"\xff\0\n",
        ] {
            let stat = [b"9 (", name, b") ", rest.as_bytes()].concat();
            assert_eq!(parse(&stat), Some(expected), "{}", name.escape_ascii());
        }
        assert_eq!(parse(b"9 (sh) S 1"), None);
        assert_eq!(parse(b""), None);
        assert!(is_alive(std::process::id(), 0));
        assert!(!is_alive(std::process::id(), 1));
    }
}
