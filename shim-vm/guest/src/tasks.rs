// SPDX-License-Identifier: Apache-2.0
//! The Task API over the link: the engine's, and what a VM has to do beside it.

use crate::boot;
use crate::layers::Layers;
use crate::roots::Leaving;
use protos::api::task::Task;
use protos::mux::MAX_ANSWER;
use protos::task::*;
use protos::ttrpc::{Answer, Context, Request, Service};
use protos::{Code, Status};
use std::cell::Cell;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use task::aside;

/// What an answer may have, beside the envelope of ttrpc.
const LONGEST: usize = MAX_ANSWER - 1024;

type Done<T> = Result<T, Status>;

/// Methods that are the engine's alone.
macro_rules! passed_on {
    ($($method:ident($Request:ty) -> $Answer:ty;)*) => {
        $(async fn $method(self: &Rc<Self>, request: $Request, context: &Context) -> Done<$Answer> {
            Ok(self.engine.$method(request, context).await?)
        })*
    };
}

pub struct Tasks {
    engine: Rc<task::Service>,
    leaving: Rc<Leaving>,
    layers: Rc<Layers>,
    /// The host is told of memory that is freed.
    frees: Cell<bool>,
}

impl Tasks {
    pub fn new(engine: Rc<task::Service>, leaving: Rc<Leaving>, layers: Rc<Layers>) -> Rc<Self> {
        let frees = Cell::new(false);
        Rc::new(Self {
            engine,
            leaving,
            layers,
            frees,
        })
    }
}

impl Task for Tasks {
    type Error = Status;

    async fn create(
        self: &Rc<Self>,
        request: CreateTaskRequest,
        context: &Context,
    ) -> Done<CreateTaskResponse> {
        let (id, bundle) = (request.id.clone(), request.bundle.clone());
        let created = self.engine.create(request, context).await;
        if created.is_err() {
            remove_bundle(bundle).await;
            self.layers.unmount(&id).await;
            self.leaving.hide(&id).await;
        }
        Ok(created?)
    }

    async fn delete(
        self: &Rc<Self>,
        request: DeleteRequest,
        context: &Context,
    ) -> Done<DeleteResponse> {
        let (id, is_init) = (request.id.clone(), request.exec_id.is_empty());
        let deleted = self.engine.delete(request, context).await?;
        if is_init {
            let bundle = Path::new(boot::BUNDLES).join(&id);
            remove_bundle(bundle.to_string_lossy().into_owned()).await;
            self.layers.unmount(&id).await;
            self.leaving.hide(&id).await;
        }
        Ok(deleted)
    }

    async fn start(
        self: &Rc<Self>,
        request: StartRequest,
        context: &Context,
    ) -> Done<StartResponse> {
        let started = self.engine.start(request, context).await?;
        // Nothing was freed before; and a boot waits for this driver no longer than it needs.
        if !self.frees.replace(true) {
            tokio::task::spawn_local(aside::beside(|| {
                if let Err(e) = boot::load("virtio_balloon") {
                    log::warn!("memory that is freed stays the guest's: {e}");
                }
            }));
        }
        Ok(started)
    }

    /// The pids of a guest mean nothing to its host: it is told of execs alone.
    async fn pids(self: &Rc<Self>, request: PidsRequest, context: &Context) -> Done<PidsResponse> {
        let mut pids = self.engine.pids(request, context).await?;
        pids.processes.retain(|process| process.info.is_some());
        Ok(pids)
    }

    fn answered(&self, method: &str, answer: Answer) -> Answer {
        short(self.engine.answered(method, answer))
    }

    passed_on! {
        state(StateRequest) -> StateResponse;
        exec(ExecProcessRequest) -> ();
        pause(PauseRequest) -> ();
        resume(ResumeRequest) -> ();
        checkpoint(CheckpointTaskRequest) -> ();
        kill(KillRequest) -> ();
        resize_pty(ResizePtyRequest) -> ();
        close_io(CloseIoRequest) -> ();
        update(UpdateTaskRequest) -> ();
        wait(WaitRequest) -> WaitResponse;
        stats(StatsRequest) -> StatsResponse;
        connect(ConnectRequest) -> ConnectResponse;
        shutdown(ShutdownRequest) -> ();
    }
}

impl Service for Tasks {
    fn call(self: Rc<Self>, request: Request) -> Pin<Box<dyn Future<Output = Answer>>> {
        protos::api::task::serve(self, request)
    }
}

/// An answer that is no longer than the host bears.
fn short(answer: Answer) -> Answer {
    match answer {
        Ok(answer) if answer.len() > LONGEST => {
            let text = format!("an answer of {} bytes", answer.len());
            Err(Status::new(Code::ResourceExhausted, text))
        }
        Err(status) if status.message.len() > LONGEST => {
            let mut message = status.message.into_bytes();
            message.truncate(LONGEST);
            Err(Status::new(status.code, String::from_utf8_lossy(&message)))
        }
        answer => answer,
    }
}

async fn remove_bundle(bundle: String) {
    let removed = aside::run(move || {
        std::fs::remove_dir_all(&bundle).map_err(|e| format!("remove {bundle}: {e}"))
    });
    if let Err(why) = removed.await {
        log::warn!("{why}");
    }
}
