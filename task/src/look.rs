// SPDX-License-Identifier: Apache-2.0
//! What goes on in the engine, for who wants to look at it: it waits for nothing and changes nothing.

use crate::aside;
use crate::cgroup::Room;
use crate::container::Container;
use crate::oom::Killed;
use crate::process::Process;
use crate::runtime::Runtime;
use crate::service::Service;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A look at the engine. Fields may be added; who reads it must not need them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Look {
    pub containers: Vec<OfContainer>,
    /// The ids of containers that are being created.
    pub creating: Vec<String>,
    pub events: OfEvents,
    /// Pieces of work that no call waits for.
    pub background: usize,
    /// Pieces of work that threads beside the loop have, or have done.
    pub beside: usize,
    /// What the runtime tells of itself: a VM's processes, for instance.
    pub runtime: Value,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct OfContainer {
    pub id: String,
    pub bundle: String,
    /// Init first, then the execs by their ids.
    pub processes: Vec<OfProcess>,
    /// Where its memory is counted, if that is here and not in a VM.
    pub memory: Option<OfMemory>,
    /// Who was killed for want of memory, the last ones.
    pub killed: Vec<Killed>,
}

/// The memory of a container's cgroup, with those below it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct OfMemory {
    pub cgroup: String,
    #[serde(flatten)]
    pub room: Room,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct OfProcess {
    /// Empty for init.
    pub exec: String,
    /// `created`, `running`, `pausing`, `paused`, `stopped` or `deleted`.
    pub state: String,
    /// As clients see it; 0 until there is one.
    pub pid: u32,
    /// A start, a delete or the like is under way.
    pub busy: bool,
    /// How it ended, if that is known.
    pub exit_status: Option<u32>,
    pub terminal: bool,
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    /// Output on its way to clients' FIFOs.
    pub streams: Vec<OfStream>,
}

/// Output on its way to a client.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct OfStream {
    /// The FIFO.
    pub path: String,
    /// What it holds that the client has not read.
    pub unread_bytes: usize,
    /// What is on the way to it, as far as that can be seen.
    pub waiting_bytes: usize,
    /// How long it has been full, while something waits.
    pub full_seconds: Option<f64>,
}

/// Events that containerd has not taken yet.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct OfEvents {
    pub waiting: usize,
    pub bytes: usize,
    /// How long the oldest has waited.
    pub oldest_seconds: u64,
    /// It is on its way.
    pub sending: bool,
}

impl<R: Runtime> Service<R> {
    pub fn look(&self) -> Look {
        let mut containers: Vec<OfContainer> =
            self.containers.all().iter().map(|it| it.look()).collect();
        containers.sort_by(|a, b| a.id.cmp(&b.id));
        Look {
            containers,
            creating: self.containers.creating(),
            events: self.engine.outbox.look(),
            background: *self.engine.background.borrow(),
            beside: aside::under_way(),
            runtime: R::look(&self.engine),
        }
    }
}

impl<R: Runtime> Container<R> {
    fn look(&self) -> OfContainer {
        let mut execs = self.execs();
        execs.sort_by(|a, b| a.process.id.exec_id().cmp(b.process.id.exec_id()));
        let execs = execs.iter().map(|exec| of(&exec.process));
        OfContainer {
            id: self.id.clone(),
            bundle: self.bundle.path().to_string_lossy().into_owned(),
            processes: std::iter::once(of(&self.init)).chain(execs).collect(),
            memory: R::room(self).map(|(cgroup, room)| OfMemory {
                cgroup: cgroup.to_string_lossy().into_owned(),
                room,
            }),
            killed: self.ooms.killed(),
        }
    }
}

fn of(process: &Process) -> OfProcess {
    let paths = process.paths.clone();
    OfProcess {
        exec: process.id.exec_id().to_owned(),
        state: process.state.get().name().to_owned(),
        pid: process.pid.get(),
        busy: !process.is_idle(),
        exit_status: process.exit().map(|exit| exit.status),
        terminal: paths.terminal,
        stdin: paths.stdin,
        stdout: paths.stdout,
        stderr: paths.stderr,
        streams: process.io().map(|io| io.look()).unwrap_or_default(),
    }
}
