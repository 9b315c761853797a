// SPDX-License-Identifier: Apache-2.0
//! The calls of a kubelet, each with a deadline.

use super::api::*;
use super::{Cri, Pod, image};
use crate::containerd::DEADLINE;
use serde_json::Value;
use std::collections::HashMap;
use std::future::Future;
use tonic::{Response, Status};

impl Cri {
    /// Waits for the answer.
    #[track_caller]
    fn ask<T>(
        &self,
        what: &str,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Status> {
        let answer = async { tokio::time::timeout(DEADLINE, answer).await };
        match self.handle.block_on(answer) {
            Ok(answer) => answer.map(Response::into_inner),
            Err(_) => panic!("no answer to {what} within {DEADLINE:?}"),
        }
    }

    pub(super) fn status(&self) -> Result<RuntimeStatus, Status> {
        let mut client = self.runtime.clone();
        let status = self.ask("Status", client.status(StatusRequest::default()))?;
        Ok(status.status.unwrap_or_default())
    }

    pub(super) fn image(&self, name: &str) -> Result<Option<Image>, Status> {
        let mut client = self.images.clone();
        let request = ImageStatusRequest {
            image: Some(image(name)),
            ..Default::default()
        };
        Ok(self.ask("ImageStatus", client.image_status(request))?.image)
    }

    /// `handler` names a runtime of the configuration; empty means the default one.
    pub fn run_pod(&self, config: PodSandboxConfig, handler: &str) -> Result<Pod, Status> {
        let mut client = self.runtime.clone();
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: handler.to_owned(),
        };
        let answer = self.ask("RunPodSandbox", client.run_pod_sandbox(request))?;
        let id = answer.pod_sandbox_id;
        self.containerd.note(&id);
        Ok(Pod { id, config })
    }

    pub fn stop_pod(&self, id: &str) -> Result<(), Status> {
        let mut client = self.runtime.clone();
        let pod_sandbox_id = id.to_owned();
        let request = StopPodSandboxRequest { pod_sandbox_id };
        self.ask("StopPodSandbox", client.stop_pod_sandbox(request))?;
        Ok(())
    }

    pub fn remove_pod(&self, id: &str) -> Result<(), Status> {
        let mut client = self.runtime.clone();
        let pod_sandbox_id = id.to_owned();
        let request = RemovePodSandboxRequest { pod_sandbox_id };
        self.ask("RemovePodSandbox", client.remove_pod_sandbox(request))?;
        Ok(())
    }

    #[track_caller]
    pub fn pod_status(&self, pod: &Pod) -> PodSandboxStatus {
        self.pod_status_and_info(pod).0
    }

    #[track_caller]
    fn pod_status_and_info(&self, pod: &Pod) -> (PodSandboxStatus, Value) {
        let mut client = self.runtime.clone();
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: pod.id.clone(),
            verbose: true,
        };
        let answer = self.ask("PodSandboxStatus", client.pod_sandbox_status(request));
        let answer = answer.unwrap_or_else(|e| panic!("PodSandboxStatus: {e}"));
        (answer.status.expect("a status"), info(&answer.info))
    }

    /// The first process of the pod's pause container.
    #[track_caller]
    pub fn pause_of(&self, pod: &Pod) -> i32 {
        pid(&self.pod_status_and_info(pod).1)
    }

    /// The address of the pod.
    #[track_caller]
    pub fn address_of(&self, pod: &Pod) -> String {
        let network = self.pod_status(pod).network.expect("a network");
        assert_ne!(network.ip, "", "the pod has no address");
        network.ip
    }

    pub fn pods(&self) -> Vec<PodSandbox> {
        let mut client = self.runtime.clone();
        let answer = self.ask(
            "ListPodSandbox",
            client.list_pod_sandbox(ListPodSandboxRequest::default()),
        );
        answer
            .unwrap_or_else(|e| panic!("ListPodSandbox: {e}"))
            .items
    }

    #[track_caller]
    pub fn create(&self, pod: &Pod, config: ContainerConfig) -> String {
        self.try_create(pod, config)
            .unwrap_or_else(|e| panic!("CreateContainer: {e}"))
    }

    pub fn try_create(&self, pod: &Pod, config: ContainerConfig) -> Result<String, Status> {
        let mut client = self.runtime.clone();
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let answer = self.ask("CreateContainer", client.create_container(request))?;
        self.containerd.note(&answer.container_id);
        Ok(answer.container_id)
    }

    pub fn start_container(&self, id: &str) -> Result<(), Status> {
        let mut client = self.runtime.clone();
        let container_id = id.to_owned();
        let request = StartContainerRequest { container_id };
        self.ask("StartContainer", client.start_container(request))?;
        Ok(())
    }

    /// SIGTERM, and SIGKILL after `seconds`.
    #[track_caller]
    pub fn stop(&self, id: &str, seconds: i64) {
        let mut client = self.runtime.clone();
        let request = StopContainerRequest {
            container_id: id.to_owned(),
            timeout: seconds,
        };
        self.ask("StopContainer", client.stop_container(request))
            .unwrap_or_else(|e| panic!("StopContainer: {e}"));
    }

    #[track_caller]
    pub fn remove(&self, id: &str) {
        let mut client = self.runtime.clone();
        let container_id = id.to_owned();
        let request = RemoveContainerRequest { container_id };
        self.ask("RemoveContainer", client.remove_container(request))
            .unwrap_or_else(|e| panic!("RemoveContainer: {e}"));
    }

    pub fn containers(&self) -> Vec<Container> {
        let mut client = self.runtime.clone();
        let request = ListContainersRequest::default();
        let answer = self.ask("ListContainers", client.list_containers(request));
        answer
            .unwrap_or_else(|e| panic!("ListContainers: {e}"))
            .containers
    }

    #[track_caller]
    pub fn container_status(&self, id: &str) -> ContainerStatus {
        self.status_and_info(id).0
    }

    #[track_caller]
    fn status_and_info(&self, id: &str) -> (ContainerStatus, Value) {
        let mut client = self.runtime.clone();
        let request = ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: true,
        };
        let answer = self.ask("ContainerStatus", client.container_status(request));
        let answer = answer.unwrap_or_else(|e| panic!("ContainerStatus: {e}"));
        (answer.status.expect("a status"), info(&answer.info))
    }

    /// The first process of a running container.
    #[track_caller]
    pub fn pid_of(&self, id: &str) -> i32 {
        pid(&self.status_and_info(id).1)
    }

    #[track_caller]
    pub fn exec_sync(&self, id: &str, words: &[&str]) -> ExecSyncResponse {
        self.try_exec_sync(id, words, 0)
            .unwrap_or_else(|e| panic!("ExecSync {words:?}: {e}"))
    }

    /// Killed after `seconds`, unless that is 0.
    pub fn try_exec_sync(
        &self,
        id: &str,
        words: &[&str],
        seconds: i64,
    ) -> Result<ExecSyncResponse, Status> {
        let mut client = self.runtime.clone();
        let request = ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: words.iter().map(|&word| word.to_owned()).collect(),
            timeout: seconds,
        };
        self.ask("ExecSync", client.exec_sync(request))
    }

    /// Where to connect to for `request`.
    #[track_caller]
    pub(super) fn exec_url(&self, request: ExecRequest) -> String {
        let mut client = self.runtime.clone();
        let answer = self.ask("Exec", client.exec(request));
        answer.unwrap_or_else(|e| panic!("Exec: {e}")).url
    }

    /// Where to connect to for `request`.
    #[track_caller]
    pub(super) fn attach_url(&self, request: AttachRequest) -> String {
        let mut client = self.runtime.clone();
        let answer = self.ask("Attach", client.attach(request));
        answer.unwrap_or_else(|e| panic!("Attach: {e}")).url
    }

    /// Where to connect to for `request`.
    #[track_caller]
    pub(super) fn port_forward_url(&self, request: PortForwardRequest) -> String {
        let mut client = self.runtime.clone();
        let answer = self.ask("PortForward", client.port_forward(request));
        answer.unwrap_or_else(|e| panic!("PortForward: {e}")).url
    }

    #[track_caller]
    pub fn stats(&self, id: &str) -> ContainerStats {
        let mut client = self.runtime.clone();
        let container_id = id.to_owned();
        let request = ContainerStatsRequest { container_id };
        let answer = self.ask("ContainerStats", client.container_stats(request));
        let answer = answer.unwrap_or_else(|e| panic!("ContainerStats: {e}"));
        answer.stats.expect("stats")
    }

    #[track_caller]
    pub fn all_stats(&self) -> Vec<ContainerStats> {
        let mut client = self.runtime.clone();
        let request = ListContainerStatsRequest::default();
        let answer = self.ask("ListContainerStats", client.list_container_stats(request));
        answer
            .unwrap_or_else(|e| panic!("ListContainerStats: {e}"))
            .stats
    }

    #[track_caller]
    pub fn update(&self, id: &str, resources: LinuxContainerResources) {
        let mut client = self.runtime.clone();
        let request = UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(resources),
            ..Default::default()
        };
        self.ask(
            "UpdateContainerResources",
            client.update_container_resources(request),
        )
        .unwrap_or_else(|e| panic!("UpdateContainerResources: {e}"));
    }
}

/// What containerd adds to a verbose answer.
fn info(info: &HashMap<String, String>) -> Value {
    let text = info.get("info").map_or("null", String::as_str);
    serde_json::from_str(text).unwrap_or_else(|e| panic!("info {text}: {e}"))
}

#[track_caller]
fn pid(info: &Value) -> i32 {
    let pid = info["pid"].as_i64().unwrap_or_default() as i32;
    assert!(pid > 0, "no pid in {info}");
    pid
}
