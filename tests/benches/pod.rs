// SPDX-License-Identifier: Apache-2.0
//! A contender's shim with one container, as every measurement needs it.

use crate::contender::Contender;
use harness::{Bundle, Shim, Test};
use protos::task;
use protos::ttrpc::{Call, CallError};
use std::time::{Duration, Instant};

/// No single call takes longer and is still worth waiting for.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub struct Pod {
    pub shim: Shim,
    pub bundle: Bundle,
}

impl Pod {
    /// A started shim without a container.
    pub async fn start(bundle: Bundle, contender: &Contender) -> Self {
        let shim = bundle.start().binary(&contender.binary).shim().await;
        Self { shim, bundle }
    }

    /// With its container running.
    pub async fn running(bundle: Bundle, contender: &Contender) -> Self {
        let pod = Self::start(bundle, contender).await;
        pod.shim.create(pod.bundle.create()).await.expect("Create");
        pod.shim.start(&pod.bundle.id, "").await.expect("Start");
        pod
    }

    /// A container of this name, running in a new shim.
    pub async fn new(test: &Test, contender: &Contender, id: &str) -> Self {
        Self::running(test.bundle(id).build(), contender).await
    }

    /// A call that may take as long as [`PATIENCE`]; its error as text.
    pub async fn call<C: Call>(shim: &Shim, request: &C) -> Result<C::Answer, String> {
        let method = C::METHOD;
        let call = shim.client().call_as(shim.service(), request, None);
        match tokio::time::timeout(PATIENCE, call).await {
            Ok(answer) => answer.map_err(|e: CallError| format!("{method}: {e}")),
            Err(_) => Err(format!("{method}: no answer within {PATIENCE:?}")),
        }
    }

    /// One exec of `true`: added, started, waited for and deleted.
    pub async fn exec_cycle(&self, exec: &str) -> Result<Duration, String> {
        let begin = Instant::now();
        let request = self.bundle.exec(exec, &["true"]);
        Self::call(&self.shim, &request).await?;
        run_exec(&self.shim, &self.bundle.id, exec).await?;
        delete_exec(&self.shim, &self.bundle.id, exec).await?;
        Ok(begin.elapsed())
    }

    /// Kills and deletes the container, and ends the shim. What goes wrong is no concern of a
    /// measurement: the end of the test removes what is left.
    pub async fn end(self) {
        let id = self.bundle.id.clone();
        let (signal, all) = (libc::SIGKILL as u32, true);
        let kill = task::KillRequest {
            id: id.clone(),
            exec_id: String::new(),
            signal,
            all,
        };
        let _ = Self::call(&self.shim, &kill).await;
        let wait = task::WaitRequest {
            id: id.clone(),
            exec_id: String::new(),
        };
        let _ = Self::call(&self.shim, &wait).await;
        let _ = self.shim.delete(&id, "").await;
        let shutdown = task::ShutdownRequest { id, now: false };
        let _ = Self::call(&self.shim, &shutdown).await;
    }
}

/// Starts an exec that was added, and waits for its end.
pub async fn run_exec(shim: &Shim, id: &str, exec: &str) -> Result<(), String> {
    let (id, exec_id) = (id.to_owned(), exec.to_owned());
    let start = task::StartRequest {
        id: id.clone(),
        exec_id: exec_id.clone(),
    };
    Pod::call(shim, &start).await?;
    let wait = task::WaitRequest { id, exec_id };
    let exit = Pod::call(shim, &wait).await?;
    match exit.exit_status {
        0 => Ok(()),
        status => Err(format!("{exec} exited with {status}")),
    }
}

pub async fn delete_exec(shim: &Shim, id: &str, exec: &str) -> Result<(), String> {
    let (id, exec_id) = (id.to_owned(), exec.to_owned());
    let delete = task::DeleteRequest { id, exec_id };
    Pod::call(shim, &delete).await?;
    Ok(())
}
