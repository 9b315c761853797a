// SPDX-License-Identifier: Apache-2.0
//! The cgroup of a VM, for another process image.

use super::{Overhead, Pod};
use crate::block::Throttle;
use crate::limits::Limits;
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// With a VM in it that has booted.
#[derive(Debug, Serialize, Deserialize)]
pub struct Moved {
    dirs: Vec<PathBuf>,
    overhead: Overhead,
    containers: BTreeMap<String, Limits>,
    memory: Option<u64>,
    throttled: BTreeSet<Throttle>,
    /// OOM kills that were told of; `None` if nobody watches.
    oom_told: Option<u64>,
}

impl Pod {
    /// Describes it for another process image.
    pub fn hand_over(&self) -> Moved {
        Moved {
            dirs: self.dirs.clone(),
            overhead: self.overhead,
            containers: self.containers.borrow().clone(),
            memory: self.memory.get(),
            throttled: self.throttled.borrow().clone(),
            oom_told: self.watch.borrow().as_ref().map(|watch| watch.published()),
        }
    }

    /// Goes on with that of another process image, with `pid` in it.
    pub fn take_over(moved: Moved, pid: u32) -> Self {
        let pod = Self {
            dirs: moved.dirs,
            overhead: moved.overhead,
            // Its processes have it.
            oom_score_adj: None,
            containers: RefCell::new(moved.containers),
            memory: Cell::new(moved.memory),
            throttled: RefCell::new(moved.throttled),
            up: Cell::new(true),
            watch: RefCell::default(),
        };
        if let Some(told) = moved.oom_told {
            pod.watch_oom(pid, told);
        }
        pod
    }
}
