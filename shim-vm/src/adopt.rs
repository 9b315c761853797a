// SPDX-License-Identifier: Apache-2.0
//! What a shim does that takes the place of one that was killed: the calls that were under way then are
//! nobody's any more, and what they had begun is undone, or told.
//!
//! The guest has given them up, as those of any client that hangs up. What it has done nevertheless it
//! tells by events, which come anew from the last that the dead shim had heard.

use crate::calls;
use crate::container::{self, GuestContainer, GuestProcess};
use crate::events;
use crate::promises;
use crate::runtime::{Container, Engine, Guest};
use crate::unmake;
use crate::vm::Vm;
use protos::task::StateRequest;
use protos::task_types::Status;
use protos::ttrpc::Context;
use std::path::PathBuf;
use std::rc::Rc;
use task::bundle::Bundle;

/// A container that is being made, with its bundle if the guest was asked for it.
pub type Making = (String, Option<(PathBuf, container::Moved)>);

/// Those that are being made now.
pub fn being_made(guest: &Guest) -> Vec<Making> {
    let containers = guest.containers.borrow();
    let making = containers.iter().filter(|(_, own)| !is_made(own.as_ref()));
    let described = making.map(|(id, own)| {
        let own = own.as_ref();
        let own = own.map(|own| (own.bundle.path().to_owned(), own.hand_over()));
        (id.clone(), own)
    });
    let mut all: Vec<_> = described.collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// Those that are made, and not deleted, as the guest calls them.
pub fn made(guest: &Guest) -> Vec<String> {
    let containers = guest.containers.borrow();
    let made = containers
        .values()
        .flatten()
        .filter(|own| is_made(Some(own)));
    let mut made: Vec<_> = made.map(|own| own.name.clone()).collect();
    made.sort();
    made
}

/// True once the engine knows it.
fn is_made(own: Option<&Rc<GuestContainer>>) -> bool {
    own.is_some_and(|own| own.engines.borrow().strong_count() > 0)
}

/// Takes away what the dead shim was making.
pub fn unmake(engine: &Rc<Engine>, vm: &Rc<Vm>, making: Vec<Making>) {
    for (id, own) in making {
        let known = own.map(|(bundle, moved)| {
            GuestContainer::take_over(&id, &Bundle::new(bundle), vm, &moved)
        });
        engine
            .runtime
            .containers
            .borrow_mut()
            .insert(id.clone(), known);
        let unmaking = &engine.runtime.unmaking;
        unmaking.send_modify(|ids| {
            ids.insert(id.clone());
        });
        let undoing = Rc::clone(engine);
        engine.in_background(async move {
            unmake::undo(&undoing, &id).await;
            let unmaking = &undoing.runtime.unmaking;
            unmaking.send_modify(|ids| {
                ids.remove(&id);
            });
        });
    }
}

/// Goes on with a container that was made.
pub fn go_on(engine: &Rc<Engine>, container: &Rc<Container>) {
    let own = Rc::clone(&container.own);
    own.engines.replace(Rc::downgrade(container));
    if own.init.runs.get() {
        events::runs(engine, &own);
    }
    let execs: Vec<_> = own.execs.borrow().values().cloned().collect();
    for exec in execs.into_iter().filter(|exec| !is_run(container, exec)) {
        let own = Rc::clone(&own);
        engine.in_background(async move { promises::forget(&own, &exec).await });
    }
    let container = Rc::clone(container);
    engine.in_background(async move { freeze(&container).await });
}

/// Whether a client knows it as an exec that was started. One whose start was under way can only be
/// deleted: that it has failed is what its client was told.
fn is_run(container: &Container, exec: &GuestProcess) -> bool {
    let known = container.execs();
    let known = known.iter().find(|it| it.id() == exec.exec_id);
    match known {
        Some(it) if exec.deleting.get() || it.process.pid.get() == 0 => {
            if it.process.pid.get() == 0 {
                it.process.never_runs();
            }
            false
        }
        known => known.is_some(),
    }
}

/// A Pause or a Resume that was under way may have been done.
async fn freeze(container: &Container) {
    let own = &container.own;
    let request = StateRequest {
        id: own.name.clone(),
        ..Default::default()
    };
    let context = Context::within(own.vm.patience);
    let asked = calls::ask(own, &own.init, &request, &context);
    match asked.await {
        Ok(state) => container.is_frozen(state.status == Status::Paused as i32),
        Err(e) => log::debug!("{}: state in the guest: {e}", own.id),
    }
}
