// SPDX-License-Identifier: Apache-2.0
//! What the guest is asked to forget of the host's files: each that it knows the file server has open.

use crate::console::Console;
use crate::vm::Vm;
use protos::guest::ForgetRequest;
use protos::ttrpc::{Client, Context};
use std::time::Duration;

/// How long the guest may take to forget what it does not use, and how soon it is asked again.
const TIME: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(200);

/// Names in the share that have been removed. If it does not forget them, they are only on the host's disk
/// for longer.
pub async fn removed(vm: &Vm, names: Vec<String>) {
    let request = ForgetRequest {
        names,
        ..Default::default()
    };
    let context = Context::background();
    let asked = tokio::time::timeout(vm.patience, vm.ask(&request, &context));
    match asked.await {
        Ok(Ok(_)) => {}
        Ok(Err(status)) => log::debug!("forget {:?}: {status}", request.names),
        Err(_) => log::debug!("forget {:?}: no answer", request.names),
    }
}

/// What nobody in the guest uses, whenever the file server says so, for as long as there is a guest.
pub async fn keep(client: Client, files_said: Console) {
    let request = ForgetRequest {
        unused: true,
        ..Default::default()
    };
    loop {
        tokio::select! {
            () = files_said.full() => {}
            () = client.closed() => return,
        }
        log::debug!("the guest is asked to forget the files that nobody uses");
        if let Err(e) = client.call(&request, Some(TIME)).await {
            log::debug!("forget: {e}");
        }
        tokio::time::sleep(AGAIN).await;
    }
}
