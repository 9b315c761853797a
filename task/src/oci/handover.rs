// SPDX-License-Identifier: Apache-2.0
//! What an OCI runtime keeps of a container, for another process image.

use super::cli::Cli;
use super::{Checkpoint, Oci, Options, Own};
use crate::bundle::Bundle;
use crate::cgroup::Cgroup;
use crate::container::Container;
use crate::handover;
use crate::service::Engine;
use serde::{Deserialize, Serialize};
use std::rc::Rc;

#[derive(Debug, Serialize, Deserialize)]
pub struct Moved {
    options: Options,
    checkpoint: Option<Checkpoint>,
    own_pid_namespace: bool,
    cgroup: Option<handover::Cgroup>,
    /// OOM kills that were told of; `None` if nobody watches.
    oom_told: Option<u64>,
}

impl Own {
    pub(super) fn hand_over(&self) -> Moved {
        let (cgroup, oom) = (self.cgroup.borrow(), self.oom.borrow());
        Moved {
            options: self.options.clone(),
            checkpoint: self.checkpoint.clone(),
            own_pid_namespace: self.own_pid_namespace,
            cgroup: cgroup.as_ref().map(|cgroup| cgroup.hand_over()),
            oom_told: oom.as_ref().map(|(watch, _)| watch.published()),
        }
    }

    pub(super) fn take_over(engine: &Engine<Oci>, bundle: &Bundle, moved: &Moved) -> Self {
        let options = moved.options.clone();
        let reaper = Rc::clone(&engine.runtime.reaper);
        let cli = Cli::new(reaper, &options, &engine.namespace, bundle.clone());
        let own = Self::new(
            cli,
            options,
            moved.own_pid_namespace,
            moved.checkpoint.clone(),
        );
        let cgroup = moved.cgroup.clone().map(Cgroup::take_over);
        own.cgroup.replace(cgroup.map(Rc::new));
        own
    }
}

impl Container<Oci> {
    /// Watches for OOM kills again, if another process image did.
    pub(super) fn goes_on(self: &Rc<Self>, engine: &Rc<Engine<Oci>>, moved: &Moved) {
        let cgroup = self.own.cgroup.borrow().clone();
        if let (Some(told), Some(cgroup)) = (moved.oom_told, cgroup) {
            self.watch_oom(engine, &cgroup, told);
        }
    }
}
