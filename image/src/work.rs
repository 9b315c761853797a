// SPDX-License-Identifier: Apache-2.0
//! A program's place for what it is about to make, and the end of those whose program is gone.
//!
//! What lies there is nobody's before it is renamed to its place. A place also says which layers its
//! program counts on, so that nobody removes them meanwhile.

use crate::digest::Digest;
use crate::failure::{Result, io};
use crate::store::{Exclusive, Store};
use nix::fcntl::{Flock, FlockArg};
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

pub struct Work {
    pub dir: PathBuf,
    _lock: Flock<File>,
}

impl Work {
    /// A place of our own. Those of programs that are gone go.
    ///
    /// # Errors
    /// From the file system.
    pub fn begin(store: &Store) -> Result<Self> {
        let owned = store.own()?;
        clean(store, &owned)?;
        let dir = store.tmp().join(std::process::id().to_string());
        let failed = || io(dir.display());
        let made = DirBuilder::new().mode(0o700).create(&dir);
        made.map_err(failed())?;
        let lock = File::create(dir.join("lock")).map_err(failed())?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock);
        Ok(Self {
            _lock: lock.map_err(|(_, e)| failed()(e.into()))?,
            dir,
        })
    }

    /// From now on these layers stay, if they are there.
    ///
    /// # Errors
    /// From the file system.
    pub fn count_on(&self, store: &Store, chains: &[Digest]) -> Result<()> {
        let _owned = store.own()?;
        let path = self.dir.join("chains");
        let texts = chains.iter().map(|chain| format!("{chain}\n"));
        let mut all = fs::read(&path).unwrap_or_default();
        all.extend(texts.collect::<String>().into_bytes());
        fs::write(&path, all).map_err(io(path.display()))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // What can't be removed goes with the next program.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Removes what programs left that are gone.
///
/// # Errors
/// From the file system.
pub fn clean(store: &Store, _owned: &Exclusive) -> Result<()> {
    for dir in places(store)? {
        if !is_alive(&dir) {
            fs::remove_dir_all(&dir).map_err(io(dir.display()))?;
        }
    }
    Ok(())
}

/// The chains that programs count on which are at work.
///
/// # Errors
/// From the file system.
pub fn counted_on(store: &Store, _owned: &Exclusive) -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for dir in places(store)?.iter().filter(|dir| is_alive(dir)) {
        let chains = fs::read(dir.join("chains")).unwrap_or_default();
        let chains = String::from_utf8_lossy(&chains).into_owned();
        all.extend(chains.lines().map(str::to_owned));
    }
    Ok(all)
}

fn places(store: &Store) -> Result<Vec<PathBuf>> {
    let dir = store.tmp();
    let entries = fs::read_dir(&dir).map_err(io(dir.display()))?;
    Ok(entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect())
}

/// Whether somebody holds its lock. Places are made, and looked at, by one program at a time.
fn is_alive(dir: &Path) -> bool {
    let Ok(file) = File::open(dir.join("lock")) else {
        return false;
    };
    Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err()
}
