// SPDX-License-Identifier: Apache-2.0
//! With the feature `generate`, makes `generated/`: gRPC servers and clients of containerd's services,
//! whose messages are `protos`'. As in `protos/build.rs`, what it makes is in the tree.

#[cfg(feature = "generate")]
const SERVICES: &[&str] = &[
    "dunnage/v1/journal.proto",
    "grpc/health/v1/health.proto",
    "services/containers/v1/containers.proto",
    "services/events/v1/events.proto",
    "services/introspection/v1/introspection.proto",
    "services/leases/v1/leases.proto",
    "services/namespaces/v1/namespace.proto",
    "services/tasks/v1/tasks.proto",
    "services/version/v1/version.proto",
];

#[cfg(feature = "generate")]
fn main() -> std::io::Result<()> {
    println!("cargo:rerun-if-changed=../protos/proto");
    let files = protox::compile(SERVICES, ["../protos/proto"]).map_err(std::io::Error::other)?;
    let mut build = tonic_prost_build::configure()
        .extern_path(".containerd.types", "::protos::types")
        .extern_path(".containerd.v1.types", "::protos::task_types")
        .extern_path(".grpc.health.v1", "::protos::services::health::v1")
        .extern_path(".google.rpc", "::protos::rpc")
        .extern_path(".dunnage.v1", "::protos::services::dunnage::v1")
        .disable_comments(["."])
        .include_file("services.rs")
        .out_dir("generated");
    for name in [
        "containers",
        "events",
        "introspection",
        "leases",
        "namespaces",
        "tasks",
        "version",
    ] {
        build = build.extern_path(
            format!(".containerd.services.{name}.v1"),
            format!("::protos::services::{name}::v1"),
        );
    }
    build.compile_fds(files)
}

#[cfg(not(feature = "generate"))]
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
}
