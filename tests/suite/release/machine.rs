// SPDX-License-Identifier: Apache-2.0
//! This machine with a layer above its files, for a thread and all it starts: what packages do to
//! it can be seen in that layer, and is gone with it.

use harness::peers;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is not of the layer: the kernel's, and what tests share with each other.
const SHARED: [&str; 5] = ["/proc", "/sys", "/dev", "/tmp", "/run"];

/// The files that were written since, each with its path on the machine.
pub struct Layer {
    upper: PathBuf,
}

/// Runs `body` where everything that is written is written to a layer, and the root directory is
/// another one than everybody else's.
pub fn with_layer(body: impl FnOnce(&Layer) + Send) {
    let dir = tempfile::tempdir_in("/tmp").expect("a directory in /tmp");
    let inside = || {
        let layer = enter(dir.path());
        body(&layer);
    };
    // Whoever panics in there says why by itself.
    let ended = std::thread::scope(|scope| scope.spawn(inside).join());
    drop(dir);
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

/// Moves this thread there.
fn enter(dir: &Path) -> Layer {
    let [upper, work, root] = ["upper", "work", "root"].map(|name| dir.join(name));
    for path in [&upper, &work, &root] {
        fs::create_dir(path).expect("a new directory");
    }
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    let none: Option<&str> = None;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, private, none).expect("private mounts");
    let data = format!(
        "lowerdir=/,upperdir={},workdir={}",
        upper.display(),
        work.display()
    );
    let overlay = Some("overlay");
    mount(overlay, &root, overlay, MsFlags::empty(), Some(&data[..])).expect("an overlay");
    let shared = SHARED.map(PathBuf::from).into_iter();
    // Where these are file systems of their own, the layer has none of it.
    let needed = [peers::workspace().to_owned(), peers::peers()].into_iter();
    let needed = needed.filter(|path| !root.join(path.strip_prefix("/").unwrap()).exists());
    for path in shared.chain(needed) {
        let place = root.join(path.strip_prefix("/").unwrap());
        fs::create_dir_all(&place).expect("a directory");
        let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(&path), &place, none, bind, none).expect("a bind mount");
    }
    // The old root lies on the new one, and is taken away.
    std::env::set_current_dir(&root).expect("the new root");
    nix::unistd::pivot_root(".", ".").expect("pivot_root");
    umount2(".", MntFlags::MNT_DETACH).expect("umount of the old root");
    Layer { upper }
}

impl Layer {
    /// The files in it whose path has one of `words`, but the logs, and the places of what was
    /// removed.
    pub fn named(&self, words: &[&str]) -> Vec<String> {
        let output = Command::new("find")
            .arg(&self.upper)
            .args(["!", "-type", "c"])
            .output();
        let output = output.expect("find");
        let paths = String::from_utf8_lossy(&output.stdout).into_owned();
        let below = |path: &str| Some(path.strip_prefix(self.upper.to_str()?)?.to_owned());
        paths
            .lines()
            .filter_map(below)
            .filter(|path| !path.starts_with("/var/log/"))
            .filter(|path| words.iter().any(|word| path.contains(word)))
            .collect()
    }
}
