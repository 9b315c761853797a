// SPDX-License-Identifier: Apache-2.0
//! The bundles: their directories, every name in them, and their end.
//!
//! ```text
//! <state>/task/<ns>/<id>/          0700, the working directory of the shim
//!   config.json rootfs/ work log   shims rely on these (contract B80)
//!   shim-binary-path               written before `start`, so that what was started can be found
//!   start.out                      what `start` prints; locked while it runs
//!   bootstrap.json | address       how to reach the shim
//!   exits/init.json                the shim's record of the exit
//!   deleting                       the shim has deleted the task: only the rest is to be done
//! <root>/work/<ns>/<id>/           where `work` points
//! ```
//! A bundle goes in one step: it is renamed to `.<id>`, which nobody reads, and then removed.
//!
//! Whatever is asked of a bundle's files is done beside the loop (`files`).

mod files;

pub use files::Files;

use crate::disk::Disk;
use crate::failure::Failure;
use crate::names::Key;
use crate::store::make_dir;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use task::reaper::Reaper;

/// How many bundles are worked on at once.
const THREADS: usize = 16;

#[derive(Clone)]
pub struct Bundles {
    tasks: PathBuf,
    work: PathBuf,
    disk: Arc<Disk>,
}

/// One container's directory.
#[derive(Clone)]
pub struct Bundle {
    pub key: Key,
    files: Files,
    disk: Arc<Disk>,
}

impl Bundles {
    /// # Errors
    /// If the directories can't be made.
    pub fn open(state: &Path, root: &Path) -> std::io::Result<Self> {
        let bundles = Self {
            tasks: dir(state),
            work: root.join("work"),
            disk: Disk::new(state, THREADS),
        };
        make_dir(&bundles.tasks)?;
        make_dir(&bundles.work)?;
        Ok(bundles)
    }

    pub fn get(&self, key: Key) -> Bundle {
        let Key { namespace, id } = &key;
        Bundle {
            files: Files {
                path: self.tasks.join(namespace).join(id),
                work: self.work.join(namespace).join(id),
            },
            key,
            disk: Arc::clone(&self.disk),
        }
    }

    /// Makes a bundle around `spec`.
    ///
    /// # Errors
    /// `AlreadyExists` if there is one; nothing is left of a bundle that could not be made.
    pub async fn create(&self, key: Key, spec: Vec<u8>) -> Result<Bundle, Failure> {
        let bundle = self.get(key);
        let files = bundle.files.clone();
        let _waits = self.disk.admit()?;
        let created = self.disk.run_deep(move || files.create(&spec)).await;
        created.map_err(crate::failure::io("create bundle"))??;
        Ok(bundle)
    }

    /// Every bundle there is. Half-removed ones are removed on the way.
    ///
    /// # Errors
    /// If they can't be looked for.
    pub async fn list(&self) -> io::Result<Vec<Bundle>> {
        let bundles = self.clone();
        let list = move || {
            let mut found = Vec::new();
            for bundle in keys(&bundles.tasks).map(|key| bundles.get(key)) {
                if bundle.id().starts_with('.') {
                    let _ = fs::remove_dir_all(bundle.path());
                } else {
                    found.push(bundle);
                }
            }
            found
        };
        self.disk.run_deep(list).await
    }

    /// Removes work directories whose bundle is gone.
    ///
    /// # Errors
    /// If they can't be looked for.
    pub async fn sweep_work(&self) -> io::Result<()> {
        let bundles = self.clone();
        let sweep = move || {
            for files in keys(&bundles.work).map(|key| bundles.get(key).files) {
                if !files.path.exists() {
                    let _ = fs::remove_dir_all(files.work);
                }
            }
        };
        self.disk.run_deep(sweep).await
    }
}

impl Bundle {
    /// Does `work` with its files, beside the loop.
    pub async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Files) -> T + Send + 'static,
    ) -> T {
        let files = self.files.clone();
        self.disk.run(move || work(&files)).await
    }

    pub fn id(&self) -> &str {
        &self.key.id
    }

    pub fn path(&self) -> &Path {
        &self.files.path
    }

    /// Unmounts what is mounted in it and removes it.
    ///
    /// # Errors
    /// If something stays mounted; then the bundle stays, lest a mounted tree be removed.
    pub async fn delete(&self, reaper: &Reaper) -> Result<(), Failure> {
        task::rootfs::unmount_recursive(reaper, self.files.rootfs())
            .await
            .map_err(crate::failure::unknown)?;
        let (files, id) = (self.files.clone(), self.key.id.clone());
        let removed = self.disk.run_deep(move || files.remove(&id)).await;
        removed.map_err(crate::failure::io(self.files.path.display()))?
    }
}

/// Where the bundles are.
pub fn dir(state: &Path) -> PathBuf {
    state.join("task")
}

/// The containers that have a directory below `dir`.
pub fn keys(dir: &Path) -> impl Iterator<Item = Key> {
    names(dir).into_iter().flat_map(move |namespace| {
        let ids = names(&dir.join(&namespace)).into_iter();
        ids.map(move |id| Key::new(&namespace, &id))
    })
}

/// What is in `dir`, by name.
pub fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// Whose threads have small stacks.
    #[tokio::test]
    async fn a_deep_tree_goes_as_any_other() {
        let dir = tempfile::tempdir().unwrap();
        let (state, root) = (dir.path().join("s"), dir.path().join("r"));
        let bundles = Bundles::open(&state, &root).unwrap();
        let bundle = bundles
            .create(Key::new("n", "c"), b"{}".into())
            .await
            .unwrap();
        let deep = bundle.files.rootfs().join("d/".repeat(1900));
        fs::create_dir_all(deep).unwrap();
        let reaper = Reaper::new().unwrap();
        bundle.delete(&reaper).await.unwrap();
        assert!(bundles.list().await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_bundle_has_what_shims_look_for_and_goes_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (state, root) = (dir.path().join("s"), dir.path().join("r"));
        let bundles = Bundles::open(&state, &root).unwrap();
        let bundle = bundles
            .create(Key::new("n", "c"), b"{}".into())
            .await
            .unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(bundle.path()), 0o700);
        assert_eq!(mode(&bundle.files.rootfs()), 0o711);
        assert_eq!(fs::read(bundle.path().join("config.json")).unwrap(), b"{}");
        assert_eq!(
            fs::read_link(bundle.path().join("work")).unwrap(),
            root.join("work/n/c")
        );
        let twice = bundles
            .create(Key::new("n", "c"), b"{}".into())
            .await
            .err()
            .unwrap();
        assert_eq!(twice.code, protos::Code::AlreadyExists);
        assert_eq!(bundles.list().await.unwrap().len(), 1);
        let reaper = Reaper::new().unwrap();
        bundle.delete(&reaper).await.unwrap();
        bundle.delete(&reaper).await.unwrap();
        assert!(bundles.list().await.unwrap().is_empty());
        assert!(!root.join("work/n/c").exists());
    }
}
