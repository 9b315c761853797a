//! The Namespaces service: names, and their labels.

use super::service;
use crate::exchange::field_of_labels;
use crate::failure::{Failure, exhausted, exists, invalid, precondition};
use crate::filter::{Fields, Filters};
use crate::ledger::Origin;
use crate::manager::Manager;
use crate::names::{check_id, check_label};
use protos::events::{NamespaceCreate, NamespaceDelete, NamespaceUpdate};
use protos::services::namespaces::v1::*;
use protos::{Message, any};
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

fn read(manager: &Manager, name: &str) -> Result<Namespace, Failure> {
    Ok(Namespace {
        name: name.to_owned(),
        labels: manager.store.namespace(name)?,
    })
}

async fn get(
    manager: Rc<Manager>,
    _: String,
    request: GetNamespaceRequest,
) -> Result<GetNamespaceResponse, Failure> {
    check_id(&request.name)?;
    // As containerd's: a namespace is there as soon as somebody names it.
    let labels = manager.store.namespace(&request.name).unwrap_or_default();
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
    let names = manager.store.namespaces()?;
    let mut namespaces = Vec::new();
    for name in names {
        namespaces.extend(read(&manager, &name).ok().filter(|it| filters.matches(it)));
    }
    Ok(ListNamespacesResponse { namespaces })
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
    if manager.store.namespace(&namespace.name).is_ok() {
        return Err(exists(format!("namespace {:?}", namespace.name)));
    }
    manager
        .store
        .write_namespace(&namespace.name, &namespace.labels)?;
    let event = any::pack(&NamespaceCreate {
        name: namespace.name.clone(),
        labels: namespace.labels.clone(),
    });
    manager
        .intake
        .publish(&namespace.name, "/namespaces/create", event, Origin::State);
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
    let mut updated = read(&manager, &new.name)?;
    let paths = request.update_mask.unwrap_or_default().paths;
    if paths.is_empty() {
        updated.labels = new.labels;
    } else {
        for path in paths {
            match path
                .strip_prefix("labels.")
                .map(|key| (key, new.labels.get(key)))
            {
                Some((key, Some(value))) if !value.is_empty() => {
                    updated.labels.insert(key.to_owned(), value.clone());
                }
                Some((key, _)) => drop(updated.labels.remove(key)),
                None if path == "labels" => updated.labels.clone_from(&new.labels),
                None => {
                    return Err(invalid(format!("cannot update {path:?} field")));
                }
            }
        }
    }
    manager
        .store
        .write_namespace(&updated.name, &updated.labels)?;
    let event = any::pack(&NamespaceUpdate {
        name: updated.name.clone(),
        labels: updated.labels.clone(),
    });
    manager
        .intake
        .publish(&updated.name, "/namespaces/update", event, Origin::State);
    Ok(UpdateNamespaceResponse {
        namespace: Some(updated),
    })
}

async fn delete(
    manager: Rc<Manager>,
    _: String,
    request: DeleteNamespaceRequest,
) -> Result<(), Failure> {
    check_id(&request.name)?;
    manager.store.namespace(&request.name)?;
    if !manager.store.containers(&request.name)?.is_empty() {
        return Err(precondition(format!(
            "namespace {:?} must be empty, but it still has containers",
            request.name
        )));
    }
    manager.store.delete_namespace(&request.name)?;
    let event = any::pack(&NamespaceDelete {
        name: request.name.clone(),
    });
    manager
        .intake
        .publish(&request.name, "/namespaces/delete", event, Origin::State);
    Ok(())
}
