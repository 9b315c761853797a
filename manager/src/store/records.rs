// SPDX-License-Identifier: Apache-2.0
//! The files of the records, for a thread that may wait for them.

use super::Labels;
use crate::failure::{Failure, exists, io, not_found, precondition, unknown};
use crate::images::Made;
use protos::Message;
use protos::services::containers::v1::Container;
use protos::services::tasks::v1::CreateTaskRequest;
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

#[derive(Clone)]
pub struct Records {
    pub containers: PathBuf,
    pub namespaces: PathBuf,
    pub roots: PathBuf,
}

impl Records {
    pub fn container(&self, namespace: &str, id: &str) -> Result<Container, Failure> {
        let path = self.container_path(namespace, id);
        match fs::read(&path) {
            Ok(bytes) => {
                let damaged =
                    |e: &dyn std::fmt::Display| unknown(format!("{}: {e}", path.display()));
                let container = Container::decode(bytes.as_slice()).map_err(|e| damaged(&e))?;
                // As after a power loss: an empty file decodes too.
                match container.id == id {
                    true => Ok(container),
                    false => Err(damaged(&"is damaged")),
                }
            }
            Err(e) if e.kind() == ErrorKind::NotFound => Err(missing(namespace, id)),
            Err(e) => Err(io(path.display())(e)),
        }
    }

    pub fn containers(&self, namespace: &str) -> Result<Vec<Container>, Failure> {
        let mut ids = names(&self.containers.join(namespace), ".pb")?;
        ids.sort_unstable();
        let read = |id: &String| match self.container(namespace, id) {
            Ok(container) => Some(container),
            Err(e) => {
                log::error!("container {namespace}/{id}: {e}");
                None
            }
        };
        Ok(ids.iter().filter_map(read).collect())
    }

    pub fn create_container(&self, namespace: &str, container: &Container) -> Result<(), Failure> {
        let path = self.container_path(namespace, &container.id);
        if path.exists() {
            return Err(exists(format!("container {:?}", container.id)));
        }
        if !self.namespace_path(namespace).exists() {
            self.write_namespace(namespace, &Labels::default())?;
        }
        make_dir(&self.containers.join(namespace)).map_err(io("create container"))?;
        write(&path, &container.encode_to_vec())
    }

    pub fn delete_container(&self, namespace: &str, id: &str) -> Result<(), Failure> {
        let path = self.container_path(namespace, id);
        let _ = fs::remove_file(self.create_path(namespace, id));
        match fs::remove_file(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => Err(missing(namespace, id)),
            other => other.map_err(io(path.display())),
        }
    }

    /// What a container is made of, as far as its record says so.
    pub fn made(&self, namespace: &str, id: &str) -> Option<Made> {
        let container = self.container(namespace, id).ok()?;
        Made::of(&container).ok().flatten()
    }

    /// Takes its directory from a container that has no record any more, unless another has it, as
    /// one that was renamed. Where it is now, to be removed.
    pub fn hide_root(&self, namespace: &str, made: Option<Made>) -> Option<PathBuf> {
        let token = made?.token;
        let ids = names(&self.containers.join(namespace), ".pb").ok()?;
        let others = ids.iter().filter_map(|id| self.made(namespace, id));
        if others.into_iter().any(|other| other.token == token) {
            return None;
        }
        let hidden = self.roots.join(format!(".{token}"));
        let renamed = fs::rename(self.roots.join(&token), &hidden);
        renamed.ok().map(|()| hidden)
    }

    /// Removes what containers wrote that have no record.
    pub fn sweep_roots(&self) -> Result<(), Failure> {
        let tokens = names(&self.roots, "")?;
        if tokens.is_empty() {
            return Ok(());
        }
        let mut used = BTreeSet::new();
        for namespace in names(&self.containers, "")? {
            for id in names(&self.containers.join(&namespace), ".pb")? {
                let made = Made::of(&self.container(&namespace, &id)?)?;
                used.extend(made.map(|made| made.token));
            }
        }
        for token in tokens.iter().filter(|&token| !used.contains(token)) {
            let path = self.roots.join(token);
            fs::remove_dir_all(&path).map_err(io(path.display()))?;
        }
        Ok(())
    }

    pub fn remember_create(
        &self,
        namespace: &str,
        kept: &CreateTaskRequest,
    ) -> Result<(), Failure> {
        let path = self.create_path(namespace, &kept.container_id);
        let nothing = CreateTaskRequest {
            container_id: kept.container_id.clone(),
            ..Default::default()
        };
        if *kept != nothing {
            return write(&path, &kept.encode_to_vec());
        }
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(io(path.display())(e)),
            _ => Ok(()),
        }
    }

    pub fn last_create(&self, namespace: &str, id: &str) -> CreateTaskRequest {
        let bytes = fs::read(self.create_path(namespace, id)).unwrap_or_default();
        CreateTaskRequest {
            container_id: id.to_owned(),
            ..CreateTaskRequest::decode(bytes.as_slice()).unwrap_or_default()
        }
    }

    pub fn namespace(&self, name: &str) -> Result<Labels, Failure> {
        let path = self.namespace_path(name);
        match fs::read(&path) {
            Ok(json) => serde_json::from_slice(&json)
                .map_err(|e| unknown(format!("{}: {e}", path.display()))),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                Err(not_found(format!("namespace {name:?}")))
            }
            Err(e) => Err(io(path.display())(e)),
        }
    }

    pub fn namespaces(&self) -> Result<Vec<(String, Labels)>, Failure> {
        let mut names = names(&self.namespaces, ".json")?;
        names.sort_unstable();
        let read = |name: String| Some((name.clone(), self.namespace(&name).ok()?));
        Ok(names.into_iter().filter_map(read).collect())
    }

    pub fn write_namespace(&self, name: &str, labels: &Labels) -> Result<(), Failure> {
        let json = serde_json::to_vec(labels).map_err(unknown)?;
        write(&self.namespace_path(name), &json)
    }

    pub fn delete_namespace(&self, name: &str) -> Result<(), Failure> {
        self.namespace(name)?;
        if !self.containers(name)?.is_empty() {
            return Err(precondition(format!(
                "namespace {name:?} must be empty, but it still has containers"
            )));
        }
        let _ = fs::remove_dir(self.containers.join(name));
        fs::remove_file(self.namespace_path(name)).map_err(io(format!("namespace {name}")))
    }

    pub fn container_path(&self, namespace: &str, id: &str) -> PathBuf {
        self.containers.join(namespace).join(format!("{id}.pb"))
    }

    /// No name of a container's record ends so, for they end in `.pb`.
    fn create_path(&self, namespace: &str, id: &str) -> PathBuf {
        self.containers.join(namespace).join(format!("{id}.task"))
    }

    fn namespace_path(&self, name: &str) -> PathBuf {
        self.namespaces.join(format!("{name}.json"))
    }
}

fn missing(namespace: &str, id: &str) -> Failure {
    not_found(format!("container {id:?} in namespace {namespace:?}"))
}

/// Makes a directory that only we may enter.
///
/// # Errors
/// From mkdir(2).
pub fn make_dir(path: &Path) -> std::io::Result<()> {
    const MODE: u32 = 0o711;
    if path.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(MODE)
        .create(path)?;
    // Whatever the umask: clients of another user must be able to go through.
    fs::set_permissions(path, fs::Permissions::from_mode(MODE))
}

/// Replaces a file in one step.
///
/// # Errors
/// From the file system; the old content is then there.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let mut name = path.as_os_str().to_owned();
    // No id ends with a mark, so no record has this name.
    name.push("~");
    let new = PathBuf::from(name);
    task::bundle::write_private(&new, bytes)
        .and_then(|()| fs::rename(&new, path))
        .map_err(io(path.display()))
}

fn names(dir: &Path, suffix: &str) -> Result<Vec<String>, Failure> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(io(dir.display()))?,
    };
    let names = entries.filter_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        Some(name.strip_suffix(suffix)?.to_owned())
    });
    Ok(names.collect())
}
