// SPDX-License-Identifier: Apache-2.0
//! One running shim: its connection, and the news of its end.
//!
//! Several containers of a group share one. It is over when its process has ended, told by a
//! pidfd; where there is none, when its connection closes and cannot be made again.

use crate::failure::{Failure, from_shim};
use crate::launch::Address;
use protos::task::{ConnectRequest, ShutdownRequest};
use protos::ttrpc::{Call, CallError, Client};
use protos::{Code, service};
use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// How long connecting may take (contract T5).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a shim may take to end once it was asked to (contract T5).
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);

async fn connect(path: &Path) -> io::Result<Client> {
    task::connect::to(path).await.map(Client::new)
}

pub struct Shim {
    pub address: Address,
    pub pid: u32,
    version: Cell<i32>,
    client: RefCell<Client>,
    over: watch::Sender<bool>,
}

impl Shim {
    /// Connects to the shim that has, or will have, container `id`.
    ///
    /// # Errors
    /// `Unavailable` if nobody answers there.
    pub async fn connect(address: Address, id: &str) -> Result<Self, Failure> {
        Self::connect_within(address, id, CONNECT_TIMEOUT).await
    }

    /// The same with another patience.
    ///
    /// # Errors
    /// As that.
    pub async fn connect_within(
        address: Address,
        id: &str,
        patience: Duration,
    ) -> Result<Self, Failure> {
        let gone = |e: &dyn std::fmt::Display| {
            crate::failure::unavailable(format!("connect to shim {}: {e}", address.address))
        };
        let path = address.path().ok_or_else(|| gone(&"no unix socket"))?;
        let client = tokio::time::timeout(CONNECT_TIMEOUT, connect(path)).await;
        let client = client.map_err(|e| gone(&e))?.map_err(|e| gone(&e))?;
        let mut shim = Self {
            version: Cell::new(address.version),
            address,
            pid: 0,
            client: RefCell::new(client),
            over: watch::Sender::new(false),
        };
        let request = ConnectRequest { id: id.to_owned() };
        match shim.call(&request, Some(patience)).await {
            Ok(connected) => shim.pid = connected.shim_pid,
            // Older shims know no such container yet, but they are there.
            Err(e) if e.code == Code::NotFound => {}
            Err(e) => return Err(e),
        }
        Ok(shim)
    }

    /// Calls a method of the Task service, by the name that this shim knows it under.
    ///
    /// # Errors
    /// The shim's status, or `Unavailable` if it is gone.
    pub async fn call<C: Call>(
        &self,
        request: &C,
        timeout: Option<Duration>,
    ) -> Result<C::Answer, Failure> {
        let answer = match self.call_as(self.version.get(), request, timeout).await {
            // As core/runtime/v2/task_manager.go does: a shim may say 3 and speak 2.
            Err(CallError::Status(status))
                if status.code == Code::Unimplemented
                    && self.version.get() >= 3
                    && status.message.contains("service") =>
            {
                self.version.set(2);
                self.call_as(2, request, timeout).await
            }
            other => other,
        };
        answer.map_err(from_shim)
    }

    async fn call_as<C: Call>(
        &self,
        version: i32,
        request: &C,
        timeout: Option<Duration>,
    ) -> Result<C::Answer, CallError> {
        let service = if version >= 3 {
            service::TASK_V3
        } else {
            service::TASK_V2
        };
        let client = self.client.borrow().clone();
        client.call_as(service, request, timeout).await
    }

    /// Waits for the end of the shim, and lets everybody know. Called once, by the supervisor.
    pub async fn watch(&self) {
        let pidfd = task::sys::watch_process(self.pid);
        match (&pidfd, self.pid) {
            (Ok(pidfd), 1..) => self.watch_process(pidfd).await,
            _ => {
                let client = self.client.borrow().clone();
                client.closed().await;
            }
        }
        self.over.send_replace(true);
    }

    async fn watch_process(&self, pidfd: &AsyncFd<OwnedFd>) {
        loop {
            let client = self.client.borrow().clone();
            tokio::select! {
                _ = pidfd.readable() => return,
                () = client.closed() => {}
            }
            // A live process that closed the connection: on its way out, or it wants another.
            let ended = tokio::time::timeout(Duration::from_millis(500), pidfd.readable());
            if ended.await.is_ok() {
                return;
            }
            let Some(path) = self.address.path() else {
                return;
            };
            match connect(path).await {
                Ok(client) => drop(self.client.replace(client)),
                Err(_) => {
                    log::warn!("shim {} is alive but does not listen", self.pid);
                    let _ = pidfd.readable().await;
                    return;
                }
            }
        }
    }

    pub fn is_over(&self) -> bool {
        *self.over.borrow()
    }

    /// Waits until [`Shim::watch`] has seen its end.
    pub async fn over(&self) {
        let mut over = self.over.subscribe();
        let _ = over.wait_for(|over| *over).await;
    }

    /// Asks it to end; one that has other containers stays.
    pub async fn shutdown(&self, id: &str) {
        let request = ShutdownRequest {
            id: id.to_owned(),
            now: false,
        };
        // It may be gone before it answers.
        let _ = self.call(&request, Some(SHUTDOWN_TIMEOUT)).await;
    }

    /// [`Shim::shutdown`], and waits for the end; what does not end in time is left alone.
    pub async fn end(&self, id: &str) {
        self.shutdown(id).await;
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, self.over())
            .await
            .is_err()
        {
            log::warn!("shim {} of {id} did not end when asked to", self.pid);
        }
    }
}
