// SPDX-License-Identifier: Apache-2.0
//! A VM, of its parts and of a guest that is ready.

use super::{CONNECTIONS, Vm};
use crate::boot::{Parts, Purpose, Ready};
use crate::localhost::Localhost;
use crate::mirrors::Mirrors;
use crate::sockets::Sockets;
use std::cell::Cell;
use std::rc::Rc;
use task::relay::Relays;
use tokio::sync::watch;

impl Vm {
    /// Of what there is for `purpose`.
    pub(super) fn made(parts: Parts, ready: Ready, purpose: &Purpose<'_>) -> Self {
        Self {
            machine: Rc::new(parts.machine),
            files: Rc::new(parts.files),
            files_said: parts.files_said,
            socket: ready.socket,
            link: ready.link,
            notices: ready.notices,
            mark: Cell::new(ready.mark),
            calls: ready.calls,
            client: ready.client,
            doom: parts.doom,
            saving: parts.saving,
            is_clone: false,
            is_to_end: Cell::new(false),
            patience: purpose.config.patience(),
            share: parts.share,
            pod: parts.pod,
            shape: purpose.shape.clone(),
            settings: purpose.settings.clone(),
            hello: ready.hello,
            configured: ready.configured,
            heard_after: ready.heard_after,
            restored: ready.restored,
            wish: Cell::new(ready.wish),
            localhost: Localhost::new(parts.localhost),
            relays: Relays::new(CONNECTIONS),
            sockets: Sockets::new(purpose.config.sockets.clone()),
            container_sockets: parts.container_sockets,
            mirrors: Mirrors::default(),
            dir: purpose.dir.clone(),
            network: purpose.network.clone(),
            joined: Cell::new(false),
            is_adopted: false,
            leash: None,
            gone: watch::channel(None).1,
        }
    }
}
