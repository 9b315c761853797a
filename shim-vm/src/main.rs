// SPDX-License-Identifier: Apache-2.0
//! `containerd-shim-vm-v2`: containers in a microVM, with the engine of crate `task` inside.
//!
//! ```text
//!  containerd ── Task API ──> service ── asks, field by field ──> link ──> agent in the VM
//!             <── events ─── outbox <── events: rebuilt <──────────┘        │ the same engine,
//!  clients' FIFOs, loggers <── streams <───────────────────────────┘        │ crun
//!  rootfs, volumes ── share: bind mounts ── fsd ── virtio-fs ──────────────>│
//! ```

mod accel;
mod adopt;
mod block;
mod boot;
mod bpf;
mod calls;
mod check;
mod checkpoint;
mod child;
mod cleanup;
mod clock;
mod config;
mod console;
mod container;
mod container_sockets;
mod debug;
mod devices;
mod events;
mod files;
mod filter;
mod forget;
mod fsd;
mod hooks;
mod image;
mod info;
mod jail;
mod limits;
mod link;
mod localhost;
mod machine;
mod make;
mod mirrors;
mod namespaces;
mod network;
mod notices;
mod ooms;
mod overhead;
mod patience;
mod place;
mod pod;
mod points;
mod pool;
mod program;
mod promises;
mod qemu;
mod remembered;
mod rights;
mod root;
mod rootfs;
mod runtime;
mod sandbox;
mod shape;
mod share;
mod shared_vm;
mod skeleton;
mod sockets;
mod source;
mod spec;
mod start;
mod sys;
mod template;
mod unmake;
mod users;
mod vm;
mod wants;
mod word;

use config::Config;
use protos::Any;
use protos::task::DeleteResponse;
use protos::types::RuntimeInfo;
use std::future::Future;
use std::io::{self, Write};
use std::pin::Pin;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;
use task::bundle::Bundle;
use task::handover::Engine;
use task::outbox::Outbox;
use task::reaper::Reaper;

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

struct Vm;

impl shim::Shim for Vm {
    fn name(&self) -> &'static str {
        "io.containerd.vm.v2"
    }

    fn commands(&self) -> &'static [(&'static str, &'static str)] {
        &[
            (
                "check",
                "run a container in a VM, tell what with and how fast, and exit",
            ),
            (
                "pool",
                "keep VMs in store that shims take instead of booting one",
            ),
            (
                "console -id ID",
                "print the last lines of a VM's console, and with -follow those that come",
            ),
            (
                "exec -id ID PROGRAM",
                "run a program of the host's in the guest of a VM",
            ),
            (
                "template [NAME=VALUE...]",
                "save a VM that has booted, for others to begin as it",
            ),
        ]
    }

    fn info(&self, options: Option<Any>) -> shim::Result<RuntimeInfo> {
        Ok(info::info(self.name(), options))
    }

    fn mounts(&self) -> Option<&'static shim::Mounts> {
        Some(&rootfs::MOUNTS)
    }

    fn makes_sandboxes(&self) -> bool {
        true
    }

    fn outlives(&self) -> Option<Duration> {
        // What is wrong with it, the first Create says.
        Config::load().ok()?.outlives()
    }

    fn understands(&self, engine: &Engine) -> task::Result<()> {
        runtime::Service::understands(engine)
    }

    fn daemon(
        &self,
        namespace: String,
        reaper: Rc<Reaper>,
        outbox: Rc<Outbox>,
    ) -> shim::Result<Rc<dyn shim::Daemon>> {
        Ok(runtime::service(namespace, reaper, outbox))
    }

    fn cleanup<'a>(
        &'a self,
        namespace: &'a str,
        id: &'a str,
        bundle: &'a Bundle,
        reaper: Rc<Reaper>,
    ) -> Boxed<'a, shim::Result<DeleteResponse>> {
        Box::pin(cleanup::cleanup(namespace, id, bundle, reaper))
    }
}

fn main() -> ExitCode {
    let args = std::env::args_os().skip(1);
    let args: Vec<String> = args.map(|arg| arg.to_string_lossy().into_owned()).collect();
    let told = |text: String| {
        let _ = io::stdout().write_all(text.as_bytes());
        ExitCode::SUCCESS
    };
    let done = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["fsd", dir, most] => fsd::serve(dir, most, false).map(|()| ExitCode::SUCCESS),
        ["fsd", dir, most, fsd::WITH_SOCKETS] => {
            fsd::serve(dir, most, true).map(|()| ExitCode::SUCCESS)
        }
        [pool::SPARE, pool, memory, vcpus] => pool::spare(pool, memory, vcpus),
        [pool::HOLD, ref pids @ ..] => pool::hold(pids),
        ["pool", ref words @ ..] => pool::pool(words),
        ["template", ref words @ ..] => template::make::make(words).map(told),
        ["check"] => check::check().map(told),
        [check::WAITS] => check::wait(),
        ["console", ref words @ ..] => debug::console(words),
        ["exec", ref words @ ..] => debug::exec(words),
        _ => return shim::run(&Vm),
    };
    match done {
        Ok(code) => code,
        Err(why) => {
            let _ = io::stderr().write_all(format!("{why}\n").as_bytes());
            ExitCode::FAILURE
        }
    }
}
