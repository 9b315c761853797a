// SPDX-License-Identifier: Apache-2.0
//! Everything a black-box test of the suite's binaries needs.
//!
//! ```text
//! test ── a directory, a namespace, and proof that nothing is left of them
//!  ├── bundle   config.json, rootfs, stdio of a container, the way containerd lays them out
//!  ├── start    `containerd-shim-runc-v2 … start` and `delete`, in all dialects
//!  │    └── shim     the daemon that came of it: its process, its log, its Task service
//!  ├── raw      connections that say what no client would say
//!  ├── events   the ttrpc service at TTRPC_ADDRESS that writes down what shims publish
//!  ├── figures  what Stats says, of either version of cgroups
//!  ├── stdio    the client's ends of a container's FIFOs and terminals
//!  ├── runtime  OCI runtimes that wait, fail or tell, in front of the real one
//!  ├── disk     file systems that can be made to stand still
//!  └── leaks    what the test left on the machine
//! wait: deadlines     program: scripts and binaries to execute     proc: /proc     ledger: known differences from containerd's shim
//! pid_namespace: pids that the test chooses
//! limit: the end of a test that waits for what never comes
//! inject: what somebody could do who has taken a process over     meddler: calls that take their time
//! sweep: a shim killed at every system call     start_sweep: the same of `start`
//! manager: a private dunnage daemon     schema: what its services may be asked
//! image: images, good and bad     registry: Debian's, to pull them from
//! containerd: a private containerd to run the shim under     pty: a child on a terminal
//! cri: the same containerd, as Kubernetes uses it     vm: this machine with another kernel
//! ```
//!
//! A test is `harness::run(async |test| { … })`. It takes the shim's path from `SHIM`.

pub mod bundle;
pub mod calls;
pub mod containerd;
pub mod cri;
pub mod disk;
pub mod docker;
pub mod events;
pub mod figures;
pub mod full_disk;
pub mod image;
#[cfg(target_arch = "x86_64")]
pub mod inject;
pub mod inspect;
pub mod leaks;
pub mod ledger;
pub mod limit;
pub mod manager;
pub mod meddler;
pub mod otlp;
pub mod peers;
pub mod pid_namespace;
pub mod pool;
pub mod proc;
pub mod program;
pub mod pty;
pub mod raw;
pub mod registry;
pub mod runtime;
pub mod schema;
pub mod shim;
pub mod start;
pub mod start_sweep;
pub mod stdio;
pub mod sweep;
pub mod test;
pub mod upgrade;
pub mod vm;
pub mod wait;

pub use bundle::Bundle;
pub use calls::refused;
pub use ledger::{differs, runtime_differs, vm_differs};
pub use shim::Shim;
pub use start::{Dialect, Start, Stdin};
pub use test::{Test, run, run_alone, run_alone_within, run_unless_vm_differs};

pub use protos::{Code, Status};
