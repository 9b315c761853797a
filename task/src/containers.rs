// SPDX-License-Identifier: Apache-2.0
//! The table of containers.

use crate::container::Container;
use crate::error::{Error, Result};
use crate::runtime::Runtime;
use protos::ttrpc::Context;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use tokio::sync::Notify;

pub struct Containers<R: Runtime> {
    /// `None` while the container is being created.
    table: RefCell<HashMap<String, Option<Rc<Container<R>>>>>,
    /// A name that was reserved is so no more.
    changed: Notify,
}

/// A name that is taken by a container being created; free again when dropped.
pub struct Reserved<'a, R: Runtime> {
    containers: &'a Containers<R>,
    id: String,
}

impl<R: Runtime> Default for Containers<R> {
    fn default() -> Self {
        Self {
            table: RefCell::default(),
            changed: Notify::default(),
        }
    }
}

impl<R: Runtime> Containers<R> {
    /// # Errors
    /// NotFound (T1), also while it is being created.
    pub fn find(&self, id: &str) -> Result<Rc<Container<R>>> {
        let found = self.table.borrow().get(id).cloned().flatten();
        found.ok_or_else(|| Error::NotFound("container not created".into()))
    }

    /// Takes `id` for a container to be created. If another Create has it, this waits for what
    /// comes of that: a caller that gave up and tries again finds the first try undone.
    ///
    /// # Errors
    /// If it is taken: runc's words, as Go's shim gives them after it has done its harm (T12, U4);
    /// `GivenUp` if the caller does not wait that long.
    pub async fn reserve(&self, id: &str, context: &Context) -> Result<Reserved<'_, R>> {
        while self.is_being_created(id) {
            tokio::select! {
                () = self.changed.notified() => {}
                why = context.cancelled() => return Err(Error::GivenUp(why)),
            }
        }
        let mut table = self.table.borrow_mut();
        if table.contains_key(id) {
            let text = "OCI runtime create failed: runc create failed: \
                        container with given ID already exists";
            return Err(Error::Refused(text.into()));
        }
        table.insert(id.to_owned(), None);
        Ok(Reserved {
            containers: self,
            id: id.to_owned(),
        })
    }

    /// The ids of those that are being created, in order.
    pub fn creating(&self) -> Vec<String> {
        let table = self.table.borrow();
        let creating = table.iter().filter(|(_, container)| container.is_none());
        let mut ids: Vec<String> = creating.map(|(id, _)| id.clone()).collect();
        ids.sort_unstable();
        ids
    }

    fn is_being_created(&self, id: &str) -> bool {
        matches!(self.table.borrow().get(id), Some(None))
    }

    /// Adds a container that another process image made.
    pub fn insert(&self, container: Rc<Container<R>>) {
        let id = container.id.clone();
        self.table.borrow_mut().insert(id, Some(container));
    }

    /// Every container that is there.
    pub fn all(&self) -> Vec<Rc<Container<R>>> {
        self.table.borrow().values().flatten().cloned().collect()
    }

    /// Waits until a Create has ended.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    pub fn remove(&self, id: &str) {
        self.table.borrow_mut().remove(id);
    }

    pub fn is_empty(&self) -> bool {
        self.table.borrow().is_empty()
    }
}

impl<R: Runtime> Reserved<'_, R> {
    /// The container is there.
    pub fn fill(self, container: Rc<Container<R>>) {
        self.containers.insert(container);
    }
}

impl<R: Runtime> Drop for Reserved<'_, R> {
    fn drop(&mut self) {
        if self.containers.is_being_created(&self.id) {
            self.containers.remove(&self.id);
        }
        self.containers.changed.notify_waiters();
    }
}
