// SPDX-License-Identifier: Apache-2.0
//! The Introspection, Version and Health services: who we are, and that we are well.

use super::service;
use crate::failure::{Failure, not_found, unimplemented};
use crate::filter::{Fields, Filters};
use crate::manager::Manager;
use protos::services::health::v1::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
};
use protos::services::introspection::v1::*;
use protos::services::version::v1::VersionResponse;
use protos::types::Platform;
use std::os::unix::fs::MetadataExt;
use std::rc::Rc;

service! {
    crate::services::containerd::services::introspection::v1::introspection_server::Introspection,
    namespaced: false;
    plugins(PluginsRequest) -> PluginsResponse;
    server(()) -> ServerResponse;
    plugin_info(PluginInfoRequest) -> PluginInfoResponse;
}

service! {
    crate::services::containerd::services::version::v1::version_server::Version,
    namespaced: false;
    version(()) -> VersionResponse;
}

service! {
    crate::services::grpc::health::v1::health_server::Health,
    namespaced: false;
    check(HealthCheckRequest) -> HealthCheckResponse;
}

/// What of containerd's plugins is here: type, id, capabilities.
const PLUGINS: &[(&str, &str, &[&str])] = &[
    ("io.containerd.grpc.v1", "containers", &[]),
    ("io.containerd.grpc.v1", "events", &[]),
    ("io.containerd.grpc.v1", "healthcheck", &[]),
    ("io.containerd.grpc.v1", "introspection", &[]),
    ("io.containerd.grpc.v1", "leases", &[]),
    ("io.containerd.grpc.v1", "namespaces", &[]),
    ("io.containerd.grpc.v1", "tasks", &[]),
    ("io.containerd.grpc.v1", "version", &[]),
    // nerdctl asks it for what `--restart` may say.
    (
        "io.containerd.internal.v1",
        "restart",
        &["no", "always", "on-failure", "unless-stopped"],
    ),
    (
        "io.containerd.monitor.container.v1",
        "restart",
        &["no", "always", "on-failure", "unless-stopped"],
    ),
    ("io.containerd.runtime.v2", "task", &[]),
];

impl Fields for Plugin {
    fn field(&self, path: &[&str]) -> Option<String> {
        match path {
            ["type"] => Some(self.r#type.clone()),
            ["id"] => Some(self.id.clone()),
            ["capabilities"] => Some(self.capabilities.join(",")).filter(|c| !c.is_empty()),
            _ => None,
        }
    }
}

async fn plugins(
    _: Rc<Manager>,
    _: String,
    request: PluginsRequest,
) -> Result<PluginsResponse, Failure> {
    let filters = Filters::parse(&request.filters)?;
    let platform = Platform {
        os: "linux".into(),
        architecture: architecture().into(),
        ..Default::default()
    };
    let plugins = PLUGINS.iter().map(|(kind, id, capabilities)| Plugin {
        r#type: (*kind).into(),
        id: (*id).into(),
        platforms: vec![platform.clone()],
        capabilities: capabilities.iter().map(|c| (*c).into()).collect(),
        ..Default::default()
    });
    Ok(PluginsResponse {
        plugins: plugins.filter(|plugin| filters.matches(plugin)).collect(),
    })
}

/// Go's name of this machine's.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

async fn server(manager: Rc<Manager>, _: String, (): ()) -> Result<ServerResponse, Failure> {
    let pid_namespace = std::fs::metadata("/proc/self/ns/pid").map_or(0, |it| it.ino());
    Ok(ServerResponse {
        uuid: manager.uuid.clone(),
        pid: std::process::id().into(),
        pidns: pid_namespace,
        deprecations: Vec::new(),
    })
}

async fn plugin_info(
    _: Rc<Manager>,
    _: String,
    request: PluginInfoRequest,
) -> Result<PluginInfoResponse, Failure> {
    let known = PLUGINS
        .iter()
        .any(|it| it.0 == request.r#type && it.1 == request.id);
    match known {
        true => Err(unimplemented("information about a plugin")),
        false => Err(not_found(format!(
            "plugin {}.{}",
            request.r#type, request.id
        ))),
    }
}

async fn version(_: Rc<Manager>, _: String, (): ()) -> Result<VersionResponse, Failure> {
    Ok(VersionResponse {
        version: crate::VERSION.into(),
        revision: crate::REVISION.into(),
    })
}

async fn check(
    _: Rc<Manager>,
    _: String,
    _: HealthCheckRequest,
) -> Result<HealthCheckResponse, Failure> {
    Ok(HealthCheckResponse {
        status: ServingStatus::Serving as i32,
    })
}
