// SPDX-License-Identifier: Apache-2.0
//! What Stats answers, by the names that both versions of cgroups have for it.

use crate::shim::Shim;
use protos::cgroups::{v1, v2};
use protos::{Any, any};

/// Some of a container's figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// In bytes.
    pub memory_limit: u64,
    /// Memory that is no file's, in bytes.
    pub anonymous: u64,
    pub pids: u64,
    /// 0 is none.
    pub pids_limit: u64,
}

impl Figures {
    /// # Panics
    /// If they are no metrics, or if some are missing.
    pub fn of(stats: &Any) -> Self {
        if let Some(metrics) = any::unpack::<v1::Metrics>(stats) {
            let metrics = metrics.expect("metrics");
            let memory = metrics.memory.expect("memory");
            let pids = metrics.pids.expect("pids");
            return Self {
                memory_limit: memory.usage.expect("usage").limit,
                anonymous: memory.rss,
                pids: pids.current,
                pids_limit: pids.limit,
            };
        }
        let metrics = any::unpack::<v2::Metrics>(stats);
        let metrics = metrics.unwrap_or_else(|| panic!("{}: no metrics", stats.type_url));
        let metrics = metrics.expect("metrics");
        let memory = metrics.memory.expect("memory");
        let pids = metrics.pids.expect("pids");
        Self {
            memory_limit: memory.usage_limit,
            anonymous: memory.anon,
            pids: pids.current,
            pids_limit: if pids.limit == u64::MAX {
                0
            } else {
                pids.limit
            },
        }
    }
}

impl Shim {
    /// A container's figures now.
    pub async fn figures(&self, id: &str) -> Figures {
        let stats = self.stats(id).await.expect("Stats").stats;
        Figures::of(&stats.expect("stats"))
    }
}
