// SPDX-License-Identifier: Apache-2.0
//! The tasks: what is running under which shim, and the flows that touch more than the shim.
//!
//! ```text
//!  create   reserve the id ─> bundle ─> start the shim ─> Create        on failure: all back
//!  start    Start at the shim ─> journal: started ─> answer
//!  delete   Delete at the shim ─> mark ─> shut the shim down ─> TaskDelete ─> bundle away
//! ```

mod delete;

use crate::bundles::{Bundle, Files};
use crate::failure::{Failure, exists, not_found};
use crate::health::{self, Check};
use crate::journal::Started;
use crate::manager::Manager;
use crate::names::Key;
use crate::network;
use crate::runc;
use crate::shim::Shim;
use crate::shim_log::{self, Log};
use protos::Any;
use protos::services::containers::v1::Container;
use protos::services::tasks::v1::CreateTaskRequest as CreateRequest;
use protos::task::{CreateTaskRequest, DeleteRequest, StartRequest};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use task::ProcessId;
use tokio::sync::{Notify, watch};

/// One task.
pub struct Task {
    pub bundle: Bundle,
    pub pid: Cell<u32>,
    /// None once it is gone.
    shim: watch::Sender<Option<Rc<Shim>>>,
    /// The shim has deleted it; only the rest is to be done.
    pub deleting: Cell<bool>,
    _log: Log,
    /// Its container has a record, as far as we know.
    pub has_record: Cell<bool>,
    /// What begins with its start.
    check: RefCell<Option<Rc<Check>>>,
}

impl Task {
    pub fn new(bundle: Bundle, pid: u32, shim: Option<Rc<Shim>>, log: Log) -> Self {
        Self {
            bundle,
            pid: Cell::new(pid),
            shim: watch::Sender::new(shim),
            deleting: Cell::new(false),
            _log: log,
            has_record: Cell::new(false),
            check: RefCell::default(),
        }
    }

    pub fn key(&self) -> &Key {
        &self.bundle.key
    }

    pub fn id(&self) -> &str {
        &self.key().id
    }

    /// The shim, if it is there.
    pub fn shim(&self) -> Option<Rc<Shim>> {
        self.shim.borrow().clone()
    }

    pub fn lose_shim(&self) {
        self.shim.send_replace(None);
    }

    /// Another shim has taken it over.
    pub fn change_shim(&self, shim: &Rc<Shim>) {
        self.shim.send_replace(Some(Rc::clone(shim)));
    }

    /// The shim; if that has just died, the one that takes its place, if there will be one.
    pub async fn living_shim(&self) -> Option<Rc<Shim>> {
        let lives = |shim: &Option<Rc<Shim>>| shim.as_ref().is_none_or(|shim| !shim.is_over());
        self.shim.subscribe().wait_for(lives).await.ok()?.clone()
    }
}

/// The table.
#[derive(Default)]
pub struct Tasks {
    table: RefCell<BTreeMap<Key, Option<Rc<Task>>>>,
    /// A task is no longer in it.
    removed: Notify,
}

impl Tasks {
    /// Nobody else may create a task of this name while the reservation lives.
    ///
    /// # Errors
    /// `AlreadyExists`.
    pub fn reserve(&self, key: Key) -> Result<Reservation<'_>, Failure> {
        let mut table = self.table.borrow_mut();
        if table.contains_key(&key) {
            return Err(exists(format!("task {}", key.id)));
        }
        table.insert(key.clone(), None);
        Ok(Reservation { tasks: self, key })
    }

    /// [`Tasks::reserve`], once a task of this name that is being deleted is gone.
    ///
    /// # Errors
    /// `AlreadyExists`, if there is another.
    pub async fn reserve_deleted(&self, key: Key) -> Result<Reservation<'_>, Failure> {
        let is_going = || {
            let table = self.table.borrow();
            let task = table.get(&key).and_then(Option::as_ref);
            task.is_some_and(|task| task.deleting.get())
        };
        while is_going() {
            self.removed.notified().await;
        }
        self.reserve(key)
    }

    /// # Errors
    /// `NotFound`.
    pub fn get(&self, key: &Key) -> Result<Rc<Task>, Failure> {
        let found = self.table.borrow().get(key).cloned().flatten();
        found
            .filter(|task| !task.deleting.get())
            .ok_or_else(|| not_found(format!("no running task found: task {} not found", key.id)))
    }

    pub fn all(&self) -> Vec<Rc<Task>> {
        self.table.borrow().values().flatten().cloned().collect()
    }

    pub fn of_namespace(&self, namespace: &str) -> Vec<Rc<Task>> {
        let mut all = self.all();
        all.retain(|task| task.key().namespace == namespace && !task.deleting.get());
        all
    }

    pub fn insert(&self, task: Rc<Task>) {
        self.table
            .borrow_mut()
            .insert(task.key().clone(), Some(task));
    }

    pub fn remove(&self, key: &Key) {
        self.table.borrow_mut().remove(key);
        self.removed.notify_waiters();
    }

    /// The shim that listens there, if a task has it.
    fn shim_at(&self, address: &str) -> Option<Rc<Shim>> {
        let all = self.all();
        let mut shims = all.iter().filter_map(|task| task.shim());
        shims.find(|shim| shim.address.address == address && !shim.is_over())
    }
}

pub struct Reservation<'a> {
    tasks: &'a Tasks,
    key: Key,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut table = self.tasks.table.borrow_mut();
        if let Some(None) = table.get(&self.key) {
            table.remove(&self.key);
        }
    }
}

impl Manager {
    /// Creates the task of `container` as `create` says; the pid of its init.
    ///
    /// # Errors
    /// `AlreadyExists`, or whatever went wrong; then nothing is left.
    pub async fn create_task(
        self: &Rc<Self>,
        namespace: &str,
        container: &Container,
        create: CreateRequest,
    ) -> Result<u32, Failure> {
        let key = Key::new(namespace, &container.id);
        let _reserved = self.tasks.reserve(key.clone())?;
        let runtime = container.runtime.clone().unwrap_or_default();
        let name: &str = match create.runtime_path.as_str() {
            "" => &runtime.name,
            path => path,
        };
        let binary = self.launcher.resolve(name).await?;
        network::attach(self, container).await?;
        self.store.remember_create(namespace, &create).await?;
        let create = self.rooted(container, create).await?;
        let spec = self.joined(namespace, container).await?;
        let bundle = self.bundles.create(key, spec);
        let bundle = bundle.await?;
        let failed = async |e: Failure| {
            self.clean_up(&bundle).await;
            Err(e)
        };
        let log = match shim_log::open(&bundle).await {
            Ok(log) => log,
            Err(e) => return failed(e).await,
        };
        let request = self.create_request(&bundle, create, runtime.options, &binary);
        if let Err(e) = runc::claim(&bundle, request.options.as_ref()).await {
            return failed(e).await;
        }
        let (shim, pid) = match self.create_at_shim(&bundle, &binary, &request).await {
            Ok(created) => created,
            Err(e) => return failed(e).await,
        };
        let task = Rc::new(Task::new(bundle, pid, Some(Rc::clone(&shim)), log));
        task.has_record.set(true);
        task.check.replace(health::of(container));
        self.tasks.insert(Rc::clone(&task));
        if shim.is_over() {
            tokio::task::spawn_local(Rc::clone(self).bury(task));
        }
        Ok(pid)
    }

    /// What the shim is asked; a task without options has those of its container's runtime.
    fn create_request(
        &self,
        bundle: &Bundle,
        create: CreateRequest,
        of_runtime: Option<Any>,
        binary: &Path,
    ) -> CreateTaskRequest {
        let mut given = [create.options, of_runtime].into_iter().flatten();
        let given = given.find(|it| !it.type_url.is_empty());
        let options = runc::options(given, binary, &self.config.state);
        CreateTaskRequest {
            id: bundle.id().to_owned(),
            bundle: bundle.path().display().to_string(),
            rootfs: create.rootfs,
            terminal: create.terminal,
            stdin: create.stdin,
            stdout: create.stdout,
            stderr: create.stderr,
            checkpoint: restore_path(options.as_ref()),
            parent_checkpoint: String::new(),
            options,
        }
    }

    /// Has a shim, a new one or its group's, create the task of `bundle`; the pid of its init.
    async fn create_at_shim(
        self: &Rc<Self>,
        bundle: &Bundle,
        binary: &Path,
        request: &CreateTaskRequest,
    ) -> Result<(Rc<Shim>, u32), Failure> {
        let options = request.options.as_ref();
        let address = self.launcher.start(bundle, binary, options).await?;
        let shim = match self.tasks.shim_at(&address.address) {
            Some(shim) => shim,
            None => self.connect(address, bundle.id()).await?,
        };
        match shim.call(request, None).await {
            Ok(created) => Ok((shim, created.pid)),
            Err(e) => {
                let request = DeleteRequest {
                    id: bundle.id().to_owned(),
                    exec_id: String::new(),
                };
                let _ = shim.call(&request, Some(Duration::from_secs(5))).await;
                shim.end(bundle.id()).await;
                Err(e)
            }
        }
    }

    /// Takes away what a task that could not be created left.
    pub async fn clean_up(&self, bundle: &Bundle) {
        if bundle.with(Files::shim_path).await.is_some()
            && let Err(e) = self.launcher.delete(bundle).await
        {
            log::warn!("{}: {e}", bundle.key);
        }
        if let Err(e) = bundle.delete(&self.launcher.reaper).await {
            log::error!("{}: bundle: {e}", bundle.key);
        }
    }

    /// Starts init, or an exec.
    ///
    /// # Errors
    /// The shim's.
    pub async fn start_task(
        self: &Rc<Self>,
        key: &Key,
        process: &ProcessId,
    ) -> Result<u32, Failure> {
        let task = self.tasks.get(key)?;
        let request = StartRequest {
            id: key.id.clone(),
            exec_id: process.exec_id().to_owned(),
        };
        let response = self.ask(&task, &request).await?;
        let started = Started::new(key, process, response.pid);
        self.intake.started(started).await;
        self.intake.synced().await;
        if *process == ProcessId::Init
            && let Some(check) = task.check.take()
        {
            self.begin_checks(key, check, "");
        }
        Ok(response.pid)
    }
}

/// Where runc's options say that a checkpoint to restore is.
fn restore_path(options: Option<&Any>) -> String {
    match options.and_then(protos::any::unpack::<protos::runc::Options>) {
        Some(Ok(options)) => options.criu_image_path,
        _ => String::new(),
    }
}
