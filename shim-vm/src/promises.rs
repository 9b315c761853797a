// SPDX-License-Identifier: Apache-2.0
//! What the host promises of a container, whatever its guest does: SIGKILL ends it, and what has ended
//! can be deleted. If the guest does not see to that in time, the end of its VM does.

use crate::calls::ask;
use crate::container::{CLOSE, GuestContainer, GuestProcess};
use crate::events::lost;
use crate::runtime::Engine;
use crate::word;
use protos::task::{DeleteRequest, DeleteResponse, KillRequest};
use protos::ttrpc::Context;
use protos::{Code, Status};
use std::rc::Rc;
use std::time::Duration;
use task::{Error, Result};

const SIGKILL: u32 = 9;
/// How soon the guest is asked again for what must be done.
const AGAIN: Duration = Duration::from_millis(500);

/// What SIGKILL does to init is the host's promise: it ends, by the guest's doing or with the VM.
///
/// # Errors
/// NotFound if it has ended, or the guest's.
pub async fn kill(
    container: &GuestContainer,
    process: &Rc<GuestProcess>,
    signal: u32,
    all: bool,
    context: &Context,
) -> Result<()> {
    if container.vm.is_gone() || process.exit().is_some() && !all {
        return Err(Error::finished());
    }
    let request = KillRequest {
        id: container.name.clone(),
        exec_id: process.name.clone(),
        signal,
        all,
    };
    let is_promise = signal == SIGKILL && process.is_init() && process.exit().is_none();
    let killed = ask(container, process, &request, context);
    if !is_promise {
        return killed.await;
    }
    owes_exit(container, process);
    let killed = async {
        // Whatever reason the guest has to refuse, and if it says that init has ended: the exit
        // comes, or the VM ends.
        if killed.await.is_err() {
            process.exited().await;
        }
    };
    tokio::select! {
        biased;
        () = killed => Ok(()),
        why = context.cancelled() => Err(Error::GivenUp(why)),
        () = process.exited() => Ok(()),
    }
}

/// Has the guest delete a container, whose init does not run.
///
/// # Errors
/// The guest's, as long as it may refuse.
pub async fn remove(engine: &Rc<Engine>, container: &GuestContainer) -> Result<()> {
    let vm = &container.vm;
    // One that was not started stands still, and is alone in its VM.
    if container.is_frozen.get() {
        vm.is_to_end.set(true);
        vm.doom.end("it was restored, and not started".into());
        vm.gone().await;
    }
    if !vm.is_gone() && !container.forgotten.get() {
        delete_in(container, &container.init).await?;
    }
    if vm.is_gone() {
        lost(engine, container);
    }
    Ok(())
}

/// Has the guest delete an exec, which does not run, and forgets it.
pub async fn forget(container: &GuestContainer, exec: &Rc<GuestProcess>) {
    let vm = &container.vm;
    if !vm.is_gone()
        && delete_in(container, exec).await.is_err()
        && let Err(e) = end_and_delete(container, exec).await
    {
        let name = container.name_of(exec);
        vm.doom.end(format!("the end of {name}: {e}"));
    }
    container.execs.borrow_mut().remove(&exec.name);
    container.gone.remember(exec);
}

/// Has the guest end an exec that runs although nobody knows it any more, as one whose Start was given
/// up, and delete it then.
///
/// # Errors
/// The guest's.
async fn end_and_delete(container: &GuestContainer, exec: &Rc<GuestProcess>) -> Result<()> {
    let vm = &container.vm;
    let request = KillRequest {
        id: container.name.clone(),
        exec_id: exec.name.clone(),
        signal: SIGKILL,
        all: false,
    };
    let ended = async {
        // It may have ended by now.
        let _ = vm.ask(&request, &Context::background()).await;
        exec.exited().await;
    };
    let what = format!("the exit of {}", container.name_of(exec));
    vm.in_time(&what, vm.patience, ended).await;
    match vm.is_gone() {
        true => Ok(()),
        false => delete_in(container, exec).await,
    }
}

/// Has the guest delete a process. It goes on without its caller, and it ends: the host has promised
/// that what has ended can be deleted.
async fn delete_in(container: &GuestContainer, process: &Rc<GuestProcess>) -> Result<()> {
    let vm = &container.vm;
    let request = DeleteRequest {
        id: container.name.clone(),
        exec_id: process.name.clone(),
    };
    let is_second = process.deleting.replace(true);
    let may_be_gone = process.may_be_gone.get();
    let is_there = process.added.get() && !is_second && !may_be_gone;
    let name = container.name_of(process);
    let deleted = delete_until_done(container, process, &request, is_there);
    // The guest may wait for output itself.
    let what = format!("the end of {name}");
    match vm.in_time(&what, vm.patience + CLOSE, deleted).await {
        Some(Err(status))
            if status.code == Code::NotFound && (!process.added.get() || may_be_gone) =>
        {
            Ok(())
        }
        Some(Err(status))
            if status.code == Code::NotFound
                && !process.is_init()
                && container.init.deleting.get() =>
        {
            Ok(())
        }
        Some(Err(status)) if !vm.is_gone() && !vm.doom.is_sealed() => {
            process.deleting.set(is_second);
            Err(status.into())
        }
        Some(Err(_)) => {
            vm.gone().await;
            Ok(())
        }
        Some(Ok(_)) | None => Ok(()),
    }
}

/// Asks the guest to delete a process again and again, once that has ended; then waits for what it owes
/// after that. A guest that does not know a process that is there has broken its word.
async fn delete_until_done(
    container: &GuestContainer,
    process: &Rc<GuestProcess>,
    request: &DeleteRequest,
    is_there: bool,
) -> std::result::Result<DeleteResponse, Status> {
    let (vm, name) = (&container.vm, container.name_of(process));
    let whole = Context::background();
    let mut answer = vm.ask(request, &whole).await;
    while let Err(status) = &answer
        && process.exit().is_some()
        && status.code != Code::NotFound
    {
        let why = word::line(&status.message);
        log::warn!("{name}: Delete, which must be, is refused: {why:?}");
        tokio::time::sleep(AGAIN).await;
        answer = vm.ask(request, &whole).await;
    }
    match &answer {
        Ok(answer) if process.runs.get() || word::tells_exit(answer) => process.exited().await,
        // With its container an exec goes, too.
        Err(status)
            if status.code == Code::NotFound
                && is_there
                && (process.is_init() || !container.init.deleting.get()) =>
        {
            vm.doom
                .broke_word(&format!("Delete of {name}, which is there: not found"));
        }
        _ => {}
    }
    if answer.is_ok() && process.is_init() {
        process.until(|_| container.forgotten.get()).await;
    }
    answer
}

/// From now on the guest owes the exit of this process.
pub fn owes_exit(container: &GuestContainer, process: &Rc<GuestProcess>) {
    if process.killed.replace(true) {
        return;
    }
    let (vm, process) = (Rc::clone(&container.vm), Rc::clone(process));
    let what = format!("the exit of {}", container.name_of(&process));
    tokio::task::spawn_local(async move {
        vm.in_time(&what, vm.patience, process.exited()).await;
    });
}
