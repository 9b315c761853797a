//! Makes gRPC servers and clients of containerd's services; their messages are `protos`'.

use std::path::Path;

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

fn main() -> std::io::Result<()> {
    let protos = Path::new(env!("CARGO_MANIFEST_DIR")).join("../protos/proto");
    println!("cargo:rerun-if-changed={}", protos.display());
    let files = protox::compile(SERVICES, [&protos]).map_err(std::io::Error::other)?;
    let mut build = tonic_prost_build::configure()
        .extern_path(".containerd.types", "::protos::types")
        .extern_path(".containerd.v1.types", "::protos::task_types")
        .extern_path(".grpc.health.v1", "::protos::services::health::v1")
        .extern_path(".google.rpc", "::protos::rpc")
        .extern_path(".dunnage.v1", "::protos::services::dunnage::v1")
        .include_file("services.rs");
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
