// SPDX-License-Identifier: Apache-2.0
//! A running shim: its process, its connection, and its orderly end.

use crate::bundle::Bundle;
use crate::start::Answer;
use crate::wait;
use crate::{peers, proc};
use protos::service;
use protos::task::ConnectRequest;
use protos::ttrpc::{CallError, Client};
use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;

/// A shim that `start` answered with. Clones share the connection and the bookkeeping.
#[derive(Clone)]
pub struct Shim {
    shared: Rc<Shared>,
    client: Client,
    service: &'static str,
}

struct Shared {
    bundle: Bundle,
    answer: Answer,
    pid: i32,
    /// What it held before it had a container; that of VMs, when it had the VM.
    fds: RefCell<Vec<String>>,
}

/// What a shim holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footprint {
    pub fds: Vec<String>,
    pub threads: usize,
    pub zombies: usize,
    pub children: usize,
}

impl Shim {
    /// Connects to the shim that gave this answer; the test stops it at its end.
    pub async fn connect(bundle: &Bundle, answer: Answer) -> Self {
        bundle.test.note_socket(&answer.socket());
        let socket = answer.socket();
        let client = wait::soon("connection to the shim", Client::connect(&socket)).await;
        let client = client.unwrap_or_else(|e| panic!("{}: {e}", socket.display()));
        // Some shims serve the one that they promise, and no other.
        let service = match answer.version {
            ..3 => service::TASK_V2,
            _ => service::TASK_V3,
        };
        let request = ConnectRequest::default();
        let call = client.call_as(service, &request, None);
        let connected = wait::soon("answer of Connect", call).await;
        let pid = connected
            .unwrap_or_else(|e| panic!("Connect: {e}"))
            .shim_pid as i32;
        let shared = Rc::new(Shared {
            bundle: bundle.clone(),
            answer,
            pid,
            fds: RefCell::new(held(pid)),
        });
        let shim = Self {
            shared,
            client,
            service,
        };
        bundle.test.note_shim(&shim);
        shim
    }

    /// The same shim, spoken to through another connection.
    pub async fn reconnect(&self) -> Self {
        let client = Client::connect(&self.socket())
            .await
            .expect("second connection");
        Self {
            client,
            ..self.clone()
        }
    }

    /// The same shim, spoken to under another service name.
    pub fn named(&self, service: &'static str) -> Self {
        Self {
            service,
            ..self.clone()
        }
    }

    pub fn v3(&self) -> Self {
        self.named(service::TASK_V3)
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn service(&self) -> &'static str {
        self.service
    }

    /// The daemon's process id.
    pub fn pid(&self) -> i32 {
        self.shared.pid
    }

    /// The bundle that it was started for.
    pub fn bundle(&self) -> &Bundle {
        &self.shared.bundle
    }

    pub fn answer(&self) -> &Answer {
        &self.shared.answer
    }

    pub fn socket(&self) -> PathBuf {
        self.shared.answer.socket()
    }

    /// What it wrote to its log so far.
    pub fn log(&self) -> String {
        self.shared.bundle.log.text()
    }

    pub fn alive(&self) -> bool {
        proc::alive(self.pid())
    }

    /// SIGKILL, and waits until it is gone. Its socket stays, and is not a leak (D5).
    pub async fn kill_process(&self) {
        self.shared.bundle.test.forget_socket(&self.socket());
        let _ = wait::signal(self.pid(), libc::SIGKILL);
        wait::ended(self.pid()).await;
    }

    /// What it holds now. FIFOs, pipes, terminals and memory of the kernel count as fds;
    /// sockets do not, nor what a language's runtime opens for itself.
    pub fn footprint(&self) -> Footprint {
        let pid = self.pid();
        Footprint {
            fds: held(pid),
            threads: proc::stat(pid).map_or(0, |stat| stat.threads),
            zombies: proc::zombies(pid).len(),
            children: proc::children(pid).len(),
        }
    }

    /// The fds it holds that it did not hold before its first container.
    pub fn new_fds(&self) -> Vec<String> {
        let mut new = held(self.pid());
        for old in self.shared.fds.borrow().iter() {
            if let Some(at) = new.iter().position(|fd| fd == old) {
                new.remove(at);
            }
        }
        new
    }

    /// What it holds for stdio that it did not hold before: FIFOs, pipes, terminals.
    pub fn stdio_fds(&self) -> Vec<String> {
        let mut fds = self.new_fds();
        // Memory is watched through these.
        fds.retain(|fd| !fd.contains("[eventfd]"));
        fds
    }

    /// Waits until [`Shim::stdio_fds`] is empty.
    pub async fn released(&self) {
        wait::until("stdio is closed", || match self.stdio_fds() {
            none if none.is_empty() => Ok(()),
            some => Err(format!("{some:?}")),
        })
        .await;
    }

    /// Waits until it is one thread: those that worked beside its loop leave a moment later. Go's
    /// runtime has its own.
    pub async fn one_thread(&self) {
        wait::until("one thread, and no other's stack", || {
            let found = (self.footprint().threads, proc::stacks(self.pid()));
            match found {
                (0, _) | (1, 1) => Ok(()),
                _ if peers::is_go() => Ok(()),
                (threads, stacks) => Err(format!("{threads} threads, {stacks} stacks")),
            }
        })
        .await;
    }

    pub(crate) fn note_created(&self, id: &str) {
        let test = &self.shared.bundle.test;
        if peers::is_vm() && test.containers_of(self.pid()).is_empty() {
            self.shared.fds.replace(held(self.pid()));
        }
        self.shared.bundle.test.note_created(self.pid(), id);
    }

    pub(crate) fn note_deleted(&self, id: &str) {
        self.shared.bundle.test.note_deleted(self.pid(), id);
    }

    /// [`Shim::stop`], which must find nothing wrong.
    pub async fn stopped(&self) {
        let wrong = self.stop().await;
        assert!(wrong.is_empty(), "end of the shim: {wrong:#?}");
    }

    /// Kills and deletes what it has, then shuts it down; what went wrong comes back.
    pub async fn stop(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        if !self.alive() {
            return wrong;
        }
        for id in self.shared.bundle.test.containers_of(self.pid()) {
            let killed = self.kill(&id, "", libc::SIGKILL, true).await;
            if let Err(e) = killed
                && !matches!(&e, CallError::Status(s) if s.code == protos::Code::NotFound)
            {
                wrong.push(format!("Kill {id} at the end: {e}"));
            }
            if let Err(e) = self.wait(&id, "").await {
                wrong.push(format!("Wait {id} at the end: {e}"));
            }
            if let Err(e) = self.delete(&id, "").await {
                wrong.push(format!("Delete {id} at the end: {e}"));
            }
        }
        // What has just ended is a zombie for a moment.
        for pid in proc::zombies(self.pid()) {
            wait::until(
                "a child of the shim is waited for",
                || match proc::zombies(self.pid()).contains(&pid) {
                    false => Ok(()),
                    true => Err(proc::describe(pid)),
                },
            )
            .await;
        }
        match self.shutdown("").await {
            // The answer may race with the exit (T80).
            Ok(()) | Err(CallError::Closed) => wait::ended(self.pid()).await,
            Err(e) => wrong.push(format!("Shutdown: {e}")),
        }
        if self.socket().exists() {
            wrong.push(format!("{} is left", self.socket().display()));
        }
        wrong
    }
}

/// Targets of the fds that a container can make a shim hold, sorted.
fn held(pid: i32) -> Vec<String> {
    let fds = proc::fds(pid).unwrap_or_default();
    let runtime = |target: &String| {
        target.starts_with("socket:")
            || target.contains("[eventpoll]")
            || target == "/dev/null"
            || target.ends_with("/log")
    };
    let mut held: Vec<String> = fds
        .into_values()
        .filter(|target| !runtime(target))
        .collect();
    held.sort();
    held
}
