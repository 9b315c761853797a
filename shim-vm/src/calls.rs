//! The calls that are the guest's to do: asked of it, and answered without what is only its own.

use crate::container::{Container, Process};
use crate::limits::Limits;
use crate::overhead;
use crate::service::{Result, Service, unimplemented, unknown};
use crate::spec::take_what_is_the_hosts;
use protos::task::*;
use protos::task_types::ProcessInfo;
use protos::ttrpc::{Call, Context};
use protos::{Any, Code, Status, any, cgroups, runc};
use serde_json::Value;
use std::rc::Rc;

impl Service {
    /// Each process in the VM is, to the host, the VM's.
    pub(crate) async fn pids(
        &self,
        request: PidsRequest,
        context: &Context,
    ) -> Result<PidsResponse> {
        let container = self.find(&request.id)?;
        let host = container.vm.pid();
        let mut processes = vec![ProcessInfo {
            pid: host,
            info: None,
        }];
        if !container.vm.is_gone() {
            let guest = self
                .ask(&container, &container.init, &request, context)
                .await?;
            let details = |info: &Any| any::unpack::<runc::ProcessDetails>(info)?.ok();
            let execs = guest.processes.iter().filter_map(|process| {
                let details = details(process.info.as_ref()?)?;
                let info = Some(any::pack(&details));
                Some(ProcessInfo { pid: host, info })
            });
            processes.extend(execs);
        }
        Ok(PidsResponse { processes })
    }

    pub(crate) async fn pause(&self, request: PauseRequest, context: &Context) -> Result<()> {
        let container = self.find(&request.id)?;
        self.pass(&container, &container.init, &request, context)
            .await
    }

    pub(crate) async fn resume(&self, request: ResumeRequest, context: &Context) -> Result<()> {
        let container = self.find(&request.id)?;
        self.pass(&container, &container.init, &request, context)
            .await
    }

    pub(crate) async fn update(&self, request: UpdateTaskRequest, context: &Context) -> Result<()> {
        let container = self.find(&request.id)?;
        let mut resources = request.resources;
        // What is no JSON the guest refuses.
        let mut limits = None;
        if let Some(any) = &mut resources
            && let Ok(mut json) = task::json::read::<Value>(&any.value)
        {
            let pod = &container.vm.pod;
            let read = Limits::of(&json).and_then(|update| pod.updated(&container.id, &update));
            limits = Some(read.map_err(|why| Status::new(Code::InvalidArgument, why))?);
            if take_what_is_the_hosts(&mut json) {
                any.value = json.to_string().into_bytes();
            }
        }
        let asked = UpdateTaskRequest {
            id: request.id,
            resources,
            ..Default::default()
        };
        self.pass(&container, &container.init, &asked, context)
            .await?;
        let Some(limits) = limits else {
            return Ok(());
        };
        let set = container.vm.pod.update(&container.id, limits).await;
        set.map_err(|why| unknown(&format!("limits of the VM: {why}")))
    }

    pub(crate) async fn resize_pty(
        &self,
        request: ResizePtyRequest,
        context: &Context,
    ) -> Result<()> {
        let (container, process) = self.find_process(&request.id, &request.exec_id)?;
        self.pass(&container, &process, &request, context).await
    }

    /// The guest's process sees it in its stream.
    pub(crate) async fn close_io(&self, request: CloseIoRequest, _: &Context) -> Result<()> {
        let container = self.find(&request.id)?;
        let process = container.process(&request.exec_id);
        // T2: here, and only here, an unknown exec is code Unknown.
        let text = || {
            unknown(&format!(
                "process does not exist {}: not found",
                request.exec_id
            ))
        };
        process.ok_or_else(text)?.close_stdin();
        Ok(())
    }

    pub(crate) async fn stats(
        &self,
        request: StatsRequest,
        context: &Context,
    ) -> Result<StatsResponse> {
        let container = self.find(&request.id)?;
        self.alive(&container)?;
        let guest = self
            .ask(&container, &container.init, &request, context)
            .await?;
        let metrics = guest
            .stats
            .as_ref()
            .and_then(any::unpack::<cgroups::v2::Metrics>);
        match metrics {
            Some(Ok(metrics)) => {
                let mut stats = any::pack(&metrics);
                stats.value.extend(overhead::of(&container.vm).await);
                Ok(StatsResponse { stats: Some(stats) })
            }
            _ => Err(unknown("the guest's figures are none of cgroup v2")),
        }
    }

    pub(crate) async fn checkpoint(
        &self,
        request: CheckpointTaskRequest,
        _: &Context,
    ) -> Result<()> {
        self.find(&request.id)?;
        Err(unimplemented("checkpoint of a container in a VM"))
    }

    pub(crate) async fn pass<C: Call>(
        &self,
        container: &Rc<Container>,
        process: &Rc<Process>,
        request: &C,
        context: &Context,
    ) -> Result<C::Answer> {
        self.alive(container)?;
        self.ask(container, process, request, context).await
    }

    pub(crate) fn alive(&self, container: &Container) -> Result<()> {
        if container.vm.is_gone() {
            let text = format!(
                "the VM of container {} is gone: failed precondition",
                container.id
            );
            return Err(Status::new(Code::FailedPrecondition, text));
        }
        Ok(())
    }
}
