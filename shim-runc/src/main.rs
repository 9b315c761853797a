// SPDX-License-Identifier: Apache-2.0
//! `containerd-shim-runc-v2`: containers by an OCI runtime such as runc or crun.

mod cleanup;
mod info;

use protos::Any;
use protos::task::DeleteResponse;
use protos::types::RuntimeInfo;
use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::rc::Rc;
use task::bundle::Bundle;
use task::handover::Engine;
use task::oci::Oci;
use task::oci::direct::enter;
use task::outbox::Outbox;
use task::reaper::Reaper;

struct Runc;

impl shim::Shim for Runc {
    fn name(&self) -> &'static str {
        "io.containerd.runc.v2"
    }

    fn info(&self, options: Option<Any>) -> shim::Result<RuntimeInfo> {
        info::info(self.name(), options)
    }

    fn understands(&self, engine: &Engine) -> task::Result<()> {
        task::Service::<Oci>::understands(engine)
    }

    fn daemon(
        &self,
        namespace: String,
        reaper: Rc<Reaper>,
        outbox: Rc<Outbox>,
    ) -> shim::Result<Rc<dyn shim::Daemon>> {
        Ok(task::Service::new(namespace, reaper, outbox))
    }

    fn cleanup<'a>(
        &'a self,
        namespace: &'a str,
        id: &'a str,
        bundle: &'a Bundle,
        reaper: Rc<Reaper>,
    ) -> Pin<Box<dyn Future<Output = shim::Result<DeleteResponse>> + 'a>> {
        Box::pin(cleanup::cleanup(namespace, id, bundle, reaper))
    }
}

fn main() -> ExitCode {
    if std::env::args_os()
        .next()
        .is_some_and(|name| name == enter::NAME)
    {
        return enter::main();
    }
    shim::run(&Runc)
}
