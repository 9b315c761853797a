// SPDX-License-Identifier: Apache-2.0
//! The Sandbox API: one short method per call.

use super::{Phase, Sandbox, timestamp};
use crate::overhead;
use crate::runtime::{Engine, Service};
use crate::spec::Refusal;
use protos::cgroups::v2::{CpuStat, MemoryStat, Metrics};
use protos::sandbox::*;
use protos::ttrpc::{Answer, Context, Request};
use protos::types::{Metric, Platform};
use protos::vm::Metrics as Overhead;
use protos::{Code, Message, Status, any, api};
use serde_json::json;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;
use task::event::now;
use task::runtime::Runtime;

type Done<T> = Result<T, Status>;

/// What the guest's system is called, as containerd's images have it.
const OS: &str = "linux";
const ARCHITECTURE: &str = "amd64";

/// How long who has ended it may take to hang up: a client of Go's that finds the connection ended right
/// after an answer may take that for no answer (ttrpc client.go).
const HANG_UP: Duration = Duration::from_secs(1);

/// The one sandbox of a shim.
pub struct Sandboxes(Rc<Service>);

impl Sandboxes {
    pub fn new(service: Rc<Service>) -> Self {
        Self(service)
    }

    fn engine(&self) -> &Rc<Engine> {
        self.0.engine()
    }

    /// # Errors
    /// NotFound.
    fn find(&self, id: &str) -> Done<Rc<Sandbox>> {
        let sandbox = self.engine().runtime.sandbox.borrow().clone();
        let found = sandbox.filter(|sandbox| sandbox.id() == id);
        let none = || Status::new(Code::NotFound, format!("sandbox {id}: not found"));
        found.ok_or_else(none)
    }

    /// One whose VM is there.
    ///
    /// # Errors
    /// NotFound, or FailedPrecondition.
    fn ready(&self, id: &str) -> Done<Rc<Sandbox>> {
        let sandbox = self.find(id)?;
        let ready = sandbox.is_ready();
        ready.map_err(|why| Status::new(Code::FailedPrecondition, why))?;
        Ok(sandbox)
    }

    /// Whether there is a sandbox, or a container.
    fn is_used(&self) -> bool {
        let guest = &self.engine().runtime;
        guest.is_held() || !guest.containers.borrow().is_empty()
    }
}

impl api::sandbox::Sandbox for Sandboxes {
    type Error = Status;

    async fn create(
        self: &Rc<Self>,
        request: CreateSandboxRequest,
        _: &Context,
    ) -> Done<CreateSandboxResponse> {
        let sandbox = Rc::new(Sandbox::new(request).map_err(refused)?);
        let guest = &self.engine().runtime;
        if self.is_used() {
            let text = format!("sandbox {}: the shim has one, or a container", sandbox.id());
            return Err(Status::new(Code::AlreadyExists, text));
        }
        guest.sandbox.replace(Some(Rc::clone(&sandbox)));
        if let Err(why) = sandbox.write_files().await {
            guest.sandbox.replace(None);
            return Err(Status::new(Code::Unknown, why));
        }
        Ok(CreateSandboxResponse {})
    }

    async fn start(
        self: &Rc<Self>,
        request: StartSandboxRequest,
        context: &Context,
    ) -> Done<StartSandboxResponse> {
        let sandbox = self.find(&request.sandbox_id)?;
        let (pid, since) = sandbox.start(self.engine(), context).await?;
        Ok(StartSandboxResponse {
            pid,
            created_at: Some(timestamp(since)),
            spec: None,
        })
    }

    async fn platform(
        self: &Rc<Self>,
        request: PlatformRequest,
        _: &Context,
    ) -> Done<PlatformResponse> {
        self.find(&request.sandbox_id)?;
        let platform = Some(Platform {
            os: OS.into(),
            architecture: ARCHITECTURE.into(),
            ..Default::default()
        });
        Ok(PlatformResponse { platform })
    }

    /// A guest has as long as it ever has to end by itself; `timeout_secs` is for its containers, who
    /// were told to end before.
    async fn stop(
        self: &Rc<Self>,
        request: StopSandboxRequest,
        _: &Context,
    ) -> Done<StopSandboxResponse> {
        let sandbox = self.find(&request.sandbox_id)?;
        sandbox.stop(self.engine()).await;
        Ok(StopSandboxResponse {})
    }

    async fn wait(
        self: &Rc<Self>,
        request: WaitSandboxRequest,
        context: &Context,
    ) -> Done<WaitSandboxResponse> {
        let sandbox = self.find(&request.sandbox_id)?;
        let (exit_status, at) = sandbox.exited(context).await?;
        Ok(WaitSandboxResponse {
            exit_status,
            exited_at: Some(timestamp(at)),
        })
    }

    async fn status(
        self: &Rc<Self>,
        request: SandboxStatusRequest,
        _: &Context,
    ) -> Done<SandboxStatusResponse> {
        let sandbox = self.find(&request.sandbox_id)?;
        let (pid, since, at) = match sandbox.phase() {
            Phase::Created | Phase::Starting => (0, None, None),
            Phase::Ready { pid, since } => (pid, Some(since), None),
            Phase::Stopped { pid, since, at, .. } => (pid, since, Some(at)),
        };
        // CRI's words.
        let state = match sandbox.is_ready() {
            Ok(()) => "SANDBOX_READY",
            Err(_) => "SANDBOX_NOTREADY",
        };
        let info = request.verbose.then(|| {
            let text = json!({"pid": pid, "sandboxID": sandbox.id(), "state": state});
            ("info".to_owned(), text.to_string())
        });
        Ok(SandboxStatusResponse {
            sandbox_id: request.sandbox_id,
            pid,
            state: state.into(),
            info: info.into_iter().collect(),
            created_at: since.map(timestamp),
            exited_at: at.map(timestamp),
            extra: None,
        })
    }

    /// The guest is not asked: what hangs in it is none of the sandbox's.
    async fn ping(self: &Rc<Self>, request: PingRequest, _: &Context) -> Done<PingResponse> {
        self.ready(&request.sandbox_id)?;
        Ok(PingResponse {})
    }

    /// Also of a sandbox that could not be made: then the shim is there for nothing.
    async fn shutdown(
        self: &Rc<Self>,
        request: ShutdownSandboxRequest,
        context: &Context,
    ) -> Done<ShutdownSandboxResponse> {
        if self.is_used() {
            let sandbox = self.find(&request.sandbox_id)?;
            sandbox.stop(self.engine()).await;
        }
        let (service, caller) = (Rc::clone(&self.0), context.clone());
        tokio::task::spawn_local(async move {
            let _ = tokio::time::timeout(HANG_UP, caller.cancelled()).await;
            service.is_over();
        });
        Ok(ShutdownSandboxResponse {})
    }

    async fn metrics(
        self: &Rc<Self>,
        request: SandboxMetricsRequest,
        _: &Context,
    ) -> Done<SandboxMetricsResponse> {
        self.ready(&request.sandbox_id)?;
        let vm = self.engine().runtime.vm.borrow().clone();
        let gone = || Status::new(Code::FailedPrecondition, "the VM is gone");
        let vm = vm.ok_or_else(gone)?;
        let host = overhead::host(&vm).await;
        let processes = [&host.vmm, &host.files, &host.shim];
        let processes = processes.into_iter().flatten();
        let (memory, cpu) = processes.fold((0, 0), |(memory, cpu), process| {
            (memory + process.memory, cpu + process.cpu_usec)
        });
        let mut data = any::pack(&Metrics {
            cpu: Some(CpuStat {
                usage_usec: cpu,
                ..Default::default()
            }),
            memory: Some(MemoryStat {
                usage: memory,
                ..Default::default()
            }),
            ..Default::default()
        });
        let host = Some(host);
        data.value.extend(Overhead { host }.encode_to_vec());
        let metrics = Metric {
            timestamp: Some(now()),
            id: request.sandbox_id,
            data: Some(data),
        };
        Ok(SandboxMetricsResponse {
            metrics: Some(metrics),
        })
    }
}

impl protos::ttrpc::Service for Sandboxes {
    fn call(self: Rc<Self>, request: Request) -> Pin<Box<dyn Future<Output = Answer>>> {
        api::sandbox::serve(self, request)
    }

    fn only_waits(&self, method: &str) -> bool {
        api::sandbox::only_waits(method)
    }
}

fn refused(refusal: Refusal) -> Status {
    let code = match refusal {
        Refusal::Broken(_) => Code::InvalidArgument,
        Refusal::Unimplemented(_) => Code::Unimplemented,
    };
    Status::new(code, refusal.to_string())
}
