//! The contract of `containerd-shim-runc-v2`, area by area, without a containerd.

mod bootstrap;
mod delete;
mod exits;
mod failures;
mod faults;
mod go_bugs;
mod golden;
mod group;
mod last_exit;
mod logger;
mod mounts;
mod mounts_more;
mod oom;
mod output;
mod placement;
mod promises;
mod publish;
mod runtime;
mod serve;
mod stats;
mod stdio;
mod sweep;
mod task;
mod terminal;
mod upgrade;
mod wire;
