// SPDX-License-Identifier: Apache-2.0
//! The Debug service: what an operator of the host sees of a VM, and does in it.
//!
//! A program that is run in the guest is the host's own: the image has none. It goes there over one stream
//! of the link, and its standard streams are another, to a socket where the caller listens.

mod cli;

pub use cli::{console, exec};

use crate::config::Config;
use crate::runtime::Service;
use crate::vm::Vm;
use nix::sys::stat::SFlag;
use protos::guest::RunRequest;
use protos::mux::Stream;
use protos::ttrpc::{Answer, Context, Request};
use protos::vm::{ConsoleRequest, ConsoleResponse, ExecRequest, ExecResponse};
use protos::{Code, Status, api};
use std::fs::File;
use std::future::Future;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::pin::Pin;
use std::rc::Rc;
use task::aside;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

/// What is read of a program at once.
const PART: usize = 128 << 10;

/// Of the VM of a shim.
pub struct Debug(Rc<Service>);

impl Debug {
    pub fn new(service: Rc<Service>) -> Self {
        Self(service)
    }

    fn vm(&self) -> Result<Rc<Vm>, Status> {
        let vm = self.0.engine().runtime.vm.borrow().clone();
        vm.ok_or_else(|| Status::new(Code::FailedPrecondition, "there is no VM"))
    }
}

impl api::debug::Debug for Debug {
    type Error = Status;

    async fn console(
        self: &Rc<Self>,
        request: ConsoleRequest,
        context: &Context,
    ) -> Result<ConsoleResponse, Status> {
        let vm = self.vm()?;
        if request.wait {
            tokio::select! {
                () = vm.console().said_after(request.after) => {}
                _ = vm.gone() => {}
                why = context.cancelled() => return Err(why),
            }
        }
        let (lines, last) = vm.console().since(request.after);
        Ok(ConsoleResponse {
            lines,
            last,
            gone: vm.end().unwrap_or_default(),
        })
    }

    async fn exec(
        self: &Rc<Self>,
        request: ExecRequest,
        context: &Context,
    ) -> Result<ExecResponse, Status> {
        let vm = self.vm()?;
        let failed = |e: &dyn std::fmt::Display| {
            let text = format!("run {} in the VM: {e}", request.program);
            Status::new(Code::Unknown, text)
        };
        let path = request.program.clone();
        let opened = aside::run(move || {
            is_allowed()?;
            open(&path).map_err(|e| Refused::Failed(e.to_string()))
        });
        let program = opened.await.map_err(|why| match why {
            Refused::Failed(why) => failed(&why),
            Refused::NotAllowed(why) => Status::new(Code::PermissionDenied, why),
        })?;
        let slot = vm.relays.slot();
        let slot = slot.ok_or_else(|| failed(&"there are too many connections"))?;
        let socket = UnixStream::connect(&request.socket).await;
        let socket = socket.and_then(UnixStream::into_std);
        let socket = socket.map_err(|e| failed(&e))?;
        let (code, stream) = (vm.link().open(), vm.link().open());
        let run = RunRequest {
            program: code.number(),
            stream: stream.number(),
            arguments: request.arguments.clone(),
        };
        let relay = vm.relays.start(slot, socket.into(), stream);
        let relay = relay.map_err(|e| failed(&e))?;
        let sent = async {
            match send(program, code).await {
                Ok(()) => std::future::pending().await,
                Err(e) => e,
            }
        };
        let ran = tokio::select! {
            ran = vm.ask(&run, context) => ran,
            e = sent => Err(failed(&e)),
        };
        // Whoever has asked may be gone: then nobody hears the program, and it ends.
        let status = ran.inspect_err(|_| relay.abort())?.status;
        Ok(ExecResponse { status })
    }
}

impl protos::ttrpc::Service for Debug {
    fn call(self: Rc<Self>, request: Request) -> Pin<Box<dyn Future<Output = Answer>>> {
        api::debug::serve(self, request)
    }

    fn only_waits(&self, method: &str) -> bool {
        api::debug::only_waits(method)
    }
}

/// Why a program is not run.
enum Refused {
    NotAllowed(String),
    Failed(String),
}

/// The settings that count are those of now: a VM that was booted before may have to be looked into.
fn is_allowed() -> Result<(), Refused> {
    let config = Config::load().map_err(Refused::Failed)?;
    if config.debug_exec {
        return Ok(());
    }
    let file = Config::file();
    let why = format!(
        "exec into a VM: not allowed by debug_exec of {}",
        file.display()
    );
    Err(Refused::NotAllowed(why))
}

fn open(path: &str) -> io::Result<File> {
    if !path.starts_with('/') {
        return Err(io::Error::other("not an absolute path"));
    }
    let mut options = File::options();
    let file = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let kind = SFlag::from_bits_truncate(file.metadata()?.mode()) & SFlag::S_IFMT;
    match kind {
        SFlag::S_IFREG => Ok(file),
        _ => Err(io::Error::other("not a file")),
    }
}

/// Sends a program to the guest, no faster than that takes it.
async fn send(mut program: File, mut to: Stream) -> io::Result<()> {
    loop {
        let read = aside::run(move || {
            let mut part = vec![0; PART];
            let n = program.read(&mut part)?;
            part.truncate(n);
            Ok::<_, io::Error>((program, part))
        });
        let (again, part) = read.await?;
        if part.is_empty() {
            to.shutdown().await?;
            // The guest ends its way when it has all.
            to.readable().await;
            return Ok(());
        }
        to.write_all(&part).await?;
        program = again;
    }
}
