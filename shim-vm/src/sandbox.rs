// SPDX-License-Identifier: Apache-2.0
//! A pod's sandbox: a VM that is there before its first container, and after its last.
//!
//! ```text
//!  created ── StartSandbox ──> starting ──> ready ── StopSandbox, or the VM's end ──┐
//!     │                           │                                                  v
//!     └────── StopSandbox ────────┴── StopSandbox, or the boot fails ───────────> stopped
//! ```
//!
//! No call waits for the guest without an end: a boot has its deadline and gives up when the sandbox is
//! to be stopped, the end of a VM is the host's to make, and all else is answered without it.

mod service;
mod settings;

pub use service::Sandboxes;

use crate::namespaces::Anchor;
use crate::runtime::Engine;
use crate::sandbox::settings::Settings;
use crate::shared_vm::{self, Order};
use crate::spec::Refusal;
use crate::vm::Vm;
use protos::guest::ConfigureRequest;
use protos::sandbox::CreateSandboxRequest;
use protos::ttrpc::Context;
use protos::{Code, Message, Status, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::rc::Rc;
use task::event::now;
use tokio::sync::{Mutex, watch};

/// The status of a VM that had to be killed, or was.
const KILLED: u32 = 137;
/// The guest's first process, whose network, host name and IPC are the pod's.
const FIRST: u32 = 1;

/// Seconds since 1970, and nanoseconds.
type Time = (i64, i32);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Phase {
    Created,
    Starting,
    Ready {
        pid: u32,
        since: Time,
    },
    Stopped {
        pid: u32,
        since: Option<Time>,
        status: u32,
        at: Time,
    },
}

pub struct Sandbox {
    request: CreateSandboxRequest,
    settings: Settings,
    phase: watch::Sender<Phase>,
    /// It is to be stopped.
    stop: watch::Sender<bool>,
    /// Held while its VM is ended.
    turn: Mutex<()>,
}

/// For another process image.
#[derive(Debug, Serialize, Deserialize)]
pub struct Moved {
    request: Vec<u8>,
    phase: Phase,
}

impl Sandbox {
    /// One that is not started.
    ///
    /// # Errors
    /// If it asks for what a VM can't give.
    pub fn new(request: CreateSandboxRequest) -> Result<Self, Refusal> {
        Ok(Self {
            settings: Settings::of(&request)?,
            request,
            phase: watch::Sender::new(Phase::Created),
            stop: watch::Sender::new(false),
            turn: Mutex::new(()),
        })
    }

    pub fn id(&self) -> &str {
        &self.request.sandbox_id
    }

    fn bundle(&self) -> PathBuf {
        PathBuf::from(&self.request.bundle_path)
    }

    fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    /// What each of its containers has mounted.
    pub fn mounts(&self) -> Vec<Value> {
        settings::mounts(&self.bundle())
    }

    /// # Errors
    /// If its VM is not there.
    pub fn is_ready(&self) -> Result<(), String> {
        let state = match self.phase() {
            Phase::Ready { .. } => return Ok(()),
            Phase::Created => "is not started",
            Phase::Starting => "is being started",
            Phase::Stopped { .. } => "is stopped",
        };
        Err(format!("sandbox {} {state}", self.id()))
    }

    /// Boots its VM; the VM's pid, and since when it is there.
    ///
    /// # Errors
    /// If it was started before, or its VM is not up: then it is stopped.
    async fn start(&self, engine: &Rc<Engine>, context: &Context) -> Result<(u32, Time), Status> {
        let begun = self.phase.send_if_modified(|phase| {
            let begins = *phase == Phase::Created;
            if begins {
                *phase = Phase::Starting;
            }
            begins
        });
        if !begun {
            let text = format!("sandbox {}: was started before", self.id());
            return Err(Status::new(Code::FailedPrecondition, text));
        }
        let vm = match self.boot(engine, context).await {
            Ok(vm) => vm,
            Err(why) => {
                let was_stopped = *self.stop.borrow();
                self.stopped(0, None);
                return Err(match was_stopped {
                    true => {
                        let text = format!("sandbox {}: stopped while it started", self.id());
                        Status::new(Code::FailedPrecondition, text)
                    }
                    false => Status::new(Code::Unknown, format!("sandbox {}: {why}", self.id())),
                });
            }
        };
        let (pid, since) = (vm.pid(), parts(now()));
        let pids = Some(vm.configured.shared_pids);
        let (host, guest) = (pid, FIRST);
        engine
            .runtime
            .anchor
            .set(Some(Anchor { host, guest, pids }));
        self.phase.send_replace(Phase::Ready { pid, since });
        Ok((pid, since))
    }

    async fn boot(&self, engine: &Rc<Engine>, context: &Context) -> Result<Rc<Vm>, String> {
        let _turn = engine.runtime.turn.lock().await;
        let settings = &self.settings;
        let order = Order {
            id: self.id().to_owned(),
            wanted: settings.wanted.clone(),
            network: settings.network.clone(),
            place: settings.place.clone(),
            guest: ConfigureRequest {
                hostname: settings.hostname.clone(),
                sysctls: settings.sysctls.clone(),
                shared_pids: settings.shares_pids,
                ..Default::default()
            },
        };
        let stops = Context::until(self.stop.subscribe());
        let mut booted = pin!(shared_vm::boot(engine, order, &stops));
        tokio::select! {
            booted = &mut booted => return booted,
            _ = context.cancelled() => {}
        }
        // It ends by itself, and leaves nothing.
        log::debug!("{}: its start is given up", self.id());
        self.stop.send_replace(true);
        booted.await
    }

    /// Ends its VM, whatever state that is in, and with it what is in there.
    async fn stop(&self, engine: &Rc<Engine>) {
        self.stop.send_replace(true);
        let _turn = self.turn.lock().await;
        let mut phase = self.phase.subscribe();
        // A boot gives up by itself. Who sends is there for as long as this is.
        let _ = phase.wait_for(|phase| *phase != Phase::Starting).await;
        let guest = &engine.runtime;
        let vm = guest.vm.borrow().clone();
        match vm {
            Some(vm) => {
                vm.power_off().await;
                let ended = |phase: &Phase| matches!(phase, Phase::Stopped { .. });
                let _ = phase.wait_for(ended).await;
            }
            None => self.stopped(0, None),
        }
    }

    /// Its VM is gone.
    pub fn ended(&self, why: &str) {
        if let Phase::Ready { pid, since } = self.phase() {
            if !*self.stop.borrow() {
                log::error!("VM of sandbox {}: {why}", self.id());
            }
            self.stopped(pid, Some(since));
        }
    }

    fn stopped(&self, pid: u32, since: Option<Time>) {
        let status = if *self.stop.borrow() { 0 } else { KILLED };
        self.phase.send_if_modified(|phase| {
            let runs = !matches!(phase, Phase::Stopped { .. });
            if runs {
                *phase = Phase::Stopped {
                    pid,
                    since,
                    status,
                    at: parts(now()),
                };
            }
            runs
        });
    }

    /// Waits until it is stopped, as long as `context` waits; its status, and when it ended.
    ///
    /// # Errors
    /// Why nobody waits any more.
    async fn exited(&self, context: &Context) -> Result<(u32, Time), Status> {
        let mut phase = self.phase.subscribe();
        let ended = phase.wait_for(|phase| matches!(phase, Phase::Stopped { .. }));
        tokio::select! {
            ended = ended => match ended.as_deref() {
                Ok(Phase::Stopped { status, at, .. }) => Ok((*status, *at)),
                _ => Err(Status::new(Code::Unavailable, "the sandbox is gone")),
            },
            why = context.cancelled() => Err(why),
        }
    }

    /// Describes it for another process image.
    pub fn hand_over(&self) -> Moved {
        Moved {
            request: self.request.encode_to_vec(),
            phase: self.phase(),
        }
    }

    /// Goes on with that of another process image.
    ///
    /// # Errors
    /// If this build does not understand it.
    pub fn take_over(moved: Moved) -> task::Result<Rc<Self>> {
        let wrong = |e: String| task::Error::InvalidArgument(format!("sandbox: {e}"));
        let request = CreateSandboxRequest::decode(moved.request.as_slice());
        let request = request.map_err(|e| wrong(e.to_string()))?;
        let sandbox = Self::new(request).map_err(|e| wrong(e.to_string()))?;
        sandbox.phase.send_replace(moved.phase);
        Ok(Rc::new(sandbox))
    }

    /// Writes what its containers have mounted.
    ///
    /// # Errors
    /// It names the file.
    async fn write_files(&self) -> Result<(), String> {
        let (bundle, settings) = (self.bundle(), self.settings.clone());
        task::aside::run(move || settings.write_files(Path::new(&bundle))).await
    }
}

fn parts(at: Timestamp) -> Time {
    (at.seconds, at.nanos)
}

fn timestamp((seconds, nanos): Time) -> Timestamp {
    Timestamp { seconds, nanos }
}
