// SPDX-License-Identifier: Apache-2.0
//! The `delete` command: cleans up after a shim that is dead or unreachable (contract D1 to D8).

use crate::bootstrap::socket_of;
use crate::error::{Error, Result};
use crate::flags::Flags;
use crate::{Shim, print, runtime, socket};
use protos::Message;
use protos::task::DeleteResponse;
use std::fs;
use std::rc::Rc;
use task::bundle::Bundle;
use task::reaper::Reaper;

/// Cleans up the container `-id`, whose bundle is beside the working directory, and prints how
/// it ended.
///
/// # Errors
/// If the bundle's records can't be read.
pub fn delete(shim: &dyn Shim, flags: &Flags) -> Result<()> {
    if flags.id.is_empty() || flags.id.contains('/') {
        return Err(Error::new(format!("shim id {:?}: not an id", flags.id)));
    }
    let cwd = std::env::current_dir().map_err(|e| Error::io("find", "working directory", e))?;
    // D2: bundles of a namespace are siblings.
    let bundle = Bundle::new(cwd.parent().unwrap_or(&cwd).join(&flags.id));
    let response: DeleteResponse = runtime()?.block_on(async {
        let reaper = Reaper::new().map_err(|e| Error::new(format!("set up: {e}")))?;
        let cleanup = shim.cleanup(&flags.namespace, &flags.id, &bundle, Rc::clone(&reaper));
        tokio::select! {
            response = cleanup => response,
            e = reaper.run(&|_, _| {}) => Err(Error::new(format!("reap: {e}"))),
        }
    })?;
    remove_socket(flags, &bundle);
    print(&response.encode_to_vec())
}

/// The dead shim's socket is nobody's; a live one's has another owner. A `start` that was killed
/// may have left one that no file names.
fn remove_socket(flags: &Flags, bundle: &Bundle) {
    let named = task::proc::text(bundle.path().join("address")).ok();
    if let Some(path) = named.and_then(|address| socket::path_of(address.trim())) {
        socket::remove_if_dead(&path);
    }
    if let Ok(spec) = bundle.read_spec() {
        let linked = fs::read_link(bundle.path().join(socket::LINK));
        let dir = linked.unwrap_or_else(|_| socket::DEFAULT_DIR.into());
        socket::remove_if_dead(&socket_of(flags, &spec, &dir));
    }
}
