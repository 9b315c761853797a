// SPDX-License-Identifier: Apache-2.0
//! The Leases service: clients take a lease around everything, and here it protects nothing.

use super::service;
use crate::failure::{Failure, exists, invalid, not_found, unimplemented};
use crate::manager::Manager;
use protos::Message;
use protos::services::leases::v1::*;
use std::rc::Rc;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// What all leases may take, in bytes.
const MOST: usize = 1 << 20;

service! {
    crate::services::containerd::services::leases::v1::leases_server::Leases,
    namespaced: true;
    create(CreateRequest) -> CreateResponse;
    delete(DeleteRequest) -> ();
    list(ListRequest) -> ListResponse;
    add_resource(AddResourceRequest) -> ();
    delete_resource(DeleteResourceRequest) -> ();
    list_resources(ListResourcesRequest) -> ListResourcesResponse;
}

async fn create(
    manager: Rc<Manager>,
    namespace: String,
    request: CreateRequest,
) -> Result<CreateResponse, Failure> {
    // Clients make up ids that are no identifiers.
    if request.id.is_empty() {
        return Err(invalid("lease id must be provided"));
    }
    let mut leases = manager.leases.borrow_mut();
    // Clients that die leave theirs.
    leases.retain(|_, lease| !has_expired(lease));
    let key = (namespace, request.id.clone());
    if leases.contains_key(&key) {
        return Err(exists(format!("lease {:?}", request.id)));
    }
    let lease = Lease {
        id: request.id,
        created_at: Some(task::event::now()),
        labels: request.labels,
    };
    leases.insert(key, lease.clone());
    // They protect nothing: the oldest go.
    let mut bytes: usize = leases.values().map(size).sum();
    while bytes > MOST && leases.len() > 1 {
        let time = |lease: &Lease| lease.created_at.map(|at| (at.seconds, at.nanos));
        let oldest = leases.iter().min_by_key(|(_, lease)| time(lease));
        let Some(oldest) = oldest.map(|(key, _)| key.clone()) else {
            break;
        };
        bytes -= leases.remove(&oldest).as_ref().map_or(0, size);
    }
    Ok(CreateResponse { lease: Some(lease) })
}

fn size(lease: &Lease) -> usize {
    size_of::<Lease>() + lease.encoded_len()
}

/// containerd's collector goes by this label too (core/metadata/gc.go `labelGCExpire`).
fn has_expired(lease: &Lease) -> bool {
    let until = lease.labels.get("containerd.io/gc.expire");
    let until = until.and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
    until.is_some_and(|until| until < OffsetDateTime::now_utc())
}

async fn delete(
    manager: Rc<Manager>,
    namespace: String,
    request: DeleteRequest,
) -> Result<(), Failure> {
    let key = (namespace, request.id);
    let removed = manager.leases.borrow_mut().remove(&key);
    match removed {
        Some(_) => Ok(()),
        None => Err(not_found(format!("lease {:?}", key.1))),
    }
}

async fn list(
    manager: Rc<Manager>,
    namespace: String,
    _: ListRequest,
) -> Result<ListResponse, Failure> {
    let leases = manager.leases.borrow();
    let of_namespace = leases.iter().filter(|((of, _), _)| *of == namespace);
    Ok(ListResponse {
        leases: of_namespace.map(|(_, lease)| lease.clone()).collect(),
    })
}

async fn add_resource(_: Rc<Manager>, _: String, _: AddResourceRequest) -> Result<(), Failure> {
    Err(unimplemented("resources of leases"))
}

async fn delete_resource(
    _: Rc<Manager>,
    _: String,
    _: DeleteResourceRequest,
) -> Result<(), Failure> {
    Err(unimplemented("resources of leases"))
}

async fn list_resources(
    _: Rc<Manager>,
    _: String,
    _: ListResourcesRequest,
) -> Result<ListResourcesResponse, Failure> {
    Err(unimplemented("resources of leases"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_when_its_label_says() {
        let until = |text: &str| Lease {
            labels: [("containerd.io/gc.expire".to_owned(), text.to_owned())].into(),
            ..Default::default()
        };
        assert!(has_expired(&until("2020-01-31T12:00:00Z")));
        assert!(has_expired(&until("2020-01-31T12:00:00.5+02:00")));
        assert!(!has_expired(&until("2999-01-31T12:00:00Z")));
        assert!(!has_expired(&until("tomorrow")));
        assert!(!has_expired(&Lease::default()));
    }
}
