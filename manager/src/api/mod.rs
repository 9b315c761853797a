// SPDX-License-Identifier: Apache-2.0
//! containerd's gRPC API: 38 methods, and a clear refusal of the rest.
//!
//! tonic wants its services to be `Send`, and the manager is not: a handler sends its work to
//! the one loop that owns everything, and waits for the answer.
//!
//! ```text
//!  connection ─> Router ─> tonic's generated server ─> Api::run ══ job ══> loop ─> the functions in
//!  (tonic's task)                                        ^                         tasks.rs, …
//!                                                        '═══════ answer ══════════════'
//! ```

mod containers;
mod events;
mod introspection;
mod journal;
mod leases;
mod metrics;
mod namespaces;
mod process;
mod router;
mod tasks;
mod traced;

pub use router::Router;
use traced::{Called, Caller};

use crate::failure::Failure;
use crate::manager::Manager;
use crate::names::check_namespace;
use protos::Code;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::{Request, Response};

/// Largest message, as containerd's (defaults.DefaultMaxRecvMsgSize).
const MAX_MESSAGE: usize = 16 << 20;

type Work = Box<dyn FnOnce(Rc<Manager>) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// One request.
pub struct Job {
    /// It may wait for ever.
    is_patient: bool,
    work: Work,
}

/// The services' way to the manager.
#[derive(Clone)]
pub struct Api {
    jobs: mpsc::UnboundedSender<Job>,
}

/// Runs what the services send, each as a task of its own.
pub async fn serve(manager: Rc<Manager>, mut jobs: mpsc::UnboundedReceiver<Job>) {
    let mut held = manager.held.subscribe();
    while let Some(Job { is_patient, work }) = jobs.recv().await {
        if held.wait_for(|held| !held).await.is_err() {
            return;
        }
        let manager = Rc::clone(&manager);
        tokio::task::spawn_local(async move {
            let _busy = (!is_patient).then(|| Busy::new(&manager.requests));
            work(Rc::clone(&manager)).await;
        });
    }
}

/// Counts a request for as long as it is worked on.
struct Busy<'a>(&'a watch::Sender<usize>);

impl<'a> Busy<'a> {
    fn new(requests: &'a watch::Sender<usize>) -> Self {
        requests.send_modify(|count| *count += 1);
        Self(requests)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Api {
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Job>) {
        let (jobs, receiver) = mpsc::unbounded_channel();
        (Self { jobs }, receiver)
    }

    /// Runs `job` on the loop. It goes on if the caller goes away, unless `drops` says that
    /// nobody else has a use for it.
    async fn run<Q, A, F, Fut>(
        &self,
        request: Request<Q>,
        drops: bool,
        job: F,
    ) -> Result<Response<A>, tonic::Status>
    where
        Q: Send + 'static,
        A: Send + 'static,
        F: FnOnce(Rc<Manager>, String, Q) -> Fut + Send + 'static,
        Fut: Future<Output = Result<A, Failure>> + 'static,
    {
        let header = request.metadata().get("containerd-namespace");
        let namespace = header
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let namespace = namespace.to_owned();
        let caller = Caller::of(&request);
        let (mut sender, answer) = oneshot::channel();
        let run = move |manager| -> Pin<Box<dyn Future<Output = ()>>> {
            let work = job(manager, namespace, request.into_inner());
            let work = caller.traced(work);
            Box::pin(async move {
                if drops {
                    tokio::select! {
                        answer = work => drop(sender.send(answer)),
                        () = sender.closed() => {}
                    }
                } else {
                    let _ = sender.send(work.await);
                }
            })
        };
        let stopping = || tonic::Status::unavailable("dunnage is stopping");
        let job = Job {
            is_patient: drops,
            work: Box::new(run),
        };
        self.jobs.send(job).map_err(|_| stopping())?;
        let answer = answer.await.map_err(|_| stopping())?;
        answer.map(Response::new).map_err(refused)
    }
}

fn refused(failure: Failure) -> tonic::Status {
    if failure.code == Code::Unknown {
        log::warn!("{}", failure.message);
    } else {
        log::debug!("{failure}");
    }
    tonic::Status::new(tonic::Code::from_i32(failure.code as i32), failure.message)
}

/// Implements a generated trait: each method is a function `(manager, namespace, request)` of the
/// same name, run on the loop. Where it says `namespaced`, a request without one is refused.
macro_rules! service {
    (@check true $namespace:ident) => { crate::names::check_namespace(&$namespace)? };
    (@check false $namespace:ident) => { let _ = &$namespace; };
    ($trait:path, namespaced: $namespaced:tt; $([type $assoc:ident = $stream:ty])?
     $($name:ident($request:ty) -> $answer:ty $(, drops: $drops:literal)?;)*) => {
        #[tonic::async_trait]
        impl $trait for crate::api::Api {
            $(type $assoc = $stream;)?
            $(
                async fn $name(
                    &self,
                    request: tonic::Request<$request>,
                ) -> Result<tonic::Response<$answer>, tonic::Status> {
                    let drops = false $(|| $drops)?;
                    self.run(request, drops, |manager, namespace, request| async move {
                        service!(@check $namespaced namespace);
                        $name(manager, namespace, request).await
                    })
                    .await
                }
            )*
        }
    };
}
pub(in crate::api) use service;

/// A stream of messages to a client.
pub struct Stream<T>(Pin<Box<dyn tokio_stream::Stream<Item = Result<T, tonic::Status>> + Send>>);

impl<T> Stream<T> {
    pub fn new(
        stream: impl tokio_stream::Stream<Item = Result<T, tonic::Status>> + Send + 'static,
    ) -> Self {
        Self(Box::pin(stream))
    }
}

impl<T> tokio_stream::Stream for Stream<T> {
    type Item = Result<T, tonic::Status>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(context)
    }
}

/// Some requests name a namespace only if they have one.
fn optional_namespace(namespace: &str) -> Result<(), Failure> {
    if namespace.is_empty() {
        return Ok(());
    }
    check_namespace(namespace)
}
