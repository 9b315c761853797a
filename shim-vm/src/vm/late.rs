// SPDX-License-Identifier: Apache-2.0
//! The network that a VM gets after its boot.

use super::Vm;
use crate::network::{self, Where};
use protos::guest::ConfigureRequest;
use protos::ttrpc::Context;
use std::path::PathBuf;
use task::aside;

impl Vm {
    /// Gives the VM the network that was made for it since it booted, if there is one.
    ///
    /// # Errors
    /// Why that can't be done.
    pub async fn join_network(&self, context: &Context) -> Result<(), String> {
        if self.network != Where::Own || self.joined.get() {
            return Ok(());
        }
        let netns = self.netns();
        let network = aside::alone(move || network::join(&netns)).await;
        let Some(network) = network.map_err(|e| e.to_string())? else {
            return Ok(());
        };
        let request = ConfigureRequest {
            interfaces: network.interfaces,
            routes: network.routes,
            neighbours: network.neighbours,
            // Its device has another's address.
            restored: self.is_clone,
            ..Default::default()
        };
        let set = self.ask(&request, context);
        set.await.map_err(|status| status.message)?;
        self.joined.set(true);
        Ok(())
    }

    /// The network namespace that its process is in.
    pub(super) fn netns(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.pid()))
    }
}
