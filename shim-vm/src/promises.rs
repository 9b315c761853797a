//! What the host promises of a container, whatever its guest does: SIGKILL ends it, and what has ended
//! can be deleted. If the guest does not see to that in time, the end of its VM does.

use crate::container::{CLOSE, Container, Exit, Process};
use crate::service::{Result, Service, not_found};
use crate::word;
use protos::Code;
use protos::events::TaskDelete;
use protos::task::{DeleteRequest, DeleteResponse, KillRequest};
use protos::ttrpc::Context;
use std::rc::Rc;
use std::time::Duration;
use task::event::Event;

const SIGKILL: u32 = 9;
/// How soon the guest is asked again for what must be done.
const AGAIN: Duration = Duration::from_millis(500);

impl Service {
    /// What SIGKILL does to init is the host's promise: it ends, by the guest's doing or with the VM.
    pub(crate) async fn kill(&self, request: KillRequest, context: &Context) -> Result<()> {
        let (container, process) = self.find_process(&request.id, &request.exec_id)?;
        if container.vm.is_gone() || process.exit().is_some() && !request.all {
            return Err(not_found("process already finished"));
        }
        let is_promise =
            request.signal == SIGKILL && request.exec_id.is_empty() && process.exit().is_none();
        let killed = self.pass(&container, &process, &request, context);
        if !is_promise {
            return killed.await;
        }
        owes_exit(&container, &process);
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
            why = context.cancelled() => Err(why),
            () = process.exited() => Ok(()),
        }
    }

    pub(crate) async fn delete(
        self: &Rc<Self>,
        request: DeleteRequest,
        _: &Context,
    ) -> Result<DeleteResponse> {
        let (container, process) = self.find_process(&request.id, &request.exec_id)?;
        let is_init = request.exec_id.is_empty();
        if !container.vm.is_gone() {
            self.delete_in(&container, &process, &request).await?;
        }
        if container.vm.is_gone() {
            self.lost(&container);
        }
        let exit = match process.exit() {
            Some(_) => process.ended().await,
            None => Exit::NONE,
        };
        process.close().await;
        process.deleted();
        if !is_init {
            container.execs.borrow_mut().remove(&request.exec_id);
            let answer = container.deleted(exit);
            let pid = if process.runs.get() { answer.pid } else { 0 };
            return Ok(DeleteResponse { pid, ..answer });
        }
        let execs = container.execs.take();
        for exec in execs.values() {
            exec.deleted();
            exec.close().await;
        }
        self.unmake(&request.id, false).await;
        container.run_poststop(&self.reaper).await;
        self.publish(Event::Delete(TaskDelete {
            container_id: request.id,
            pid: container.vm.pid(),
            exit_status: exit.status,
            exited_at: Some(exit.at),
            id: String::new(),
        }));
        Ok(container.deleted(exit))
    }

    /// Has the guest delete a process. It goes on without its caller, and it ends: the host has promised
    /// that what has ended can be deleted.
    async fn delete_in(
        &self,
        container: &Rc<Container>,
        process: &Rc<Process>,
        request: &DeleteRequest,
    ) -> Result<()> {
        let vm = &container.vm;
        let is_second = process.deleting.replace(true);
        let is_there = process.added.get() && !is_second;
        let name = container.name_of(process);
        let deleted = async {
            let whole = Context::background();
            let ask = || vm.ask(request, &whole);
            let mut answer = ask().await;
            while process.exit().is_some()
                && matches!(&answer, Err(status) if status.code != Code::NotFound)
            {
                let why = answer
                    .as_ref()
                    .err()
                    .map(|status| word::line(&status.message));
                log::warn!("{name}: Delete, which must be, is refused: {why:?}");
                tokio::time::sleep(AGAIN).await;
                answer = ask().await;
            }
            match &answer {
                Ok(answer) if process.runs.get() || word::tells_exit(answer) => {
                    process.exited().await;
                }
                Err(status) if status.code == Code::NotFound && is_there => {
                    vm.doom
                        .broke_word(&format!("Delete of {name}, which is there: not found"));
                }
                _ => {}
            }
            if answer.is_ok() && process.exec_id.is_empty() {
                process.until(|_| container.forgotten.get()).await;
            }
            answer
        };
        // The guest may wait for output itself.
        let output = if process.is_open() {
            CLOSE
        } else {
            Duration::ZERO
        };
        let what = format!("the end of {name}");
        match vm.in_time(&what, vm.patience + output, deleted).await {
            Some(Err(status)) if status.code == Code::NotFound && !process.added.get() => Ok(()),
            Some(Err(status)) if !vm.is_gone() && !vm.doom.is_told() => {
                process.deleting.set(is_second);
                Err(status)
            }
            Some(Err(_)) => {
                vm.gone().await;
                Ok(())
            }
            Some(Ok(_)) | None => Ok(()),
        }
    }
}

/// From now on the guest owes the exit of this process.
pub fn owes_exit(container: &Container, process: &Rc<Process>) {
    if process.killed.replace(true) {
        return;
    }
    let (vm, process) = (Rc::clone(&container.vm), Rc::clone(process));
    let what = format!("the exit of {}", container.name_of(&process));
    tokio::task::spawn_local(async move {
        vm.in_time(&what, vm.patience, process.exited()).await;
    });
}
