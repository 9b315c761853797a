// SPDX-License-Identifier: Apache-2.0
//! The Task service as typed calls, one method per RPC.

use crate::shim::Shim;
use crate::wait;
use protos::ttrpc::{Call, CallError};
use protos::{Status, task};
use std::fmt::Debug;
use std::time::Duration;

pub type Result<T> = std::result::Result<T, CallError>;

/// The status a call was refused with.
///
/// # Panics
/// If it succeeded, or if the connection closed.
#[track_caller]
pub fn refused<T: Debug>(result: Result<T>) -> Status {
    match result {
        Err(CallError::Status(status)) => status,
        other => panic!("not a refusal: {other:?}"),
    }
}

impl Shim {
    /// Any call; the harness's own deadline is not told to the shim.
    pub async fn call<C: Call>(&self, request: &C) -> Result<C::Answer> {
        let call = self.client().call_as(self.service(), request, None);
        let what = format!("answer of {}", C::METHOD);
        wait::within(wait::DEADLINE * 2, &what, call).await
    }

    /// A call of a method that may not be there, with an empty request.
    pub async fn call_named(&self, method: &str) -> Result<()> {
        let client = self.client();
        let call = client.call_raw(self.service(), method, Vec::new(), &[], None);
        wait::soon("answer of a method", call).await.map(drop)
    }

    /// Any call, with a deadline that the shim is told.
    pub async fn call_for<C: Call>(&self, request: &C, timeout: Duration) -> Result<C::Answer> {
        self.client()
            .call_as(self.service(), request, Some(timeout))
            .await
    }

    pub async fn create(
        &self,
        request: task::CreateTaskRequest,
    ) -> Result<task::CreateTaskResponse> {
        let result = self.call(&request).await;
        if result.is_ok() {
            self.note_created(&request.id);
        }
        result
    }

    /// Starts init, or with an `exec` id that.
    pub async fn start(&self, id: &str, exec: &str) -> Result<task::StartResponse> {
        let (id, exec_id) = (id.to_owned(), exec.to_owned());
        self.call(&task::StartRequest { id, exec_id }).await
    }

    pub async fn exec(&self, request: task::ExecProcessRequest) -> Result<()> {
        self.call(&request).await
    }

    /// Adds an exec and starts it; its pid.
    pub async fn run(&self, request: task::ExecProcessRequest) -> u32 {
        let (id, exec) = (request.id.clone(), request.exec_id.clone());
        self.exec(request).await.expect("Exec");
        self.start(&id, &exec).await.expect("Start of an exec").pid
    }

    /// The pid of a container's init.
    pub async fn init(&self, id: &str) -> i32 {
        self.state(id, "").await.expect("State").pid as i32
    }

    pub async fn state(&self, id: &str, exec: &str) -> Result<task::StateResponse> {
        let (id, exec_id) = (id.to_owned(), exec.to_owned());
        self.call(&task::StateRequest { id, exec_id }).await
    }

    pub async fn kill(&self, id: &str, exec: &str, signal: i32, all: bool) -> Result<()> {
        let (id, exec_id) = (id.to_owned(), exec.to_owned());
        self.call(&task::KillRequest {
            id,
            exec_id,
            signal: signal as u32,
            all,
        })
        .await
    }

    pub async fn delete(&self, id: &str, exec: &str) -> Result<task::DeleteResponse> {
        let request = task::DeleteRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
        };
        let result = self.call(&request).await;
        if result.is_ok() && exec.is_empty() {
            self.note_deleted(id);
        }
        result
    }

    pub async fn wait(&self, id: &str, exec: &str) -> Result<task::WaitResponse> {
        let (id, exec_id) = (id.to_owned(), exec.to_owned());
        self.call(&task::WaitRequest { id, exec_id }).await
    }

    pub async fn pids(&self, id: &str) -> Result<task::PidsResponse> {
        self.call(&task::PidsRequest { id: id.to_owned() }).await
    }

    pub async fn pause(&self, id: &str) -> Result<()> {
        self.call(&task::PauseRequest { id: id.to_owned() }).await
    }

    pub async fn resume(&self, id: &str) -> Result<()> {
        self.call(&task::ResumeRequest { id: id.to_owned() }).await
    }

    pub async fn checkpoint(&self, request: task::CheckpointTaskRequest) -> Result<()> {
        self.call(&request).await
    }

    /// Updates the container's resources with `json`, sent as it is.
    pub async fn update(&self, id: &str, json: &str) -> Result<()> {
        let resources = protos::Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".to_owned(),
            value: json.as_bytes().to_vec(),
        };
        let (id, resources) = (id.to_owned(), Some(resources));
        let request = task::UpdateTaskRequest {
            id,
            resources,
            ..Default::default()
        };
        self.call(&request).await
    }

    pub async fn stats(&self, id: &str) -> Result<task::StatsResponse> {
        self.call(&task::StatsRequest { id: id.to_owned() }).await
    }

    pub async fn resize(&self, id: &str, exec: &str, width: u32, height: u32) -> Result<()> {
        let (id, exec_id) = (id.to_owned(), exec.to_owned());
        self.call(&task::ResizePtyRequest {
            id,
            exec_id,
            width,
            height,
        })
        .await
    }

    pub async fn close_io(&self, id: &str, exec: &str) -> Result<()> {
        let (id, exec_id) = (id.to_owned(), exec.to_owned());
        self.call(&task::CloseIoRequest {
            id,
            exec_id,
            stdin: true,
        })
        .await
    }

    pub async fn connect_call(&self, id: &str) -> Result<task::ConnectResponse> {
        self.call(&task::ConnectRequest { id: id.to_owned() }).await
    }

    pub async fn shutdown(&self, id: &str) -> Result<()> {
        self.call(&task::ShutdownRequest {
            id: id.to_owned(),
            now: false,
        })
        .await
    }
}
