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

use crate::failure::{Failure, io};
use crate::launch::Address;
use crate::store::{make_dir, write};
use prost::Message;
use protos::task::DeleteResponse;
use serde::Deserialize;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use task::ProcessId;
use task::bundle::ExitRecord;
use task::foreign::{SMALL, read_whole};
use task::reaper::Reaper;

pub struct Bundles {
    tasks: PathBuf,
    work: PathBuf,
}

/// One container's directory.
#[derive(Clone, Debug)]
pub struct Bundle {
    pub namespace: String,
    pub id: String,
    path: PathBuf,
    work: PathBuf,
}

/// The part of a spec that decides who owns the bundle.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Spec {
    linux: Option<Linux>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Linux {
    gid_mappings: Option<Vec<Mapping>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Mapping {
    #[serde(rename = "containerID")]
    container: u32,
    #[serde(rename = "hostID")]
    host: u32,
}

impl Bundles {
    /// # Errors
    /// If the directories can't be made.
    pub fn open(state: &Path, root: &Path) -> std::io::Result<Self> {
        let bundles = Self {
            tasks: state.join("task"),
            work: root.join("work"),
        };
        make_dir(&bundles.tasks)?;
        make_dir(&bundles.work)?;
        Ok(bundles)
    }

    pub fn get(&self, namespace: &str, id: &str) -> Bundle {
        Bundle {
            namespace: namespace.to_owned(),
            id: id.to_owned(),
            path: self.tasks.join(namespace).join(id),
            work: self.work.join(namespace).join(id),
        }
    }

    /// Makes a bundle around `spec`.
    ///
    /// # Errors
    /// `AlreadyExists` if there is one; nothing is left of a bundle that could not be made.
    pub fn create(&self, namespace: &str, id: &str, spec: &[u8]) -> Result<Bundle, Failure> {
        let bundle = self.get(namespace, id);
        make_dir(&self.tasks.join(namespace)).map_err(io("create bundle"))?;
        make_dir(&self.work.join(namespace)).map_err(io("create bundle"))?;
        let mut private = fs::DirBuilder::new();
        private
            .mode(0o700)
            .create(&bundle.path)
            .map_err(|e| match e.kind() {
                std::io::ErrorKind::AlreadyExists => {
                    crate::failure::exists(format!("bundle of {id:?}"))
                }
                _ => io("create bundle")(e),
            })?;
        let filled = bundle.fill(spec);
        if filled.is_err() {
            let _ = fs::remove_dir_all(&bundle.path);
            let _ = fs::remove_dir_all(&bundle.work);
        }
        filled.map(|()| bundle)
    }

    /// Every bundle there is. Half-removed ones are removed on the way.
    pub fn list(&self) -> Vec<Bundle> {
        let mut found = Vec::new();
        for namespace in names(&self.tasks) {
            for id in names(&self.tasks.join(&namespace)) {
                if id.starts_with('.') {
                    let _ = fs::remove_dir_all(self.tasks.join(&namespace).join(&id));
                } else {
                    found.push(self.get(&namespace, &id));
                }
            }
        }
        found
    }

    /// Removes work directories whose bundle is gone.
    pub fn sweep_work(&self) {
        for namespace in names(&self.work) {
            for id in names(&self.work.join(&namespace)) {
                let bundle = self.get(&namespace, &id);
                if !bundle.path.exists() {
                    let _ = fs::remove_dir_all(bundle.work);
                }
            }
        }
    }
}

impl Bundle {
    fn fill(&self, spec: &[u8]) -> Result<(), Failure> {
        let failed = |what: &'static str| io(format!("bundle {}: {what}", self.path.display()));
        let spec_json: Spec = task::json::read_first(spec).unwrap_or_default();
        let mappings = spec_json.linux.unwrap_or_default().gid_mappings;
        let root = mappings
            .unwrap_or_default()
            .into_iter()
            .find(|m| m.container == 0);
        if let Some(root) = root {
            std::os::unix::fs::chown(&self.path, None, Some(root.host)).map_err(failed("chown"))?;
            fs::set_permissions(&self.path, fs::Permissions::from_mode(0o710))
                .map_err(failed("chmod"))?;
        }
        let mut dir = fs::DirBuilder::new();
        dir.mode(0o711)
            .create(self.rootfs())
            .map_err(failed("rootfs"))?;
        match dir.create(&self.work) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                fs::remove_dir_all(&self.work).map_err(failed("work"))?;
                dir.create(&self.work).map_err(failed("work"))?;
            }
            other => other.map_err(failed("work"))?,
        }
        symlink(&self.work, self.path.join("work")).map_err(failed("work"))?;
        fs::write(self.path.join("config.json"), spec).map_err(failed("config.json"))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn rootfs(&self) -> PathBuf {
        self.path.join("rootfs")
    }

    /// The FIFO that the shim logs to.
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    pub fn start_out(&self) -> PathBuf {
        self.path.join("start.out")
    }

    /// # Errors
    /// From the file system.
    pub fn write_shim_path(&self, shim: &Path) -> Result<(), Failure> {
        let path = self.path.join("shim-binary-path");
        write(&path, shim.as_os_str().as_encoded_bytes())
    }

    /// The shim that was started here, if one was.
    pub fn shim_path(&self) -> Option<PathBuf> {
        let path = fs::read(self.path.join("shim-binary-path")).ok()?;
        let path = OsStr::from_bytes(path.trim_ascii());
        Some(PathBuf::from(path)).filter(|path| path.is_absolute())
    }

    /// # Errors
    /// From the file system.
    pub fn write_address(&self, address: &Address) -> Result<(), Failure> {
        let json = serde_json::to_vec(address).map_err(crate::failure::unknown)?;
        write(&self.path.join("bootstrap.json"), &json)
    }

    /// How the shim is reached, by whichever record of it is there.
    pub fn address(&self) -> Option<Address> {
        if let Ok(json) = read_whole(&self.path.join("bootstrap.json"), SMALL)
            && let Ok(address) = task::json::read(&json)
        {
            return Some(address);
        }
        let printed = read_whole(&self.start_out(), SMALL).unwrap_or_default();
        if let Ok(address) = Address::parse(&printed) {
            return Some(address);
        }
        Address::parse(&read_whole(&self.path.join("address"), SMALL).ok()?).ok()
    }

    /// Notes that the shim has deleted the task, and with what status.
    ///
    /// # Errors
    /// From the file system.
    pub fn mark_deleting(&self, response: &DeleteResponse) -> Result<(), Failure> {
        write(&self.path.join("deleting"), &response.encode_to_vec())
    }

    pub fn deleting(&self) -> Option<DeleteResponse> {
        DeleteResponse::decode(fs::read(self.path.join("deleting")).ok()?.as_slice()).ok()
    }

    /// The shim's own record of how a process ended, init's for an empty name.
    pub fn exit_record(&self, exec: &str) -> Option<ExitRecord> {
        match self.of_shim().read_exit(&ProcessId::in_request(exec)) {
            Ok(record) => record,
            Err(e) => {
                log::warn!("{}/{}: {e}", self.namespace, self.id);
                None
            }
        }
    }

    pub fn init_pid(&self) -> Option<u32> {
        task::bundle::read_pid(&self.of_shim().pid(&ProcessId::Init)).ok()
    }

    /// The bundle as its shim knows it.
    fn of_shim(&self) -> task::bundle::Bundle {
        task::bundle::Bundle::new(&self.path)
    }

    /// Unmounts what is mounted in it and removes it.
    ///
    /// # Errors
    /// If something stays mounted; then the bundle stays, lest a mounted tree be removed.
    pub async fn delete(&self, reaper: &Reaper) -> Result<(), Failure> {
        if self.path.exists() {
            task::rootfs::unmount_recursive(reaper, self.rootfs())
                .await
                .map_err(crate::failure::unknown)?;
            let hidden = self.path.with_file_name(format!(".{}", self.id));
            if hidden.exists() {
                let _ = fs::remove_dir_all(&hidden);
            }
            fs::rename(&self.path, &hidden).map_err(io(self.path.display()))?;
            fs::remove_dir_all(&hidden).map_err(io(hidden.display()))?;
        }
        match fs::remove_dir_all(&self.work) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io(self.work.display())(e)),
            _ => Ok(()),
        }
    }
}

fn names(dir: &Path) -> Vec<String> {
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

    #[tokio::test]
    async fn a_bundle_has_what_shims_look_for_and_goes_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (state, root) = (dir.path().join("s"), dir.path().join("r"));
        let bundles = Bundles::open(&state, &root).unwrap();
        let bundle = bundles.create("n", "c", b"{}").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(bundle.path()), 0o700);
        assert_eq!(mode(&bundle.rootfs()), 0o711);
        assert_eq!(fs::read(bundle.path().join("config.json")).unwrap(), b"{}");
        assert_eq!(
            fs::read_link(bundle.path().join("work")).unwrap(),
            root.join("work/n/c")
        );
        let twice = bundles.create("n", "c", b"{}").unwrap_err();
        assert_eq!(twice.code, protos::Code::AlreadyExists);
        assert_eq!(bundles.list().len(), 1);
        let reaper = Reaper::new().unwrap();
        bundle.delete(&reaper).await.unwrap();
        bundle.delete(&reaper).await.unwrap();
        assert!(bundles.list().is_empty());
        assert!(!root.join("work/n/c").exists());
    }
}
