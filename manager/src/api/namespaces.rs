// SPDX-License-Identifier: Apache-2.0
//! The Namespaces service: names, and their labels.

use super::service;
use crate::exchange::field_of_labels;
use crate::failure::{Failure, exhausted, invalid};
use crate::filter::{Fields, Filters};
use crate::ledger::Origin;
use crate::manager::Manager;
use crate::names::{check_id, check_label};
use crate::store::Labels;
use protos::events::{NamespaceCreate, NamespaceDelete, NamespaceUpdate};
use protos::services::namespaces::v1::*;
use protos::{Code, Message, any};
use std::rc::Rc;

/// The longest record of a namespace, in bytes.
const MAX_NAMESPACE: usize = 1 << 20;

service! {
    crate::services::containerd::services::namespaces::v1::namespaces_server::Namespaces,
    namespaced: false;
    get(GetNamespaceRequest) -> GetNamespaceResponse;
    list(ListNamespacesRequest) -> ListNamespacesResponse;
    create(CreateNamespaceRequest) -> CreateNamespaceResponse;
    update(UpdateNamespaceRequest) -> UpdateNamespaceResponse;
    delete(DeleteNamespaceRequest) -> ();
}

impl Fields for Namespace {
    fn field(&self, path: &[&str]) -> Option<String> {
        match path {
            ["name"] => Some(self.name.clone()),
            ["labels", rest @ ..] => field_of_labels(&self.labels, rest),
            _ => None,
        }
    }
}

async fn get(
    manager: Rc<Manager>,
    _: String,
    request: GetNamespaceRequest,
) -> Result<GetNamespaceResponse, Failure> {
    check_id(&request.name)?;
    // As containerd's: a namespace is there as soon as somebody names it.
    let labels = match manager.store.namespace(&request.name).await {
        Err(e) if e.code != Code::Unavailable => Default::default(),
        found => found?,
    };
    let namespace = Namespace {
        name: request.name,
        labels,
    };
    Ok(GetNamespaceResponse {
        namespace: Some(namespace),
    })
}

async fn list(
    manager: Rc<Manager>,
    _: String,
    request: ListNamespacesRequest,
) -> Result<ListNamespacesResponse, Failure> {
    let filters = Filters::parse(&[request.filter])?;
    let found = manager.store.namespaces().await?.into_iter();
    let all = found.map(|(name, labels)| Namespace { name, labels });
    Ok(ListNamespacesResponse {
        namespaces: all.filter(|it| filters.matches(it)).collect(),
    })
}

fn check(namespace: &Namespace) -> Result<(), Failure> {
    check_id(&namespace.name)?;
    let length = namespace.encoded_len();
    if length > MAX_NAMESPACE {
        return Err(exhausted(format!(
            "namespace record of {length} bytes: {MAX_NAMESPACE} is the most"
        )));
    }
    namespace
        .labels
        .iter()
        .try_for_each(|(key, value)| check_label(key, value))
}

async fn create(
    manager: Rc<Manager>,
    _: String,
    request: CreateNamespaceRequest,
) -> Result<CreateNamespaceResponse, Failure> {
    let namespace = request.namespace.unwrap_or_default();
    check(&namespace)?;
    let created = manager
        .store
        .create_namespace(&namespace.name, &namespace.labels);
    created.await?;
    let event = any::pack(&NamespaceCreate {
        name: namespace.name.clone(),
        labels: namespace.labels.clone(),
    });
    manager
        .intake
        .publish(&namespace.name, "/namespaces/create", event, Origin::State)
        .await;
    Ok(CreateNamespaceResponse {
        namespace: Some(namespace),
    })
}

async fn update(
    manager: Rc<Manager>,
    _: String,
    request: UpdateNamespaceRequest,
) -> Result<UpdateNamespaceResponse, Failure> {
    let new = request.namespace.unwrap_or_default();
    check(&new)?;
    let name = new.name.clone();
    let paths = request.update_mask.unwrap_or_default().paths;
    let update = move |old| merge(old, new.labels, &paths);
    let labels = manager.store.update_namespace(&name, update).await?;
    let updated = Namespace { name, labels };
    let event = any::pack(&NamespaceUpdate {
        name: updated.name.clone(),
        labels: updated.labels.clone(),
    });
    manager
        .intake
        .publish(&updated.name, "/namespaces/update", event, Origin::State)
        .await;
    Ok(UpdateNamespaceResponse {
        namespace: Some(updated),
    })
}

/// Replaces what the mask names, or all.
fn merge(mut old: Labels, new: Labels, paths: &[String]) -> Result<Labels, Failure> {
    if paths.is_empty() {
        return Ok(new);
    }
    for path in paths {
        match path.strip_prefix("labels.").map(|key| (key, new.get(key))) {
            Some((key, Some(value))) if !value.is_empty() => {
                old.insert(key.to_owned(), value.clone());
            }
            Some((key, _)) => drop(old.remove(key)),
            None if path == "labels" => old.clone_from(&new),
            None => return Err(invalid(format!("cannot update {path:?} field"))),
        }
    }
    Ok(old)
}

async fn delete(
    manager: Rc<Manager>,
    _: String,
    request: DeleteNamespaceRequest,
) -> Result<(), Failure> {
    check_id(&request.name)?;
    manager.store.delete_namespace(&request.name).await?;
    let event = any::pack(&NamespaceDelete {
        name: request.name.clone(),
    });
    manager
        .intake
        .publish(&request.name, "/namespaces/delete", event, Origin::State)
        .await;
    Ok(())
}
