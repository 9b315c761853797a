// SPDX-License-Identifier: Apache-2.0
//! What a VM is made of before its guest is heard of.

use super::{Parts, Purpose};
use crate::checkpoint::{Built, Saving};
use crate::console::Console;
use crate::container_sockets::ContainerSockets;
use crate::machine::{Begins, Machine, Plan};
use crate::place::{self, Holds};
use crate::pod::Pod;
use crate::program::Program;
use crate::qemu::Qemu;
use crate::qemu::monitor::Access;
use crate::share::Share;
use crate::word::Doom;
use crate::{files, localhost, network, users};
use protos::guest::ConfigureRequest;
use protos::ttrpc::Context;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use task::aside;
use task::reaper::Reaper;
use tokio::task::JoinHandle;

/// What its processes will be made of, and what the guest is told then.
pub struct Prepared {
    pub parts: Parts,
    pub request: ConfigureRequest,
    pub holds: Holds,
    pub localhost: JoinHandle<Option<localhost::Sockets>>,
}

/// Makes all that a machine needs that `begins` so, as its number of networks is; nothing runs yet but the
/// file server.
///
/// # Errors
/// What could not be made.
pub async fn prepare(
    purpose: Purpose<'_>,
    program: Program,
    begins: impl FnOnce(usize) -> Result<Begins, String>,
    reaper: &Rc<Reaper>,
) -> Result<Prepared, String> {
    let (dir, config) = (&purpose.dir, &purpose.config);
    let holds = Holds {
        netns: purpose.network.path().map(Path::to_owned),
        cgroup: purpose.place.cgroup.clone(),
    };
    let user = users::take(config.first_user, config.users)?;
    // Before there is any of it.
    place::record(dir, &[], &holds).map_err(|e| e.to_string())?;
    let pod = Pod::make(&purpose.place, config.overhead()).await?;
    let wanted = purpose.network.clone();
    let network = aside::alone(move || network::prepare(&wanted)).await;
    let network = network.map_err(|e| e.to_string())?;
    let begins = begins(network.taps.len())?;
    let localhost = localhost::begin(&network.namespace, &purpose.network);
    let localhost = tokio::task::spawn_local(localhost);
    let monitor = config.checkpoints.then(UnixStream::pair).transpose();
    let (monitor, theirs) = monitor.map_err(|e| format!("monitor: {e}"))?.unzip();
    let share = Share::new(dir, Rc::clone(reaper)).await?;
    let files_said = Console::default();
    let (container_sockets, channel) = ContainerSockets::new(&config.container_sockets)
        .map_err(|e| format!("container_sockets: {e}"))?;
    let terms = files::Terms {
        most: config.max_open_files,
        sockets: channel,
    };
    let (files, socket) = files::start(dir, &share, terms, &files_said, reaper)?;
    let plan = Plan {
        name: purpose.name,
        dir: dir.clone(),
        image: purpose.image,
        accel: purpose.accel,
        memory: config.memory,
        vcpus: config.vcpus,
        program,
        files: Some(socket),
        taps: network.taps,
        netns: network.namespace,
        monitor: theirs.map(Into::into),
        begins,
    };
    let saving = match monitor {
        Some(monitor) => {
            let built = Built::of(&plan).await.inspect_err(|_| files.kill())?;
            let monitor = Access::new(monitor);
            Some(Saving { monitor, built })
        }
        None => None,
    };
    let machine = Qemu::prepare(plan, user).inspect_err(|_| files.kill())?;
    let parts = Parts {
        machine: machine.with_console_in_log(config.debug_console),
        files,
        files_said,
        share,
        pod,
        localhost: None,
        container_sockets,
        saving,
        doom: Doom::default(),
    };
    let request = ConfigureRequest {
        interfaces: network.interfaces,
        routes: network.routes,
        neighbours: network.neighbours,
        ..purpose.guest
    };
    Ok(Prepared {
        parts,
        request,
        holds,
        localhost,
    })
}

impl Prepared {
    /// Its processes run, and the machine does not; what there is of it, the guest's serial port, and what
    /// the guest is to be told.
    ///
    /// # Errors
    /// Why they do not; none is left.
    pub async fn wait(
        self,
        dir: &Path,
        (reaper, context): (&Reaper, &Context),
    ) -> Result<(Parts, UnixStream, ConfigureRequest), String> {
        let (mut parts, holds) = (self.parts, self.holds);
        let record = |pids: [u32; 2]| place::record(dir, &pids, &holds).map_err(|e| e.to_string());
        let given_up = async { context.cancelled().await.message };
        let run = parts.run(&record, pin!(given_up), (reaper, context)).await;
        let joined = async {
            let (socket, pids) = run?;
            parts.pod.join(pids).await?;
            parts.pod.up().await.map(|()| socket)
        };
        match joined.await {
            Ok(socket) => {
                parts.localhost = self.localhost.await.unwrap_or_default();
                Ok((parts, socket, self.request))
            }
            Err(why) => Err(parts.end(&why).await),
        }
    }
}
