// SPDX-License-Identifier: Apache-2.0
//! The manager: everything that is there once per daemon, and how a shim is asked something.

use crate::bundles::Bundles;
use crate::config::Config;
use crate::failure::{Failure, unavailable};
use crate::health::Health;
use crate::intake::Intake;
use crate::launch::Launcher;
use crate::restart::Restarts;
use crate::store::Store;
use crate::tasks::{Task, Tasks};
use protos::ttrpc::Call;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::watch;

pub struct Manager {
    pub config: Arc<Config>,
    pub store: Store,
    pub bundles: Bundles,
    pub launcher: Launcher,
    pub intake: Rc<Intake>,
    pub tasks: Tasks,
    pub health: Health,
    /// Leases are taken for granted: there is nothing here to protect from a collector.
    pub leases: RefCell<BTreeMap<(String, String), protos::services::leases::v1::Lease>>,
    /// How many requests are being worked on, but for those that may wait for ever.
    pub requests: watch::Sender<usize>,
    /// True while no further ones are begun, because another image of the program is to come.
    pub held: watch::Sender<bool>,
    /// Names this installation, for ever.
    pub uuid: String,
    /// Shims that died.
    pub deaths: Cell<u64>,
    pub restarts: Restarts,
}

impl Manager {
    /// Asks the shim of `task`.
    ///
    /// # Errors
    /// The shim's status, or `Unavailable` if there is none.
    pub async fn ask<C: Call>(&self, task: &Task, request: &C) -> Result<C::Answer, Failure> {
        let gone = || unavailable(format!("shim of task {} is gone", task.id()));
        let shim = task.living_shim().await;
        shim.ok_or_else(gone)?.call(request, None).await
    }
}
