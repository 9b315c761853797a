// SPDX-License-Identifier: Apache-2.0
//! With the feature `generate`, compiles `proto/` to `generated/`, in pure Rust (no protoc is needed).
//!
//! What it makes is in the tree: to compile the compilers of interfaces takes a quarter of what a
//! first build of a shim took with them. `make protos` generates it anew, and so does `make lint`;
//! `.ci/run` sees that nothing changed.

#[cfg(feature = "generate")]
const FILES: &[&str] = &[
    "cgroups/v1/metrics.proto",
    "cgroups/v2/metrics.proto",
    "dunnage/cri/v1/pod.proto",
    "dunnage/guest/v1/guest.proto",
    "dunnage/shim/v1/bootstrap.proto",
    "dunnage/shim/v1/inspect.proto",
    "dunnage/shim/v1/upgrade.proto",
    "dunnage/v1/journal.proto",
    "dunnage/vm/v1/debug.proto",
    "dunnage/vm/v1/metrics.proto",
    "events/container.proto",
    "events/namespace.proto",
    "events/task.proto",
    "grpc/health/v1/health.proto",
    "runtime/bootstrap/v1/bootstrap.proto",
    "runtime/sandbox/v1/sandbox.proto",
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

#[cfg(feature = "generate")]
fn main() -> std::io::Result<()> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(FILES, ["proto"]).map_err(std::io::Error::other)?;
    let mut config = prost_build::Config::new();
    // Type names make an Any's url; lists keep the order that Go wrote.
    config.enable_type_names().include_file("api.rs");
    // What the fields mean is said once, in the interfaces.
    config.disable_comments(["."]).out_dir("generated");
    config.compile_fds(files)
}

#[cfg(not(feature = "generate"))]
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
}
