// SPDX-License-Identifier: Apache-2.0
//! Container and namespace records: one small file each, replaced in one step.
//!
//! ```text
//! <root>/containers/<ns>/<id>.pb     a containerd.services.containers.v1.Container
//! <root>/containers/<ns>/<id>.task   a CreateTaskRequest: how its latest task was created, if
//!                                    that is more than a restart could know from the above
//! <root>/namespaces/<ns>.json        its labels
//! <root>/roots/<token>/              what a container of an image writes (`images`)
//! ```
//! Nothing is kept in memory: records are read when somebody asks, and changed one after the other,
//! both beside the loop.

mod records;

pub use records::{make_dir, write};

use crate::disk::Disk;
use crate::failure::{Failure, exists, io};
use protos::services::containers::v1::Container;
use protos::services::tasks::v1::CreateTaskRequest;
use protos::{Any, Message, any, runc};
use records::Records;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How many records are read at once, and how long that may take.
const READERS: usize = 8;
const PATIENCE: Duration = Duration::from_secs(10);

pub type Labels = HashMap<String, String>;

pub struct Store {
    records: Records,
    readers: Arc<Disk>,
    writer: Arc<Disk>,
}

/// Options without the checkpoint that a task was restored from: at the next restart it begins anew.
fn from_the_start(options: Any) -> Any {
    match any::unpack::<runc::Options>(&options) {
        Some(Ok(mut known)) if !known.criu_image_path.is_empty() => {
            known.criu_image_path.clear();
            any::pack(&known)
        }
        _ => options,
    }
}

impl Store {
    /// # Errors
    /// If its directories can't be made.
    pub fn open(root: &Path) -> std::io::Result<Self> {
        let records = Records {
            containers: root.join("containers"),
            namespaces: root.join("namespaces"),
            roots: crate::images::dir(root),
        };
        for dir in [&records.containers, &records.namespaces] {
            make_dir(dir)?;
        }
        Ok(Self {
            records,
            readers: Disk::new(root, READERS),
            writer: Disk::new(root, 1),
        })
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Records) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let records = self.records.clone();
        let read = self.readers.ask(move || work(&records));
        match tokio::time::timeout(PATIENCE, read).await {
            Ok(read) => read,
            Err(_) => Err(self.readers.stands_still()),
        }
    }

    /// What `work` finds is so until it is done. However long that takes: half done is worse.
    async fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Records) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let records = self.records.clone();
        self.writer.ask(move || work(&records)).await
    }

    /// # Errors
    /// `NotFound`; `Unavailable` if the disk stands still.
    pub async fn container(&self, namespace: &str, id: &str) -> Result<Container, Failure> {
        let (namespace, id) = (namespace.to_owned(), id.to_owned());
        self.read(move |records| records.container(&namespace, &id))
            .await
    }

    /// All containers of a namespace, by id.
    ///
    /// # Errors
    /// If the directory can't be read; an unreadable record is logged and left out.
    pub async fn containers(&self, namespace: &str) -> Result<Vec<Container>, Failure> {
        let namespace = namespace.to_owned();
        self.read(move |records| records.containers(&namespace))
            .await
    }

    /// # Errors
    /// `AlreadyExists`.
    pub async fn create_container(
        &self,
        namespace: &str,
        container: &Container,
    ) -> Result<(), Failure> {
        let (namespace, container) = (namespace.to_owned(), container.clone());
        self.change(move |records| records.create_container(&namespace, &container))
            .await
    }

    /// Has `update` make another record of the one that is there.
    ///
    /// # Errors
    /// `NotFound`, or whatever `update` refuses it with.
    pub async fn update_container(
        &self,
        namespace: &str,
        id: &str,
        update: impl FnOnce(Container) -> Result<Container, Failure> + Send + 'static,
    ) -> Result<Container, Failure> {
        let (namespace, id) = (namespace.to_owned(), id.to_owned());
        let change = move |records: &Records| {
            let updated = update(records.container(&namespace, &id)?)?;
            let path = records.container_path(&namespace, &id);
            write(&path, &updated.encode_to_vec())?;
            Ok(updated)
        };
        self.change(change).await
    }

    /// Deletes a record, and what is its container's alone.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete_container(&self, namespace: &str, id: &str) -> Result<(), Failure> {
        let (namespace, id) = (namespace.to_owned(), id.to_owned());
        let change = move |records: &Records| {
            let made = records.made(&namespace, &id);
            records.delete_container(&namespace, &id)?;
            Ok(records.hide_root(&namespace, made))
        };
        if let Some(hidden) = self.change(change).await? {
            let remove = move || std::fs::remove_dir_all(&hidden).map_err(io(hidden.display()));
            let removed = self.readers.run_deep(remove).await;
            if let Err(e) = removed.map_err(io("thread")).and_then(|removed| removed) {
                log::error!("{e}");
            }
        }
        Ok(())
    }

    /// Removes what containers wrote that have no record.
    ///
    /// # Errors
    /// If a record can't be read: what is there may be its container's.
    pub async fn sweep_roots(&self) -> Result<(), Failure> {
        let records = self.records.clone();
        let swept = self.readers.run_deep(move || records.sweep_roots()).await;
        swept.map_err(io("thread"))?
    }

    /// Keeps what a restart needs of how a task is created: its root recordsystem's mounts and
    /// its runtime, but not its stdio.
    ///
    /// # Errors
    /// From the file system.
    pub async fn remember_create(
        &self,
        namespace: &str,
        create: &CreateTaskRequest,
    ) -> Result<(), Failure> {
        let namespace = namespace.to_owned();
        let kept = CreateTaskRequest {
            container_id: create.container_id.clone(),
            rootfs: create.rootfs.clone(),
            options: create.options.clone().map(from_the_start),
            runtime_path: create.runtime_path.clone(),
            ..Default::default()
        };
        self.change(move |records| records.remember_create(&namespace, &kept))
            .await
    }

    /// What [`Store::remember_create`] kept.
    ///
    /// # Errors
    /// `Unavailable` if the disk stands still.
    pub async fn last_create(
        &self,
        namespace: &str,
        id: &str,
    ) -> Result<CreateTaskRequest, Failure> {
        let (namespace, id) = (namespace.to_owned(), id.to_owned());
        self.read(move |records| Ok(records.last_create(&namespace, &id)))
            .await
    }

    /// # Errors
    /// `NotFound`.
    pub async fn namespace(&self, name: &str) -> Result<Labels, Failure> {
        let name = name.to_owned();
        self.read(move |records| records.namespace(&name)).await
    }

    /// All namespaces, by name; what can't be read is left out.
    ///
    /// # Errors
    /// If the directory can't be read.
    pub async fn namespaces(&self) -> Result<Vec<(String, Labels)>, Failure> {
        self.read(Records::namespaces).await
    }

    /// # Errors
    /// `AlreadyExists`.
    pub async fn create_namespace(&self, name: &str, labels: &Labels) -> Result<(), Failure> {
        let (name, labels) = (name.to_owned(), labels.clone());
        let create = move |records: &Records| match records.namespace(&name) {
            Ok(_) => Err(exists(format!("namespace {name:?}"))),
            Err(_) => records.write_namespace(&name, &labels),
        };
        self.change(create).await
    }

    /// Has `update` make other labels of those that are there.
    ///
    /// # Errors
    /// `NotFound`, or whatever `update` refuses it with.
    pub async fn update_namespace(
        &self,
        name: &str,
        update: impl FnOnce(Labels) -> Result<Labels, Failure> + Send + 'static,
    ) -> Result<Labels, Failure> {
        let name = name.to_owned();
        let change = move |records: &Records| {
            let updated = update(records.namespace(&name)?)?;
            records.write_namespace(&name, &updated)?;
            Ok(updated)
        };
        self.change(change).await
    }

    /// # Errors
    /// `NotFound`, or `FailedPrecondition` if it has containers.
    pub async fn delete_namespace(&self, name: &str) -> Result<(), Failure> {
        let name = name.to_owned();
        self.change(move |records| records.delete_namespace(&name))
            .await
    }
}
