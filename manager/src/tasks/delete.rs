// SPDX-License-Identifier: Apache-2.0
//! How a task is deleted, and what is left to do when its shim has let go of it.

use super::Task;
use crate::bundles::Files;
use crate::failure::{Failure, not_found};
use crate::launch::Address;
use crate::manager::Manager;
use crate::names::Key;
use crate::shim::Shim;
use crate::supervise::UNKNOWN;
use protos::Code;
use protos::task::{DeleteRequest, DeleteResponse};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use task::ProcessId;

/// How long an event that the shim has already sent may be on its way.
const EVENT_TIMEOUT: Duration = Duration::from_millis(200);

impl Manager {
    /// Deletes a stopped task, and leaves nothing of it.
    ///
    /// # Errors
    /// The shim's, if it does not let go of the task.
    pub async fn delete_task(self: &Rc<Self>, key: &Key) -> Result<DeleteResponse, Failure> {
        let task = self.tasks.get(key)?;
        let Some(shim) = task.shim() else {
            return self.delete_orphan(&task).await;
        };
        let request = DeleteRequest {
            id: key.id.clone(),
            exec_id: String::new(),
        };
        let response = match shim.call(&request, None).await {
            Ok(response) => response,
            // It died meanwhile: another takes its place, or the funeral tells the rest.
            Err(e) if e.code == Code::Unavailable => {
                let over = tokio::time::timeout(Duration::from_secs(1), shim.over()).await;
                if over.is_err() {
                    return Err(e);
                }
                if task.living_shim().await.is_some() {
                    return Box::pin(self.delete_task(key)).await;
                }
                return Err(not_found(format!("task {}", key.id)));
            }
            // The shim has lost it, and nobody else will take the rest away.
            Err(e) if e.code == Code::NotFound => self.as_known(&task),
            Err(e) => return Err(e),
        };
        if task.deleting.replace(true) {
            return Err(not_found(format!("task {}", key.id)));
        }
        let response = self.true_status(key, response);
        let marked = task
            .bundle
            .with(move |files| files.mark_deleting(&response));
        if let Err(e) = marked.await {
            log::error!("{key}: {e}");
        }
        self.finish_delete(&task, Some(&shim), &response).await;
        Ok(response)
    }

    /// What we know ourselves of how a task ended.
    fn as_known(&self, task: &Task) -> DeleteResponse {
        let response = DeleteResponse {
            pid: task.pid.get(),
            exit_status: UNKNOWN,
            exited_at: None,
        };
        self.true_status(task.key(), response)
    }

    /// The status that was published, should the shim say something else.
    pub fn true_status(&self, key: &Key, mut response: DeleteResponse) -> DeleteResponse {
        if let Some(exit) = self.intake.exit(key, &ProcessId::Init) {
            response.exit_status = exit.status;
            response.exited_at = exit.at.or(response.exited_at);
        }
        response
    }

    /// What is left to do once the shim has let go of the task.
    pub async fn finish_delete(&self, task: &Task, shim: Option<&Shim>, response: &DeleteResponse) {
        let key = task.key();
        let address = task.bundle.with(Files::address).await;
        let is_shared = self.tasks.all().iter().any(|other| {
            let shim = other.shim().filter(|_| other.key() != key);
            shim.is_some_and(|shim| Some(&shim.address) == address.as_ref())
        });
        match shim {
            Some(shim) if is_shared => shim.shutdown(&key.id).await,
            Some(shim) => shim.end(&key.id).await,
            None => {}
        }
        // One that was killed leaves its socket.
        let is_over = !is_shared && shim.is_none_or(Shim::is_over);
        let is_left = move |_: &Files| {
            let socket = address.as_ref().and_then(Address::path);
            socket.is_some_and(Path::exists)
        };
        if is_over
            && task.bundle.with(is_left).await
            && let Err(e) = self.launcher.delete(&task.bundle).await
        {
            log::warn!("{key}: {e}");
        }
        // Go's shims lose some of these events at their end; a dead one sends none.
        let patience = if shim.is_some() {
            EVENT_TIMEOUT
        } else {
            Duration::ZERO
        };
        if tokio::time::timeout(patience, self.intake.deleted(key))
            .await
            .is_err()
        {
            let exit = (response.exit_status, response.exited_at);
            self.intake.publish_delete(key, response.pid, exit);
            self.intake.settled().await;
        }
        if let Err(e) = task.bundle.delete(&self.launcher.reaper).await {
            log::error!("{key}: bundle: {e}");
        }
        self.tasks.remove(key);
    }
}
