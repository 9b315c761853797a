// SPDX-License-Identifier: Apache-2.0
//! How much of one namespace the ledger remembers: no namespace makes the daemon large.

use super::{Facts, Ledger};
use crate::names::{Key, MAX_ID};
use task::ProcessId;

/// So many processes of one namespace are known at once. What happens to more is told to those who
/// listen, and not remembered.
const MOST: usize = 10_000;

impl Ledger {
    /// What [`Ledger::needs`] goes by, and no more.
    pub fn undeleted(&self) -> Self {
        let lives = self.containers.iter().filter(|(_, facts)| !facts.deleted);
        let copy = lives.map(|(key, facts)| {
            let there = facts.processes.iter().filter(|(_, it)| !it.deleted);
            let facts = Facts {
                created: facts.created,
                processes: there.map(|(exec, it)| (exec.clone(), it.clone())).collect(),
                ..Facts::default()
            };
            (key.clone(), facts)
        });
        Self {
            containers: copy.collect(),
            ..Self::default()
        }
    }

    /// True of a process that is known, or becomes so now.
    pub(super) fn has_room(&mut self, key: &Key, process: &ProcessId) -> bool {
        let facts = self.facts(key);
        if facts.is_some_and(|facts| facts.processes.contains_key(process)) {
            return true;
        }
        if key.id.len() > MAX_ID || process.exec_id().len() > MAX_ID {
            return false;
        }
        let known = self.known.get(&key.namespace).copied().unwrap_or_default();
        if known >= MOST {
            log::error!(
                "{key}: {process}: {MOST} processes of the namespace are known, not this one"
            );
            return false;
        }
        self.known.insert(key.namespace.clone(), known + 1);
        true
    }

    /// So many processes of the namespace are known no longer.
    pub(super) fn gone(&mut self, namespace: &str, count: usize) {
        if let Some(known) = self.known.get_mut(namespace) {
            *known -= count.min(*known);
            if *known == 0 {
                self.known.remove(namespace);
            }
        }
    }
}
