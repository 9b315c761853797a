// SPDX-License-Identifier: Apache-2.0
//! What shims publish: the ttrpc Events service that writes it down, in the order it came.

use crate::wait;
use protos::events_service::ForwardRequest;
use protos::ttrpc::{Kind as Frame, read_frame, wire, write_frame};
use protos::{Any, Code, Message, Name, Timestamp, events, service};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};

/// The event in an envelope.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    Create(events::TaskCreate),
    Start(events::TaskStart),
    Oom(events::TaskOom),
    Exit(events::TaskExit),
    Delete(events::TaskDelete),
    ExecAdded(events::TaskExecAdded),
    ExecStarted(events::TaskExecStarted),
    Paused(events::TaskPaused),
    Resumed(events::TaskResumed),
    Checkpointed(events::TaskCheckpointed),
    Other(Any),
}

/// One envelope, decoded.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub namespace: String,
    pub topic: String,
    pub timestamp: Option<Timestamp>,
    pub kind: Kind,
    /// The headers it came with.
    pub metadata: Vec<(String, String)>,
}

impl Event {
    fn new(request: ForwardRequest) -> Self {
        let envelope = request.envelope.unwrap_or_default();
        let kind = envelope
            .event
            .map_or(Kind::Other(Any::default()), Kind::from);
        let (namespace, topic) = (envelope.namespace, envelope.topic);
        Self {
            namespace,
            topic,
            timestamp: envelope.timestamp,
            kind,
            metadata: Vec::new(),
        }
    }

    /// The container it is about.
    pub fn container(&self) -> &str {
        match &self.kind {
            Kind::Create(e) => &e.container_id,
            Kind::Start(e) => &e.container_id,
            Kind::Oom(e) => &e.container_id,
            Kind::Exit(e) => &e.container_id,
            Kind::Delete(e) => &e.container_id,
            Kind::ExecAdded(e) => &e.container_id,
            Kind::ExecStarted(e) => &e.container_id,
            Kind::Paused(e) => &e.container_id,
            Kind::Resumed(e) => &e.container_id,
            Kind::Checkpointed(e) => &e.container_id,
            Kind::Other(_) => "",
        }
    }

    /// The TaskExit of process `id` (the container's id for init) of `container`.
    pub fn exit_of(&self, container: &str, id: &str) -> Option<&events::TaskExit> {
        match &self.kind {
            Kind::Exit(exit) if exit.container_id == container && exit.id == id => Some(exit),
            _ => None,
        }
    }

    /// One short line, for people.
    pub fn line(&self) -> String {
        format!("{} {:?}", self.topic, self.kind)
    }
}

impl From<Any> for Kind {
    fn from(any: Any) -> Self {
        fn of<M: Name + Default>(any: &Any, kind: fn(M) -> Kind) -> Option<Kind> {
            let message = (any.type_url == M::full_name()).then(|| M::decode(any.value.as_slice()));
            Some(kind(message?.ok()?))
        }
        of(&any, Kind::Create)
            .or_else(|| of(&any, Kind::Start))
            .or_else(|| of(&any, Kind::Oom))
            .or_else(|| of(&any, Kind::Exit))
            .or_else(|| of(&any, Kind::Delete))
            .or_else(|| of(&any, Kind::ExecAdded))
            .or_else(|| of(&any, Kind::ExecStarted))
            .or_else(|| of(&any, Kind::Paused))
            .or_else(|| of(&any, Kind::Resumed))
            .or_else(|| of(&any, Kind::Checkpointed))
            .unwrap_or(Kind::Other(any))
    }
}

/// The receiving end. Clones share what arrived.
#[derive(Clone, Default)]
pub struct Events {
    book: Rc<Book>,
}

#[derive(Default)]
struct Book {
    events: RefCell<Vec<Event>>,
    more: Notify,
    /// How many answers are still to be an error.
    refusals: RefCell<usize>,
    server: RefCell<Option<(PathBuf, JoinHandle<()>)>>,
}

impl Events {
    /// Serves at `socket`, from the current runtime, until [`Events::hang_up`].
    pub fn serve(&self, socket: &Path) {
        let listener = UnixListener::bind(socket).expect("events socket");
        let book = Rc::clone(&self.book);
        let server = tokio::task::spawn_local(async move {
            // The connections end with the server: they are tasks of its own.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn_local(receive(stream, Rc::clone(&book)));
            }
        });
        *self.book.server.borrow_mut() = Some((socket.to_owned(), server));
    }

    /// Closes the socket, with every connection, as containerd does when it dies.
    pub async fn hang_up(&self) {
        let server = self.book.server.borrow_mut().take();
        let (socket, server) = server.expect("events are being served");
        server.abort();
        let _ = server.await;
        std::fs::remove_file(socket).expect("events socket");
    }

    /// Makes the next Forward fail; its envelope is not written down.
    pub fn refuse_next(&self) {
        *self.book.refusals.borrow_mut() += 1;
    }

    /// Forgets all that arrived so far; nobody may be following.
    pub fn forget(&self) {
        self.book.events.borrow_mut().clear();
    }

    /// All that arrived so far.
    pub fn all(&self) -> Vec<Event> {
        self.book.events.borrow().clone()
    }

    /// All that arrived so far about one container.
    pub fn about(&self, container: &str) -> Vec<Event> {
        self.all()
            .into_iter()
            .filter(|e| e.container() == container)
            .collect()
    }

    /// How many `select` chooses of what arrived so far.
    pub fn count(&self, select: impl Fn(&Event) -> bool) -> usize {
        self.book
            .events
            .borrow()
            .iter()
            .filter(|e| select(e))
            .count()
    }

    /// The first event that `select` maps to something, when it has come.
    pub async fn wait_for<T>(&self, what: &str, select: impl Fn(&Event) -> Option<T>) -> T {
        self.wait_within(wait::DEADLINE, what, select).await
    }

    /// [`Events::wait_for`] with a deadline of its own.
    pub async fn wait_within<T>(
        &self,
        limit: Duration,
        what: &str,
        select: impl Fn(&Event) -> Option<T>,
    ) -> T {
        let found = async {
            loop {
                let more = self.book.more.notified();
                if let Some(found) = self.book.events.borrow().iter().find_map(&select) {
                    return found;
                }
                more.await;
            }
        };
        match tokio::time::timeout(limit, found).await {
            Ok(found) => found,
            Err(_) => panic!(
                "not within {limit:?}: event {what}; arrived:\n{}",
                self.text()
            ),
        }
    }

    /// Waits for `count` events that `select` chooses.
    pub async fn wait_count(&self, what: &str, count: usize, select: impl Fn(&Event) -> bool) {
        let enough = async {
            loop {
                let more = self.book.more.notified();
                if self.count(&select) >= count {
                    return;
                }
                more.await;
            }
        };
        if tokio::time::timeout(wait::DEADLINE, enough).await.is_err() {
            let got = self.count(&select);
            panic!(
                "{got} of {count} events {what} within {:?}:\n{}",
                wait::DEADLINE,
                self.text()
            );
        }
    }

    /// How many TaskExit came for process `id` of `container`.
    pub fn exits(&self, container: &str, id: &str) -> usize {
        self.count(|e| e.exit_of(container, id).is_some())
    }

    /// Waits for the TaskExit of process `id` of `container`.
    pub async fn exit(&self, container: &str, id: &str) -> events::TaskExit {
        let what = format!("TaskExit of {container}/{id}");
        self.wait_for(&what, |e| e.exit_of(container, id).cloned())
            .await
    }

    /// Waits for the TaskDelete of `container`.
    pub async fn delete(&self, container: &str) -> events::TaskDelete {
        self.wait_for(&format!("TaskDelete of {container}"), |e| match &e.kind {
            Kind::Delete(delete) if delete.container_id == container => Some(delete.clone()),
            _ => None,
        })
        .await
    }

    /// A cursor that gives every event exactly once, in order.
    pub fn follow(&self) -> Follower {
        Follower {
            events: self.clone(),
            next: 0,
        }
    }

    /// Everything that arrived, one line each.
    pub fn text(&self) -> String {
        let lines: Vec<String> = self.book.events.borrow().iter().map(Event::line).collect();
        lines.join("\n")
    }
}

/// See [`Events::follow`].
pub struct Follower {
    events: Events,
    next: usize,
}

impl Follower {
    /// The next event.
    pub async fn next(&mut self) -> Event {
        let got = async {
            loop {
                let more = self.events.book.more.notified();
                if let Some(event) = self.events.book.events.borrow().get(self.next) {
                    return event.clone();
                }
                more.await;
            }
        };
        let Ok(event) = tokio::time::timeout(wait::DEADLINE, got).await else {
            panic!(
                "no event number {} within {:?}:\n{}",
                self.next,
                wait::DEADLINE,
                self.events.text()
            )
        };
        self.next += 1;
        event
    }

    /// The next event, as (topic, kind).
    pub async fn kind(&mut self) -> Kind {
        self.next().await.kind
    }

    /// What has come and was not taken yet.
    pub fn rest(&self) -> Vec<Event> {
        self.events.book.events.borrow()[self.next..].to_vec()
    }
}

/// Answers the calls of one connection, one after the other.
async fn receive(mut stream: UnixStream, book: Rc<Book>) {
    while let Ok(Some(frame)) = read_frame(&mut stream).await {
        let request = wire::Request::decode(frame.payload.as_slice()).expect("ttrpc request");
        let status = record(&request, &book).err();
        let response = wire::Response {
            status,
            payload: Vec::new(),
        }
        .encode_to_vec();
        if write_frame(&mut stream, frame.stream, Frame::Response, &response)
            .await
            .is_err()
        {
            return;
        }
    }
}

fn record(request: &wire::Request, book: &Book) -> Result<(), wire::Status> {
    let status = |code: Code, text: String| wire::Status {
        code: code as i32,
        message: text,
        details: Vec::new(),
    };
    if (request.service.as_str(), request.method.as_str()) != (service::EVENTS, "Forward") {
        return Err(status(
            Code::Unimplemented,
            format!("{}/{}", request.service, request.method),
        ));
    }
    let forward = ForwardRequest::decode(request.payload.as_slice())
        .map_err(|e| status(Code::InvalidArgument, e.to_string()))?;
    let mut refusals = book.refusals.borrow_mut();
    if *refusals > 0 {
        *refusals -= 1;
        return Err(status(Code::Unavailable, "the receiver refuses".to_owned()));
    }
    let mut event = Event::new(forward);
    event.metadata = request
        .metadata
        .iter()
        .map(|kv| (kv.key.clone(), kv.value.clone()))
        .collect();
    book.events.borrow_mut().push(event);
    book.more.notify_waiters();
    Ok(())
}
