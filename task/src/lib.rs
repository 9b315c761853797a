// SPDX-License-Identifier: Apache-2.0
//! The Task engine: what a container, an exec, their stdio, exits and events are.
//!
//! One thread, one tokio `LocalRuntime`, one owner per fact. Whoever embeds the engine (a shim
//! on the host, an agent in a VM) brings the transport and takes the events from the outbox.
//!
//! ```text
//!  request ──> service ──> containers ──> container ──> Runtime: Oci ──> runc
//!                 │                          │             │       │
//!                 │                          │           stdio   reaper <── SIGCHLD
//!                 v                          v                     │
//!              answer                      outbox <── last_exit <──┘
//!                                            │
//!                                            v  in order, one at a time
//!                                        publisher
//!
//!  init   created ──start──> running <──pause/resume──> paused
//!            │                  │                          │
//!            └──────exit────────┴───────────> stopped <────┘
//!  exec   created ──start──> running ──exit──> stopped          (created, stopped) ──delete──> gone
//! ```

pub mod aside;
pub mod below;
pub mod bundle;
pub mod cgroup;
pub mod command;
pub mod connect;
pub mod container;
mod containers;
pub mod error;
pub mod event;
pub mod foreign;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod handover;
pub mod inherited;
pub mod json;
mod last_exit;
pub mod leftovers;
pub mod look;
pub mod oci;
pub mod oom;
pub mod outbox;
pub mod peak;
mod printable;
pub mod proc;
pub mod process;
pub mod quota;
pub mod reaper;
pub mod record;
pub mod relay;
pub mod rootfs;
pub mod runtime;
pub mod service;
pub mod signals;
mod state;
pub mod stdio;
pub mod sys;
pub mod tally;
pub mod trace;

pub use command::Command;
pub use error::{Error, Result};
pub use printable::printable;
pub use process::ProcessId;
pub use service::Service;
pub use state::State;
