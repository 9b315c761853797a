// SPDX-License-Identifier: Apache-2.0
//! Whom the guest's kernel has killed for want of memory, as the guest tells it: for its container's
//! lines in the log and in `inspect`, and for nothing else.

use crate::container::{GuestContainer, GuestProcess};
use crate::runtime::Engine;
use crate::word;
use protos::guest;
use std::cell::RefCell;
use std::collections::VecDeque;
use task::event::now;
use task::oom::Killed;

/// So many kills are told at once, and a second after that. More are not: nothing depends on it.
pub const KILLS: (u32, u32) = (64, 4);
/// So many execs are known when they are gone: their end may be told before their kill.
const GONE: usize = 4;

/// Execs that the guest has deleted, the last ones.
#[derive(Default)]
pub struct Gone(RefCell<VecDeque<(String, String)>>);

impl Gone {
    pub fn remember(&self, exec: &GuestProcess) {
        let mut gone = self.0.borrow_mut();
        if gone.len() == GONE {
            gone.pop_front();
        }
        gone.push_back((exec.name.clone(), exec.exec_id.clone()));
    }

    /// What clients called the one that the guest calls `name`.
    fn exec_id(&self, name: &str) -> Option<String> {
        let gone = self.0.borrow();
        let named = gone.iter().find(|(known, _)| known == name);
        named.map(|(_, exec_id)| exec_id.clone())
    }
}

/// A kill that the guest tells of. Of a container that is not there, or too often, it is not heard.
pub fn hear(engine: &Engine, told: &guest::Killed) {
    let Some(container) = engine.runtime.known(&told.container_id) else {
        return;
    };
    let known = container.engines.borrow().upgrade();
    if let Some(known) = known
        && engine.runtime.kills.borrow_mut().take()
    {
        known.ooms.tell(&container.id, believed(&container, told));
    }
}

/// Names of the guest's are made harmless, and are none of the host's.
fn believed(container: &GuestContainer, told: &guest::Killed) -> Killed {
    let named = |name: &String| match name.as_str() {
        "" => Some(String::new()),
        name => {
            let execs = container.execs.borrow();
            let exec = execs.get(name).map(|exec| exec.exec_id.clone());
            exec.or_else(|| container.gone.exec_id(name))
        }
    };
    Killed {
        at: now().seconds,
        exec: told.exec_id.as_ref().and_then(named),
        pid: told.pid,
        program: word::line(&told.program),
        cgroup: word::line(&told.cgroup),
        exhausted: word::line(&told.exhausted),
        peak_bytes: told.peak_bytes,
        limit_bytes: told.limit_bytes,
        with_group: told.with_group,
        in_vm: true,
    }
}
