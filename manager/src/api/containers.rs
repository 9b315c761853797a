// SPDX-License-Identifier: Apache-2.0
//! The Containers service: records of containers.

use super::{Stream, service};
use crate::exchange::field_of_labels;
use crate::failure::{Failure, exhausted, invalid};
use crate::filter::{Fields, Filters};
use crate::health;
use crate::ledger::Origin;
use crate::manager::Manager;
use crate::names::{Key, check_id, check_label};
use crate::restart;
use protos::events::{ContainerCreate, ContainerUpdate, container_create};
use protos::services::containers::v1::*;
use protos::{FieldMask, Message, any};
use std::rc::Rc;

/// The longest record of a container, in bytes: with it an event of its labels is one that the
/// journal takes.
const MAX_CONTAINER: usize = 2 << 20;

service! {
    crate::services::containerd::services::containers::v1::containers_server::Containers,
    namespaced: true;
    [type ListStreamStream = Stream<ListContainerMessage>]
    get(GetContainerRequest) -> GetContainerResponse;
    list(ListContainersRequest) -> ListContainersResponse;
    list_stream(ListContainersRequest) -> Stream<ListContainerMessage>;
    create(CreateContainerRequest) -> CreateContainerResponse;
    update(UpdateContainerRequest) -> UpdateContainerResponse;
    delete(DeleteContainerRequest) -> ();
}

impl Fields for Container {
    /// As core/metadata/adaptors.go has it.
    fn field(&self, path: &[&str]) -> Option<String> {
        let text = |text: &str| Some(text.to_owned()).filter(|t| !t.is_empty());
        match path {
            ["id"] => text(&self.id),
            ["image"] => text(&self.image),
            ["snapshotter"] => text(&self.snapshotter),
            ["snapshot_key" | "snapshotkey"] => text(&self.snapshot_key),
            ["runtime", "name"] => text(&self.runtime.as_ref()?.name),
            ["labels", rest @ ..] => field_of_labels(&self.labels, rest),
            _ => None,
        }
    }
}

async fn get(
    manager: Rc<Manager>,
    namespace: String,
    request: GetContainerRequest,
) -> Result<GetContainerResponse, Failure> {
    check_id(&request.id)?;
    let mut container = manager.store.container(&namespace, &request.id).await?;
    manager.health.tell(&namespace, &mut container);
    Ok(GetContainerResponse {
        container: Some(container),
    })
}

async fn filtered(
    manager: &Manager,
    namespace: &str,
    request: &ListContainersRequest,
) -> Result<Vec<Container>, Failure> {
    let filters = Filters::parse(&request.filters)?;
    let mut containers = manager.store.containers(namespace).await?;
    containers.retain(|container| filters.matches(container));
    Ok(containers)
}

async fn list(
    manager: Rc<Manager>,
    namespace: String,
    request: ListContainersRequest,
) -> Result<ListContainersResponse, Failure> {
    let containers = filtered(&manager, &namespace, &request).await?;
    Ok(ListContainersResponse { containers })
}

async fn list_stream(
    manager: Rc<Manager>,
    namespace: String,
    request: ListContainersRequest,
) -> Result<Stream<ListContainerMessage>, Failure> {
    let containers = filtered(&manager, &namespace, &request).await?;
    let messages = containers.into_iter().map(|container| {
        Ok(ListContainerMessage {
            container: Some(container),
        })
    });
    Ok(Stream::new(tokio_stream::iter(messages)))
}

/// core/metadata/containers.go `validateContainer`.
fn check(container: &Container) -> Result<(), Failure> {
    check_id(&container.id)?;
    for key in container.extensions.keys() {
        if key.is_empty() {
            return Err(invalid("extension keys must not be zero-length"));
        }
    }
    for (key, value) in &container.labels {
        check_label(key, value)?;
    }
    let runtime = container
        .runtime
        .as_ref()
        .map_or("", |runtime| &runtime.name);
    if runtime.is_empty() {
        return Err(invalid("container.Runtime.Name must be set"));
    }
    let length = container.encoded_len();
    if length > MAX_CONTAINER {
        return Err(exhausted(format!(
            "container record of {length} bytes: {MAX_CONTAINER} is the most"
        )));
    }
    if container.spec.is_none() {
        return Err(invalid("container.Spec must be set"));
    }
    if !container.snapshot_key.is_empty() && container.snapshotter.is_empty() {
        return Err(invalid(
            "container.Snapshotter must be set if container.SnapshotKey is set",
        ));
    }
    Ok(())
}

async fn create(
    manager: Rc<Manager>,
    namespace: String,
    request: CreateContainerRequest,
) -> Result<CreateContainerResponse, Failure> {
    let mut container = request
        .container
        .ok_or_else(|| invalid("container must be set"))?;
    check(&container)?;
    container.extensions.remove(health::EXTENSION);
    let now = task::event::now();
    container.created_at = Some(now);
    container.updated_at = Some(now);
    let created = manager.store.create_container(&namespace, &container);
    created.await?;
    let runtime = container.runtime.clone().unwrap_or_default();
    let event = ContainerCreate {
        id: container.id.clone(),
        image: container.image.clone(),
        runtime: Some(container_create::Runtime {
            name: runtime.name,
            options: runtime.options,
        }),
    };
    let event = any::pack(&event);
    manager
        .intake
        .publish(&namespace, "/containers/create", event, Origin::State)
        .await;
    Ok(CreateContainerResponse {
        container: Some(container),
    })
}

async fn update(
    manager: Rc<Manager>,
    namespace: String,
    request: UpdateContainerRequest,
) -> Result<UpdateContainerResponse, Failure> {
    let new = request.container.unwrap_or_default();
    if new.id.is_empty() {
        return Err(invalid("must specify a container id"));
    }
    check_id(&new.id)?;
    let id = new.id.clone();
    let update = move |old| {
        let mut updated = merge(old, new, request.update_mask.as_ref())?;
        check(&updated)?;
        // It is ours to tell.
        updated.extensions.remove(health::EXTENSION);
        updated.updated_at = Some(task::event::now());
        Ok(updated)
    };
    let updated = manager.store.update_container(&namespace, &id, update);
    let updated = updated.await?;
    let event = any::pack(&ContainerUpdate {
        id: updated.id.clone(),
        image: updated.image.clone(),
        labels: updated.labels.clone(),
        snapshot_key: updated.snapshot_key.clone(),
    });
    manager
        .intake
        .publish(&namespace, "/containers/update", event, Origin::State)
        .await;
    if restart::is_stopped(&updated.labels) {
        // Who has stopped it meets no task of a restart that was begun before.
        manager.restarts.over(&Key::new(&namespace, &id)).await;
    }
    Ok(UpdateContainerResponse {
        container: Some(updated),
    })
}

/// Replaces what the mask names, or all that may change (core/metadata/containers.go `Update`).
fn merge(
    mut old: Container,
    new: Container,
    mask: Option<&FieldMask>,
) -> Result<Container, Failure> {
    let all = ["labels", "spec", "extensions", "image", "snapshotkey"].map(String::from);
    let paths = mask.map_or(&[][..], |mask| &mask.paths);
    if paths.is_empty() {
        if old.snapshotter != new.snapshotter {
            return Err(invalid("container.Snapshotter field is immutable"));
        }
        let name = |container: &Container| container.runtime.as_ref().map(|r| r.name.clone());
        if name(&old) != name(&new) {
            return Err(invalid("container.Runtime.Name field is immutable"));
        }
    }
    for path in if paths.is_empty() { &all[..] } else { paths } {
        if let Some(key) = path.strip_prefix("labels.") {
            match new.labels.get(key) {
                // `ctr containers label ID KEY=` takes the label away.
                Some(value) if !value.is_empty() => {
                    old.labels.insert(key.to_owned(), value.clone());
                }
                _ => drop(old.labels.remove(key)),
            }
            continue;
        }
        if let Some(key) = path.strip_prefix("extensions.") {
            match new.extensions.get(key) {
                Some(value) => drop(old.extensions.insert(key.to_owned(), value.clone())),
                None => drop(old.extensions.remove(key)),
            }
            continue;
        }
        match path.as_str() {
            "labels" => old.labels.clone_from(&new.labels),
            "spec" => old.spec.clone_from(&new.spec),
            "extensions" => old.extensions.clone_from(&new.extensions),
            "image" => old.image.clone_from(&new.image),
            "snapshotkey" | "snapshot_key" => old.snapshot_key.clone_from(&new.snapshot_key),
            _ => {
                return Err(invalid(format!(
                    "cannot update {path:?} field on {:?}",
                    old.id
                )));
            }
        }
    }
    Ok(old)
}

async fn delete(
    manager: Rc<Manager>,
    namespace: String,
    request: DeleteContainerRequest,
) -> Result<(), Failure> {
    check_id(&request.id)?;
    crate::removal::forget(&manager, &namespace, &request.id).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(labels: &[(&str, &str)]) -> Container {
        Container {
            id: "c".into(),
            labels: labels.iter().map(|&(k, v)| (k.into(), v.into())).collect(),
            ..Default::default()
        }
    }

    fn mask(path: &str) -> FieldMask {
        FieldMask {
            paths: vec![path.into()],
        }
    }

    #[test]
    fn a_mask_changes_one_label_and_no_mask_all() {
        let old = || container(&[("a", "1"), ("b", "2")]);
        let new = container(&[("a", "9")]);
        let labels = |c: Container| {
            let mut labels: Vec<_> = c.labels.into_iter().collect();
            labels.sort();
            labels
        };
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        let one = merge(old(), new.clone(), Some(&mask("labels.a"))).unwrap();
        assert_eq!(labels(one), [pair("a", "9"), pair("b", "2")]);
        let gone = merge(old(), container(&[("a", "")]), Some(&mask("labels.a"))).unwrap();
        assert_eq!(labels(gone), [pair("b", "2")]);
        assert_eq!(
            labels(merge(old(), new.clone(), None).unwrap()),
            [pair("a", "9")]
        );
        assert!(merge(old(), new, Some(&mask("runtime"))).is_err());
    }
}
