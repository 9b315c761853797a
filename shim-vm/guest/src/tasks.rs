//! The Task API over the link: the engine's, with streams of the link in place of the host's
//! paths.

use crate::roots::Leaving;
use crate::stdio::{Held, Parked};
use protos::mux::MAX_ANSWER;
use protos::task::{
    CloseIoRequest, CreateTaskRequest, DeleteRequest, ExecProcessRequest, PidsResponse,
    StartRequest,
};
use protos::ttrpc::{Answer, Context, Request, Service};
use protos::{Code, Message, Status};
use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use task::aside;

/// What an answer may have, beside the envelope of ttrpc.
const LONGEST: usize = MAX_ANSWER - 1024;

/// Container and exec id; no exec id is init.
type Key = (String, String);

pub struct Tasks {
    engine: Rc<task::Service>,
    parked: Rc<Parked>,
    /// Streams of execs that the engine opens when they start.
    held: RefCell<HashMap<Key, Held>>,
    leaving: Rc<Leaving>,
}

impl Tasks {
    pub fn new(engine: Rc<task::Service>, parked: Rc<Parked>, leaving: Rc<Leaving>) -> Rc<Self> {
        Rc::new(Self {
            engine,
            parked,
            held: RefCell::default(),
            leaving,
        })
    }

    async fn engine(&self, request: Request) -> Answer {
        Rc::clone(&self.engine).call(request).await
    }

    fn hold(
        &self,
        key: Key,
        stdin: &mut String,
        stdout: &mut String,
        stderr: &mut String,
    ) -> Result<Held, Status> {
        let failed = |e: io::Error| Status::new(Code::Unknown, format!("streams: {e}"));
        let mut held = Held::default();
        held.output(&self.parked, stdout).map_err(failed)?;
        held.output(&self.parked, stderr).map_err(failed)?;
        let ended = close_stdin(Rc::clone(&self.engine), key);
        held.input(&self.parked, stdin, ended).map_err(failed)?;
        Ok(held)
    }

    async fn create(&self, mut request: Request) -> Answer {
        let mut create: CreateTaskRequest = decode(&request.payload)?;
        let key = (create.id.clone(), String::new());
        let held = self.hold(
            key,
            &mut create.stdin,
            &mut create.stdout,
            &mut create.stderr,
        )?;
        request.payload = create.encode_to_vec();
        let answer = self.engine(request).await;
        drop(held);
        if answer.is_err() {
            remove_bundle(create.bundle).await;
            self.leaving.hide(&create.id).await;
        }
        answer
    }

    async fn exec(&self, mut request: Request) -> Answer {
        let mut exec: ExecProcessRequest = decode(&request.payload)?;
        let key = (exec.id.clone(), exec.exec_id.clone());
        let held = self.hold(
            key.clone(),
            &mut exec.stdin,
            &mut exec.stdout,
            &mut exec.stderr,
        )?;
        request.payload = exec.encode_to_vec();
        let answer = self.engine(request).await;
        if answer.is_ok() {
            self.held.borrow_mut().insert(key, held);
        }
        answer
    }

    async fn start(&self, request: Request) -> Answer {
        let start: StartRequest = decode(&request.payload)?;
        let answer = self.engine(request).await;
        self.held.borrow_mut().remove(&(start.id, start.exec_id));
        answer
    }

    async fn delete(&self, request: Request) -> Answer {
        let delete: DeleteRequest = decode(&request.payload)?;
        let answer = self.engine(request).await;
        if answer.is_ok() {
            if delete.exec_id.is_empty() {
                let bundle = Path::new(crate::boot::BUNDLES).join(&delete.id);
                remove_bundle(bundle.to_string_lossy().into_owned()).await;
                self.leaving.hide(&delete.id).await;
                self.held.borrow_mut().retain(|(id, _), _| *id != delete.id);
            }
            self.held.borrow_mut().remove(&(delete.id, delete.exec_id));
        }
        answer
    }
}

impl Tasks {
    /// The pids of a guest mean nothing to its host: it is told of execs alone.
    async fn pids(&self, request: Request) -> Answer {
        let mut pids: PidsResponse = decode(&self.engine(request).await?)?;
        pids.processes.retain(|process| process.info.is_some());
        Ok(pids.encode_to_vec())
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

impl Service for Tasks {
    fn call(self: Rc<Self>, request: Request) -> Pin<Box<dyn Future<Output = Answer>>> {
        Box::pin(async move {
            let answer = match request.method.as_str() {
                "Create" => self.create(request).await,
                "Exec" => self.exec(request).await,
                "Start" => self.start(request).await,
                "Delete" => self.delete(request).await,
                "Pids" => self.pids(request).await,
                _ => self.engine(request).await,
            };
            short(answer)
        })
    }
}

/// End of file for a process whose client has closed its stdin.
async fn close_stdin(engine: Rc<task::Service>, (id, exec_id): Key) {
    let request = CloseIoRequest {
        id,
        exec_id,
        stdin: true,
    };
    let request = Request {
        method: "CloseIO".into(),
        payload: request.encode_to_vec(),
        context: Context::background(),
        moved: false,
    };
    // It may have ended by now.
    let _ = engine.call(request).await;
}

async fn remove_bundle(bundle: String) {
    let removed = aside::run(move || {
        std::fs::remove_dir_all(&bundle).map_err(|e| format!("remove {bundle}: {e}"))
    });
    if let Err(why) = removed.await {
        log::warn!("{why}");
    }
}

fn decode<M: Message + Default>(payload: &[u8]) -> Result<M, Status> {
    M::decode(payload).map_err(|e| Status::new(Code::InvalidArgument, format!("request: {e}")))
}
