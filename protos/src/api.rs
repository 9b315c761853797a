// SPDX-License-Identifier: Apache-2.0
//! The services that are spoken here over ttrpc, a table each: who serves one implements its trait,
//! who asks gives a request to [`Client::call`](crate::ttrpc::Client::call).

use crate::service;
use crate::ttrpc::Call;

/// The Task API: what containerd asks of a shim, and a shim of its guest (contract T).
pub mod task {
    use super::prelude::*;
    use crate::task::*;

    api! {
        /// The Task API, v2 and v3 alike.
        pub trait Task of service::TASK_V3;
        "State" state(StateRequest, id, exec_id) -> StateResponse;
        "Create" create(CreateTaskRequest, id) -> CreateTaskResponse;
        "Start" start(StartRequest, id, exec_id) -> StartResponse;
        "Delete" delete(DeleteRequest, id, exec_id) -> DeleteResponse;
        "Pids" pids(PidsRequest, id) -> PidsResponse;
        "Pause" pause(PauseRequest, id) -> ();
        "Resume" resume(ResumeRequest, id) -> ();
        "Checkpoint" checkpoint(CheckpointTaskRequest, id) -> ();
        "Kill" kill(KillRequest, id, exec_id, signal) -> ();
        "Exec" exec(ExecProcessRequest, id, exec_id) -> ();
        "ResizePty" resize_pty(ResizePtyRequest, id, exec_id) -> ();
        "CloseIO" close_io(CloseIoRequest, id, exec_id) -> ();
        "Update" update(UpdateTaskRequest, id) -> ();
        "Wait" wait(WaitRequest, id, exec_id) -> WaitResponse;
        "Stats" stats(StatsRequest, id) -> StatsResponse;
        "Connect" connect(ConnectRequest, id) -> ConnectResponse;
        "Shutdown" shutdown(ShutdownRequest, id) -> ();
    }

    /// True if the method only waits: see [`Service::only_waits`](crate::ttrpc::Service::only_waits).
    pub fn only_waits(method: &str) -> bool {
        method == WaitRequest::METHOD
    }
}

/// What containerd asks of a shim whose sandbox is there without a container (contract S).
pub mod sandbox {
    use super::prelude::*;
    use crate::sandbox::*;

    api! {
        /// The Sandbox API.
        pub trait Sandbox of service::SANDBOX;
        "CreateSandbox" create(CreateSandboxRequest, sandbox_id) -> CreateSandboxResponse;
        "StartSandbox" start(StartSandboxRequest, sandbox_id) -> StartSandboxResponse;
        "Platform" platform(PlatformRequest, sandbox_id) -> PlatformResponse;
        "StopSandbox" stop(StopSandboxRequest, sandbox_id) -> StopSandboxResponse;
        "WaitSandbox" wait(WaitSandboxRequest, sandbox_id) -> WaitSandboxResponse;
        "SandboxStatus" status(SandboxStatusRequest, sandbox_id) -> SandboxStatusResponse;
        "PingSandbox" ping(PingRequest, sandbox_id) -> PingResponse;
        "ShutdownSandbox" shutdown(ShutdownSandboxRequest, sandbox_id) -> ShutdownSandboxResponse;
        "SandboxMetrics" metrics(SandboxMetricsRequest, sandbox_id) -> SandboxMetricsResponse;
    }

    /// True if the method only waits: see [`Service::only_waits`](crate::ttrpc::Service::only_waits).
    pub fn only_waits(method: &str) -> bool {
        method == WaitSandboxRequest::METHOD
    }
}

/// What the VM shim asks of the agent in its VM, beside the Task API.
pub mod guest {
    use super::prelude::*;
    use crate::guest::*;

    api! {
        /// The machine that containers are in.
        pub trait Guest of service::GUEST;
        "Configure" configure(ConfigureRequest) -> ConfigureResponse;
        "PutBundle" put_bundle(PutBundleRequest, id) -> PutBundleResponse;
        "Dial" dial(DialRequest) -> Empty;
        "Listen" listen(ListenRequest) -> Empty;
        "Run" run(RunRequest) -> RunResponse;
        "Mirror" mirror(MirrorRequest) -> Empty;
        "Forget" forget(ForgetRequest) -> Empty;
        "GetTime" get_time(GetTimeRequest) -> TimeResponse;
        "StepTime" step_time(StepTimeRequest) -> Empty;
        "PowerOff" power_off(PowerOffRequest) -> Empty;
    }
}

/// What an operator asks of a VM's shim.
pub mod debug {
    use super::prelude::*;
    use crate::vm::*;

    api! {
        /// A VM, from the host's side.
        pub trait Debug of service::DEBUG;
        "Console" console(ConsoleRequest) -> ConsoleResponse;
        "Exec" exec(ExecRequest, program) -> ExecResponse;
    }

    /// True if the method only waits: see [`Service::only_waits`](crate::ttrpc::Service::only_waits).
    pub fn only_waits(method: &str) -> bool {
        method == ConsoleRequest::METHOD
    }
}

impl Call for crate::operator::InspectRequest {
    type Answer = crate::operator::InspectResponse;
    const SERVICE: &'static str = service::INSPECT;
    const METHOD: &'static str = "Inspect";
}

impl Call for crate::operator::UpgradeRequest {
    type Answer = crate::operator::UpgradeResponse;
    const SERVICE: &'static str = service::UPGRADE;
    const METHOD: &'static str = "Upgrade";
}

/// Where shims publish their events (contract N).
pub mod events {
    use super::prelude::*;
    use crate::events_service::ForwardRequest;

    api! {
        /// Takes events of tasks.
        pub trait Events of service::EVENTS;
        "Forward" forward(ForwardRequest) -> ();
    }
}

/// What [`api!`](crate::ttrpc::api) writes needs these.
mod prelude {
    pub(super) use crate::ttrpc::{Answer, Call, Context, Request, api, decode};
    pub(super) use crate::{Status, service};
    pub(super) use prost::Message;
    pub(super) use std::future::Future;
    pub(super) use std::pin::Pin;
    pub(super) use std::rc::Rc;
}
