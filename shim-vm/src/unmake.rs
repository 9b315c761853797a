// SPDX-License-Identifier: Apache-2.0
//! Taking a container away, and with the last one its VM, unless that is a sandbox's.

use crate::container::{CLOSE, GuestContainer};
use crate::forget;
use crate::runtime::Engine;
use protos::task::DeleteRequest;
use protos::ttrpc::Context;
use protos::{Code, Status};
use std::rc::Rc;
use task::runtime::Runtime;

/// Takes away what there is of a container that is not made.
pub async fn undo(engine: &Rc<Engine>, id: &str) {
    let begun = engine.runtime.known(id);
    unmake(engine, id, true).await;
    if let Some(begun) = begun {
        begun.run_poststop(&engine.runtime.reaper).await;
    }
}

/// Takes the host's part of a container away, and with the last one the VM. `undo`: the guest may
/// have its part still.
pub async fn unmake(engine: &Rc<Engine>, id: &str, undo: bool) {
    let guest = &engine.runtime;
    let container = guest.known(id);
    let name = container.as_ref().map_or(id, |of| &of.name).to_owned();
    let vm = guest.vm.borrow().clone();
    if let Some(vm) = &vm {
        let _turn = guest.turn.lock().await;
        let others = guest.containers.borrow().len() > 1;
        if others || guest.is_held() {
            // Of one that a dead shim was making it is not known whether the guest has it.
            let may_be_there =
                |of: &Rc<GuestContainer>| of.created.get() || of.init.may_be_gone.get();
            if let Some(container) = container.filter(|of| undo && may_be_there(of)) {
                undo_create(&container).await;
            }
            if let Err(why) = vm.pod.remove(id).await
                && !vm.is_gone()
            {
                log::warn!("{id}: limits of the VM: {why}");
            }
        } else {
            vm.power_off().await;
            guest.vm.replace(None);
            guest.anchor.set(None);
        }
        let gone = vm.share.remove(&name).await;
        vm.mirrors.forget(&gone);
        vm.container_sockets.forget(&gone);
        if others || guest.keeps_vm.get() {
            let vm = Rc::clone(vm);
            engine.in_background(async move { forget::removed(&vm, gone).await });
        }
    }
    guest.containers.borrow_mut().remove(id);
}

/// The guest has made a container that nobody waits for.
async fn undo_create(container: &GuestContainer) {
    let vm = &container.vm;
    let request = DeleteRequest {
        id: container.name.clone(),
        ..Default::default()
    };
    container.init.deleting.set(true);
    let deleted = async {
        let whole = Context::background();
        match vm.ask(&request, &whole).await {
            Err(status) if status.code == Code::NotFound && container.init.may_be_gone.get() => {
                return Ok(());
            }
            answer => drop(answer?),
        }
        container.init.until(|_| container.forgotten.get()).await;
        Ok::<_, Status>(())
    };
    let what = format!("the end of {}, which was not made", container.id);
    let deleted = vm.in_time(&what, vm.patience + CLOSE, deleted).await;
    if let Some(Err(status)) = deleted {
        vm.doom.end(format!("{what}: {status}"));
    }
}
