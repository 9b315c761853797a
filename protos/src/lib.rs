// SPDX-License-Identifier: Apache-2.0
//! The wire: containerd's messages as Rust types, and ttrpc to carry them.
//!
//! The types are generated from `proto/` (see `proto/SOURCE`) into `generated/`. The v2 and the
//! v3 Task API share their messages byte for byte, so [`task`] serves both;
//! only [`service::TASK_V2`] and [`service::TASK_V3`] differ.

pub mod any;
pub mod api;
pub mod mux;
pub mod places;
pub mod status;
pub mod text;
pub mod topic;
pub mod ttrpc;

mod generated {
    #![allow(clippy::all, reason = "generated code")]
    include!("../generated/api.rs");
}

pub use generated::containerd::events;
pub use generated::containerd::runc::v1 as runc;
pub use generated::containerd::runtime::bootstrap::v1 as bootstrap;
pub use generated::containerd::runtime::sandbox::v1 as sandbox;
pub use generated::containerd::services::events::ttrpc::v1 as events_service;
pub use generated::containerd::task::v3 as task;
pub use generated::containerd::types;
pub use generated::containerd::v1::types as task_types;
pub use generated::dunnage::guest::v1 as guest;
pub use generated::dunnage::shim::v1 as operator;
pub use generated::dunnage::vm::v1 as vm;
pub use generated::io::containerd::cgroups;
pub use generated::runtime::v1 as cri;
pub use generated::runtimeoptions::v1 as runtimeoptions;
/// The messages of containerd's gRPC services.
pub mod services {
    pub use super::generated::containerd::services::{
        containers, events, introspection, leases, namespaces, tasks, version,
    };
    pub use super::generated::dunnage;
    pub use super::generated::grpc::health;
}
pub use prost::{DecodeError, Message, Name};
pub use prost_types::{Any, FieldMask, Timestamp};
pub use status::{Code, Status};

/// Full names of the services a shim serves or calls.
pub mod service {
    pub const TASK_V2: &str = "containerd.task.v2.Task";
    pub const TASK_V3: &str = "containerd.task.v3.Task";
    pub const SANDBOX: &str = "containerd.runtime.sandbox.v1.Sandbox";
    pub const GUEST: &str = "dunnage.guest.v1.Guest";
    pub const DEBUG: &str = "dunnage.vm.v1.Debug";
    pub const INSPECT: &str = "dunnage.shim.v1.Inspect";
    pub const UPGRADE: &str = "dunnage.shim.v1.Upgrade";
    pub const EVENTS: &str = "containerd.services.events.ttrpc.v1.Events";
}
