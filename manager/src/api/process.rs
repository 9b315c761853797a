// SPDX-License-Identifier: Apache-2.0
//! Get, List and Wait of the Tasks service: states, also of tasks whose shim is gone.

use super::tasks::find;
use crate::failure::{Failure, not_found};
use crate::manager::Manager;
use crate::tasks::Task;
use protos::Code;
use protos::services::tasks::v1::*;
use protos::task::{StateRequest, StateResponse, WaitRequest as ShimWait};
use protos::task_types::{Process, Status};
use std::rc::Rc;
use std::time::Duration;
use task::ProcessId;

/// How long a shim may take to tell its state (contract T5).
const TIMEOUT: Duration = Duration::from_secs(2);

pub(super) async fn get(
    manager: Rc<Manager>,
    namespace: String,
    request: GetRequest,
) -> Result<GetResponse, Failure> {
    let task = find(&manager, &namespace, &request.container_id).await?;
    let process = process(&manager, &task, &ProcessId::in_request(&request.exec_id)).await?;
    Ok(GetResponse {
        process: Some(process),
    })
}

pub(super) async fn list(
    manager: Rc<Manager>,
    namespace: String,
    _: ListTasksRequest,
) -> Result<ListTasksResponse, Failure> {
    let mut asked = Vec::new();
    for task in manager.tasks.of_namespace(&namespace) {
        let manager = Rc::clone(&manager);
        asked.push(tokio::task::spawn_local(async move {
            process(&manager, &task, &ProcessId::Init).await
        }));
    }
    let mut tasks = Vec::with_capacity(asked.len());
    for answer in asked {
        match answer.await {
            Ok(Ok(process)) => tasks.push(process),
            Ok(Err(e)) => log::debug!("list: {e}"),
            Err(_) => {}
        }
    }
    Ok(ListTasksResponse { tasks })
}

async fn process(manager: &Manager, task: &Task, id: &ProcessId) -> Result<Process, Failure> {
    let Some(shim) = task.shim() else {
        return orphan(manager, task, id);
    };
    let request = StateRequest {
        id: task.id().to_owned(),
        exec_id: id.exec_id().to_owned(),
    };
    let state: StateResponse = match shim.call(&request, Some(TIMEOUT)).await {
        Ok(state) => state,
        Err(e) if matches!(e.code, Code::NotFound | Code::Unavailable) => return Err(e),
        Err(e) => {
            log::error!("{}: state: {e}", task.key());
            StateResponse::default()
        }
    };
    Ok(Process {
        container_id: String::new(),
        id: id.name(task.id()).to_owned(),
        pid: state.pid,
        status: state.status,
        stdin: state.stdin,
        stdout: state.stdout,
        stderr: state.stderr,
        terminal: state.terminal,
        exit_status: state.exit_status,
        exited_at: state.exited_at,
    })
}

/// What we know of a process whose shim is gone.
fn orphan(manager: &Manager, task: &Task, id: &ProcessId) -> Result<Process, Failure> {
    let ledger = manager.intake.ledger();
    let known = ledger
        .facts(task.key())
        .and_then(|facts| facts.processes.get(id));
    let known = known.ok_or_else(|| unknown(id))?;
    let (status, exit_status, exited_at) = match &known.exit {
        Some(exit) => (Status::Stopped, exit.status, exit.at),
        None if known.started => (Status::Running, 0, None),
        None => (Status::Created, 0, None),
    };
    Ok(Process {
        id: id.name(task.id()).to_owned(),
        pid: known.pid,
        status: status as i32,
        exit_status,
        exited_at,
        ..Default::default()
    })
}

fn unknown(process: &ProcessId) -> Failure {
    not_found(format!("process {:?}", process.exec_id()))
}

pub(super) async fn wait(
    manager: Rc<Manager>,
    namespace: String,
    request: WaitRequest,
) -> Result<WaitResponse, Failure> {
    let task = find(&manager, &namespace, &request.container_id).await?;
    if let Some(shim) = task.shim() {
        let ask = ShimWait {
            id: request.container_id,
            exec_id: request.exec_id.clone(),
        };
        match shim.call(&ask, None).await {
            Ok(exit) => {
                return Ok(WaitResponse {
                    exit_status: exit.exit_status,
                    exited_at: exit.exited_at,
                });
            }
            // It died; the true status is being found out.
            Err(e) if e.code == Code::Unavailable => {}
            Err(e) => return Err(e),
        }
    }
    let key = task.key().clone();
    // A task that waits to be forgotten needs nobody to hold it.
    drop(task);
    let id = ProcessId::in_request(&request.exec_id);
    let is_known = {
        let ledger = manager.intake.ledger();
        let facts = ledger.facts(&key);
        facts.is_some_and(|facts| facts.processes.contains_key(&id))
    };
    if !is_known {
        return Err(unknown(&id));
    }
    let exit = manager.intake.exited(&key, &id).await;
    Ok(WaitResponse {
        exit_status: exit.status,
        exited_at: exit.at,
    })
}
