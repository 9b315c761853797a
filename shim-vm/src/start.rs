//! Starting a process: its streams, the network that came after its VM, and hooks.

use crate::container::{Container, Process};
use crate::hooks::{self, About, Hook};
use crate::service::{Result, Service, unknown};
use protos::task::{StartRequest, StartResponse};
use protos::ttrpc::Context;
use task::stdio::{self, Ends, Of};

const FAILED: &str = "OCI runtime start failed";

impl Service {
    pub(crate) async fn start(
        &self,
        request: StartRequest,
        context: &Context,
    ) -> Result<StartResponse> {
        let (container, process) = self.find_process(&request.id, &request.exec_id)?;
        self.alive(&container)?;
        let is_init = request.exec_id.is_empty();
        if is_init {
            let joined = container.vm.join_network(context).await;
            joined.map_err(|why| unknown(&format!("{FAILED}: network: {why}")))?;
        } else if let Some(ends) = process.ends.take() {
            self.connect(&container, &process, ends, context).await?;
        }
        self.ask(&container, &process, &request, context).await?;
        // It is told before the answer.
        let vm = &container.vm;
        let runs = process.until(|process| process.runs.get());
        let what = format!("the start of {}", request.id);
        vm.in_time(&what, vm.patience, runs).await;
        self.alive(&container)?;
        if is_init {
            let hooks = &container.hooks.poststart;
            let ran = self.run_hooks(&container, hooks, "running", context).await;
            if let Err(why) = ran {
                log::warn!("{}: poststart: {why}", container.id);
            }
        }
        let pid = container.vm.pid();
        Ok(StartResponse { pid })
    }

    /// Connects a process's streams to what its client named.
    pub(crate) async fn connect(
        &self,
        container: &Container,
        process: &Process,
        ends: Ends,
        context: &Context,
    ) -> Result<()> {
        let name = if process.exec_id.is_empty() {
            &container.id
        } else {
            &process.exec_id
        };
        let of = Of {
            namespace: &self.namespace,
            process: name,
            bundle: &container.bundle,
            io_uid: container.io_uid,
            io_gid: container.io_gid,
        };
        let io = stdio::connect(&process.paths, ends, of, &self.reaper, context).await?;
        process.connected(io);
        Ok(())
    }

    /// Runs some of a container's hooks, while its VM is there.
    pub(crate) async fn run_hooks(
        &self,
        container: &Container,
        hooks: &[Hook],
        status: &str,
        context: &Context,
    ) -> std::result::Result<(), String> {
        let about = About {
            id: &container.id,
            bundle: container.bundle.path(),
            pid: container.vm.pid(),
            status,
        };
        hooks::run(hooks, &about, &self.reaper, context).await
    }
}
