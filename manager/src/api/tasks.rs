// SPDX-License-Identifier: Apache-2.0
//! The Tasks service: most methods go on to the shim.

use super::metrics::metrics;
use super::process::{get, list, wait};
use super::service;
use crate::failure::{Failure, exists, invalid, unimplemented};
use crate::health;
use crate::manager::Manager;
use crate::names::{Key, check_id};
use crate::tasks::Task;
use protos::runc::CheckpointOptions;
use protos::services::tasks::v1::*;
use protos::task_types::ProcessInfo;
use protos::{any, task as shim};
use std::rc::Rc;
use task::ProcessId;

service! {
    crate::services::containerd::services::tasks::v1::tasks_server::Tasks,
    namespaced: true;
    create(CreateTaskRequest) -> CreateTaskResponse;
    start(StartRequest) -> StartResponse;
    delete(DeleteTaskRequest) -> DeleteResponse;
    delete_process(DeleteProcessRequest) -> DeleteResponse;
    get(GetRequest) -> GetResponse;
    list(ListTasksRequest) -> ListTasksResponse;
    kill(KillRequest) -> ();
    exec(ExecProcessRequest) -> ();
    resize_pty(ResizePtyRequest) -> ();
    close_io(CloseIoRequest) -> ();
    pause(PauseTaskRequest) -> ();
    resume(ResumeTaskRequest) -> ();
    list_pids(ListPidsRequest) -> ListPidsResponse;
    checkpoint(CheckpointTaskRequest) -> CheckpointTaskResponse;
    update(UpdateTaskRequest) -> ();
    metrics(MetricsRequest) -> MetricsResponse;
    wait(WaitRequest) -> WaitResponse, drops: true;
}

/// The task, of a container that has a record (plugins/services/tasks/local.go). The record is read
/// once, so that a task can be killed whatever its disk does.
pub(super) async fn find(
    manager: &Manager,
    namespace: &str,
    id: &str,
) -> Result<Rc<Task>, Failure> {
    check_id(id)?;
    let key = Key::new(namespace, id);
    if let Ok(task) = manager.tasks.get(&key)
        && task.has_record.get()
    {
        return Ok(task);
    }
    manager.store.container(namespace, id).await?;
    let task = manager.tasks.get(&key)?;
    task.has_record.set(true);
    Ok(task)
}

async fn create(
    manager: Rc<Manager>,
    namespace: String,
    request: CreateTaskRequest,
) -> Result<CreateTaskResponse, Failure> {
    check_id(&request.container_id)?;
    let container = manager.store.container(&namespace, &request.container_id);
    let container = container.await?;
    let checkpoint = request.checkpoint.as_ref();
    if checkpoint.is_some_and(|checkpoint| !checkpoint.digest.is_empty()) {
        return Err(unimplemented("restore from a checkpoint image"));
    }
    if !request.task_api_address.is_empty() {
        return Err(unimplemented("task_api_address: a task without a shim"));
    }
    let container_id = request.container_id.clone();
    let pid = manager.create_task(&namespace, &container, request).await?;
    Ok(CreateTaskResponse { container_id, pid })
}

async fn start(
    manager: Rc<Manager>,
    namespace: String,
    request: StartRequest,
) -> Result<StartResponse, Failure> {
    let task = find(&manager, &namespace, &request.container_id).await?;
    let process = ProcessId::in_request(&request.exec_id);
    let pid = manager.start_task(task.key(), &process).await?;
    Ok(StartResponse { pid })
}

async fn delete(
    manager: Rc<Manager>,
    namespace: String,
    request: DeleteTaskRequest,
) -> Result<DeleteResponse, Failure> {
    let task = find(&manager, &namespace, &request.container_id).await?;
    let deleted = manager.delete_task(task.key()).await?;
    Ok(DeleteResponse {
        id: request.container_id,
        pid: deleted.pid,
        exit_status: deleted.exit_status,
        exited_at: deleted.exited_at,
    })
}

async fn delete_process(
    manager: Rc<Manager>,
    namespace: String,
    request: DeleteProcessRequest,
) -> Result<DeleteResponse, Failure> {
    let exec = ProcessId::in_request(&request.exec_id);
    if exec == ProcessId::Init {
        return Err(invalid("exec id cannot be empty"));
    }
    let task = find(&manager, &namespace, &request.container_id).await?;
    let ask = shim::DeleteRequest {
        id: request.container_id,
        exec_id: request.exec_id.clone(),
    };
    let deleted = manager.ask(&task, &ask).await?;
    manager.intake.forget_exec(task.key(), &exec);
    manager.intake.settled().await;
    Ok(DeleteResponse {
        id: request.exec_id,
        pid: deleted.pid,
        exit_status: deleted.exit_status,
        exited_at: deleted.exited_at,
    })
}

async fn kill(
    manager: Rc<Manager>,
    namespace: String,
    request: KillRequest,
) -> Result<(), Failure> {
    let task = find(&manager, &namespace, &request.container_id).await?;
    if task.shim().is_none() {
        let process = ProcessId::in_request(&request.exec_id);
        return manager.kill_orphan(&task, &process, request.signal);
    }
    let ask = shim::KillRequest {
        id: request.container_id,
        exec_id: request.exec_id,
        signal: request.signal,
        all: request.all,
    };
    manager.ask(&task, &ask).await
}

async fn exec(
    manager: Rc<Manager>,
    namespace: String,
    request: ExecProcessRequest,
) -> Result<(), Failure> {
    if request.exec_id.is_empty() {
        return Err(invalid("exec id cannot be empty"));
    }
    check_id(&request.exec_id)?;
    // Its exit could not be told from init's, whatever shim it has, nor from that of a health check.
    if request.exec_id == request.container_id || request.exec_id == health::ID {
        return Err(exists(format!("id {}", request.exec_id)));
    }
    let task = find(&manager, &namespace, &request.container_id).await?;
    let ask = shim::ExecProcessRequest {
        id: request.container_id,
        exec_id: request.exec_id,
        terminal: request.terminal,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        spec: request.spec,
    };
    manager.ask(&task, &ask).await
}

async fn resize_pty(
    manager: Rc<Manager>,
    namespace: String,
    request: ResizePtyRequest,
) -> Result<(), Failure> {
    let task = find(&manager, &namespace, &request.container_id).await?;
    let ask = shim::ResizePtyRequest {
        id: request.container_id,
        exec_id: request.exec_id,
        width: request.width,
        height: request.height,
    };
    manager.ask(&task, &ask).await
}

async fn close_io(
    manager: Rc<Manager>,
    namespace: String,
    request: CloseIoRequest,
) -> Result<(), Failure> {
    let task = find(&manager, &namespace, &request.container_id).await?;
    let ask = shim::CloseIoRequest {
        id: request.container_id,
        exec_id: request.exec_id,
        stdin: request.stdin,
    };
    manager.ask(&task, &ask).await
}

async fn pause(
    manager: Rc<Manager>,
    namespace: String,
    request: PauseTaskRequest,
) -> Result<(), Failure> {
    let task = find(&manager, &namespace, &request.container_id).await?;
    let ask = shim::PauseRequest {
        id: request.container_id,
    };
    manager.ask(&task, &ask).await
}

async fn resume(
    manager: Rc<Manager>,
    namespace: String,
    request: ResumeTaskRequest,
) -> Result<(), Failure> {
    let task = find(&manager, &namespace, &request.container_id).await?;
    let ask = shim::ResumeRequest {
        id: request.container_id,
    };
    manager.ask(&task, &ask).await
}

async fn list_pids(
    manager: Rc<Manager>,
    namespace: String,
    request: ListPidsRequest,
) -> Result<ListPidsResponse, Failure> {
    let task = find(&manager, &namespace, &request.container_id).await?;
    let ask = shim::PidsRequest {
        id: request.container_id,
    };
    let pids = manager.ask(&task, &ask).await?;
    let processes = pids.processes.into_iter().map(|process| ProcessInfo {
        pid: process.pid,
        info: process.info,
    });
    Ok(ListPidsResponse {
        processes: processes.collect(),
    })
}

async fn checkpoint(
    manager: Rc<Manager>,
    namespace: String,
    request: CheckpointTaskRequest,
) -> Result<CheckpointTaskResponse, Failure> {
    let task = find(&manager, &namespace, &request.container_id).await?;
    let options = request
        .options
        .as_ref()
        .and_then(any::unpack::<CheckpointOptions>);
    let path = match options {
        Some(Ok(options)) => options.image_path,
        _ => String::new(),
    };
    if path.is_empty() {
        return Err(unimplemented("checkpoint to an image (give an image path)"));
    }
    let ask = shim::CheckpointTaskRequest {
        id: request.container_id,
        path,
        options: request.options,
    };
    manager.ask(&task, &ask).await?;
    Ok(CheckpointTaskResponse::default())
}

async fn update(
    manager: Rc<Manager>,
    namespace: String,
    request: UpdateTaskRequest,
) -> Result<(), Failure> {
    let task = find(&manager, &namespace, &request.container_id).await?;
    let ask = shim::UpdateTaskRequest {
        id: request.container_id,
        resources: request.resources,
        annotations: request.annotations,
    };
    manager.ask(&task, &ask).await
}
