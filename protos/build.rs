//! Compiles `proto/` to Rust, in pure Rust: no protoc is needed.

use std::io::Result;

const FILES: &[&str] = &[
    "cgroups/v1/metrics.proto",
    "cgroups/v2/metrics.proto",
    "dunnage/guest/v1/guest.proto",
    "dunnage/shim/v1/upgrade.proto",
    "dunnage/v1/journal.proto",
    "dunnage/vm/v1/metrics.proto",
    "events/container.proto",
    "events/namespace.proto",
    "events/task.proto",
    "grpc/health/v1/health.proto",
    "runtime/bootstrap/v1/bootstrap.proto",
    "runtime/task/v3/shim.proto",
    "services/containers/v1/containers.proto",
    "services/events/v1/events.proto",
    "services/introspection/v1/introspection.proto",
    "services/leases/v1/leases.proto",
    "services/namespaces/v1/namespace.proto",
    "services/tasks/v1/tasks.proto",
    "services/ttrpc/events/v1/events.proto",
    "services/version/v1/version.proto",
    "ttrpc.proto",
    "types/introspection.proto",
    "types/runc/options/oci.proto",
    "types/runtimeoptions/v1/api.proto",
];

fn main() -> Result<()> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(FILES, ["proto"]).map_err(std::io::Error::other)?;
    let mut config = prost_build::Config::new();
    // Type names make an Any's url; lists keep the order that Go wrote.
    config.enable_type_names().include_file("api.rs");
    config.compile_fds(files)
}
