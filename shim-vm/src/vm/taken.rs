// SPDX-License-Identifier: Apache-2.0
//! A VM of the pool's that becomes somebody's: its place, its share, its cgroup, its network, and what
//! its guest is told to be are from now on as if it had booted for that.

use super::{Vm, clear};
use crate::boot::{self, Purpose};
use crate::localhost::{self, Localhost};
use crate::machine::Machine;
use crate::network;
use crate::patience;
use crate::place::{self, Holds};
use crate::pod::Pod;
use crate::pool::{self, Offered};
use protos::guest::ConfigureRequest;
use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use task::aside;
use task::reaper::Reaper;
use task::trace::{Kind, Span};

/// How long its guest may take to become what it is told to be.
const READY: Duration = Duration::from_secs(5);

impl Vm {
    /// One of the pool's for `purpose`, that nobody watches yet; `None`, and a line in the log, if there
    /// is none: nothing is left of one that was of no use.
    pub(super) async fn taken(purpose: &Purpose<'_>, reaper: &Rc<Reaper>) -> Option<Self> {
        let offered = pool::take(purpose, reaper).await?;
        let span = Span::of(purpose.context, "vm taken", Kind::Internal);
        let taken = Self::moved_in(offered, purpose, reaper).await;
        span.done(&taken);
        match taken {
            Ok(vm) => Some(vm),
            Err(why) => {
                log::warn!("a VM of the pool's is of no use, another is booted: {why}");
                clear(&purpose.dir, &purpose.network).await;
                None
            }
        }
    }

    async fn moved_in(
        offered: Offered,
        purpose: &Purpose<'_>,
        reaper: &Rc<Reaper>,
    ) -> Result<Self, String> {
        let moved = offered.move_to(&purpose.dir).await;
        moved.map_err(|e| format!("{}: {e}", purpose.dir.display()))?;
        let (moved, leash) = offered.into_parts();
        let vm = Self::rebuilt(moved.taken(purpose, leash), reaper);
        let mut vm = vm.map_err(|e| e.to_string())?;
        let (machine, files, doom) = (
            Rc::clone(&vm.machine),
            Rc::clone(&vm.files),
            vm.doom.clone(),
        );
        let ready = tokio::select! {
            ready = vm.settle(purpose) => ready,
            status = machine.wait() => Err(format!("QEMU ended: {status}")),
            status = files.wait() => Err(format!("the file server ended: {status}")),
            why = doom.sealed() => Err(why),
            why = purpose.context.cancelled() => Err(why.message),
            () = patience::over(READY, || machine.pid()) => {
                Err(format!("the guest was not ready within {} s", READY.as_secs()))
            }
        };
        ready.map(|()| vm)
    }

    /// Makes all of it as `purpose` says.
    async fn settle(&mut self, purpose: &Purpose<'_>) -> Result<(), String> {
        let pids = [self.pid(), self.files_pid()];
        let holds = Holds {
            netns: purpose.network.path().map(Path::to_owned),
            cgroup: purpose.place.cgroup.clone(),
        };
        place::record(&self.dir, &pids, &holds).map_err(|e| e.to_string())?;
        let holder = self.leash.as_ref().map(pool::Leash::holder);
        let all: Vec<u32> = pids.into_iter().chain(holder).collect();
        let as_ours = aside::alone(move || pool::as_ours(&all));
        self.pod = Pod::make(&purpose.place, purpose.config.overhead()).await?;
        let (own, wanted) = (self.netns(), purpose.network.clone());
        let network = aside::alone(move || network::bring(&own, &wanted)).await;
        let network = network.map_err(|e| e.to_string())?;
        let localhost = localhost::begin(&network.namespace, &purpose.network);
        let request = ConfigureRequest {
            interfaces: network.interfaces,
            routes: network.routes,
            neighbours: network.neighbours,
            ..purpose.guest.clone()
        };
        let moved = async {
            as_ours.await.map_err(|e| e.to_string())?;
            self.pod.join(pids).await
        };
        let told = boot::configure(&self.client, request, boot::is_marked(&purpose.config));
        let ((configured, mark), ()) = tokio::try_join!(told, moved)?;
        self.pod.up().await?;
        (self.configured, self.mark) = (configured, Cell::new(mark));
        self.localhost = Localhost::new(localhost.await);
        Ok(())
    }

    /// True if it had booted before anybody wanted it.
    pub fn is_from_pool(&self) -> bool {
        self.leash.is_some()
    }
}
