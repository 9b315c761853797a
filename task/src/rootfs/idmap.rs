// SPDX-License-Identifier: Apache-2.0
//! Mounts that show their files with other owners: idmapped mounts (contract N5).
//!
//! The kernel takes the mapping from a user namespace, and maps a mount that is not attached
//! anywhere yet. So a mount with `uidmap=` and `gidmap=` is made in a mount namespace of its own
//! and moved to where it belongs when it is done:
//!
//! ```text
//!  loop           user namespace, of a child that idles in it until we have an fd of it
//!  mount thread   own mount namespace: overlay: lay over each lower directory its mapped clone
//!    │                                 mount(2) as without a mapping
//!    │                                 others: map the mount itself
//!    └─ the mount as an fd; the thread ends, and with it the namespace and all else in it
//!  mount thread   move_mount(2) to the target
//! ```
//!
//! Nothing is named or left anywhere on the way, not even if this process is killed. An overlay
//! keeps the mapped clones of its lower directories for itself. Its upper directory is not
//! mapped: containerd gives it the owners that it is to have.

use super::options::Refusal;
use crate::reaper::Reaper;
use crate::sys;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use std::cmp::Reverse;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The prefixes of the two options.
const UIDMAP: &str = "uidmap=";
const GIDMAP: &str = "gidmap=";

/// The two options of a mount, as they were given.
#[derive(Default)]
pub(super) struct Options {
    uid: Option<String>,
    gid: Option<String>,
}

/// Which owners are shown as which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ids {
    /// As the kernel reads it (user_namespaces(7)): lines `first-on-disk first-shown count`.
    pub uid_map: String,
    pub gid_map: String,
    /// Of an overlay, which can't be mapped itself, its lower directories; else empty.
    pub lower: Vec<PathBuf>,
}

impl Options {
    /// True if `option` is one of the two.
    pub fn take(&mut self, option: &str) -> bool {
        if option.starts_with(UIDMAP) {
            self.uid = Some(option.to_owned());
        } else if option.starts_with(GIDMAP) {
            self.gid = Some(option.to_owned());
        } else {
            return false;
        }
        true
    }

    /// The mapping of a mount of type `kind` with these flags and the options in `data`.
    pub fn read(self, kind: &str, flags: MsFlags, data: &[&str]) -> Result<Option<Ids>, Refusal> {
        let (uid, gid) = match (self.uid, self.gid) {
            (None, None) => return Ok(None),
            (Some(uid), Some(gid)) => (uid, gid),
            (Some(alone), None) => return Err(refused(&alone, "needs a gidmap= beside it")),
            (None, Some(alone)) => return Err(refused(&alone, "needs a uidmap= beside it")),
        };
        if flags.contains(MsFlags::MS_REMOUNT) {
            return Err(refused(&uid, "a mount that is there can't be mapped"));
        }
        let map = |option: &str, prefix| {
            let why = "must be <on disk>:<shown>:<count>, and more after commas";
            lines(option.strip_prefix(prefix).unwrap_or_default()).ok_or(refused(option, why))
        };
        Ok(Some(Ids {
            uid_map: map(&uid, UIDMAP)?,
            gid_map: map(&gid, GIDMAP)?,
            lower: if kind == "overlay" {
                lower(data).ok_or(refused(&uid, "needs a plain lowerdir= beside it"))?
            } else {
                Vec::new()
            },
        }))
    }
}

fn refused(option: &str, why: &'static str) -> Refusal {
    let option = option.to_owned();
    Refusal::Ids { option, why }
}

/// `0:100000:65536,…` as the kernel wants it.
fn lines(text: &str) -> Option<String> {
    let line = |entry: &str| {
        let numbers: Option<Vec<u32>> = entry.split(':').map(|n| n.parse().ok()).collect();
        match numbers?[..] {
            [disk, shown, count] if count > 0 => Some(format!("{disk} {shown} {count}\n")),
            _ => None,
        }
    };
    text.split(',').map(line).collect()
}

/// The lower directories of an overlay, deepest first: one that is inside another is mapped
/// before it, else it would be mapped twice.
fn lower(data: &[&str]) -> Option<Vec<PathBuf>> {
    let list = data.iter().find_map(|o| o.strip_prefix("lowerdir="))?;
    let plain = |dir: &str| !dir.is_empty() && !dir.contains('\\');
    if !list.split(':').all(plain) {
        return None; // data-only layers and escaped names
    }
    let mut dirs: Vec<PathBuf> = list.split(':').map(PathBuf::from).collect();
    dirs.sort_by_cached_key(|dir| (Reverse(dir.as_os_str().len()), dir.clone()));
    dirs.dedup();
    Some(dirs)
}

/// A user namespace with these maps, lines as the kernel reads them (user_namespaces(7)).
///
/// It takes a process to make one and to write its maps; it is a claimed child of ours, killed
/// and reaped before this returns. The fd keeps the namespace.
///
/// # Errors
/// From clone(2), or if the kernel refuses a map.
pub async fn user_namespace(reaper: &Reaper, uid_map: &str, gid_map: &str) -> io::Result<OwnedFd> {
    let mut child = reaper.adopt(sys::idle_in_user_namespace()?);
    let of = Path::new("/proc").join(child.pid.to_string());
    // One write each: the kernel takes no second.
    let namespace = fs::write(of.join("uid_map"), uid_map)
        .and_then(|()| fs::write(of.join("gid_map"), gid_map))
        .and_then(|()| File::open(of.join("ns/user")));
    child.kill(Signal::SIGKILL);
    child.exit().await;
    namespace.map(OwnedFd::from)
}

/// Has no one else see what this thread mounts. It sees what others do: what they unmount must
/// not stay in use here.
pub fn hide_this_thread() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, "/", None::<&str>, slave, None::<&str>)
}

/// Lays over `dir` itself, mapped. For a hidden thread.
pub(super) fn cover(dir: &Path, user_namespace: impl AsFd) -> nix::Result<()> {
    let clone = sys::clone_mount(dir, false)?;
    let target = open(dir, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    sys::map_mount(clone.as_fd(), user_namespace.as_fd(), false)?;
    sys::attach_mount(clone.as_fd(), target.as_fd())
}

/// What is mounted at `target`, below it too, as an fd; mapped, unless it is an overlay whose
/// lower directories are.
pub(super) fn take(target: &Path, ids: &Ids, user_namespace: impl AsFd) -> nix::Result<OwnedFd> {
    let mount = sys::clone_mount(target, true)?;
    if ids.lower.is_empty() {
        sys::map_mount(mount.as_fd(), user_namespace.as_fd(), true)?;
    }
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(
        kind: &str,
        flags: MsFlags,
        maps: &[&str],
        data: &[&str],
    ) -> Result<Option<Ids>, Refusal> {
        let mut options = Options::default();
        assert!(maps.iter().all(|option| options.take(option)));
        assert!(!data.iter().any(|option| options.take(option)));
        options.read(kind, flags, data)
    }

    #[test]
    fn n5_maps_become_the_kernels_lines() {
        let maps = ["uidmap=0:100000:65536", "gidmap=0:1:1,7:4294967294:2"];
        let ids = read("bind", MsFlags::MS_BIND, &maps, &[]).unwrap().unwrap();
        assert_eq!(ids.uid_map, "0 100000 65536\n");
        assert_eq!(ids.gid_map, "0 1 1\n7 4294967294 2\n");
        assert_eq!(ids.lower, Vec::<PathBuf>::new());
        assert_eq!(read("bind", MsFlags::MS_BIND, &[], &["mode=1"]), Ok(None));
    }

    #[test]
    fn n5_maps_without_sense_are_refused_by_name() {
        for bad in [
            "",
            "0",
            "0:1",
            "0:1:0",
            "0:1:2:3",
            "0:-1:2",
            "a:1:2",
            "0:1:2,",
            "0:1:4294967296",
        ] {
            let (bad, good) = (format!("uidmap={bad}"), "gidmap=0:1:1");
            let refused = read("bind", MsFlags::MS_BIND, &[&bad, good], &[]).unwrap_err();
            let text = refused.to_string();
            assert!(text.contains(&format!("{bad:?}: must be")), "{text}");
        }
        for (maps, flags, word) in [
            (&["uidmap=0:1:1"] as &[&str], MsFlags::empty(), "gidmap="),
            (&["gidmap=0:1:1"], MsFlags::empty(), "uidmap="),
            (
                &["uidmap=0:1:1", "gidmap=0:1:1"],
                MsFlags::MS_REMOUNT,
                "there",
            ),
        ] {
            let text = read("bind", flags, maps, &[]).unwrap_err().to_string();
            assert!(text.contains(word), "{text}");
        }
    }

    #[test]
    fn n5_of_an_overlay_the_lower_directories_are_mapped_deepest_first() {
        let maps = ["uidmap=0:1:1", "gidmap=0:1:1"];
        let read = |data: &[&str]| read("overlay", MsFlags::empty(), &maps, data);
        let ids = read(&["upperdir=/u", "lowerdir=/s/1:/s/1/fs:/s/22:/s/1/fs"]).unwrap();
        let expected = ["/s/1/fs", "/s/22", "/s/1"].map(PathBuf::from);
        assert_eq!(ids.unwrap().lower, expected);
        for odd in [
            "upperdir=/u",
            "lowerdir=",
            "lowerdir=/a::/b",
            r"lowerdir=/a\:b",
        ] {
            assert!(read(&[odd]).is_err(), "{odd}");
        }
    }
}
