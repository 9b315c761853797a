// SPDX-License-Identifier: Apache-2.0
//! The client's connection to a daemon, ours or containerd's.

use crate::services::containerd::services as generated;
use crate::services::dunnage::v1::journal_client::JournalClient;
use generated::containers::v1::containers_client::ContainersClient;
use generated::events::v1::events_client::EventsClient;
use generated::introspection::v1::introspection_client::IntrospectionClient;
use generated::namespaces::v1::namespaces_client::NamespacesClient;
use generated::tasks::v1::tasks_client::TasksClient;
use generated::version::v1::version_client::VersionClient;
use hyper_util::rt::TokioIo;
use protos::ttrpc::Trace;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};
use tower_service::Service;

/// How long who waits for something waits for a daemon that went away, as for its upgrade, and how
/// often it looks.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(100);

/// Asks until it is answered, also by the next daemon.
///
/// # Errors
/// The daemon's, or that it did not come again.
pub async fn lasting<T>(ask: impl AsyncFn() -> Result<T, Status>) -> Result<T, Status> {
    let mut there = Instant::now();
    loop {
        let asked = Instant::now();
        let lost = match ask().await {
            Err(e) if is_lost(&e) => e,
            answer => return answer,
        };
        // What took so long was with a daemon.
        if asked.elapsed() > LOOK {
            there = Instant::now();
        }
        if there.elapsed() > PATIENCE {
            return Err(lost);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether that is no daemon's word, but that none was heard.
pub fn is_lost(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

pub struct Client {
    channel: Channel,
    /// On whose behalf it asks.
    trace: Option<Rc<Trace>>,
    namespace: MetadataValue<tonic::metadata::Ascii>,
}

/// Connects to a unix socket, whatever the URI says.
#[derive(Clone)]
struct Connect(PathBuf);

type Connecting = Pin<Box<dyn Future<Output = std::io::Result<TokioIo<UnixStream>>> + Send>>;

impl Service<Uri> for Connect {
    type Response = TokioIo<UnixStream>;
    type Error = std::io::Error;
    type Future = Connecting;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Connecting {
        let path = self.0.clone();
        Box::pin(async move { Ok(TokioIo::new(UnixStream::connect(path).await?)) })
    }
}

impl Client {
    /// # Errors
    /// A text, if nobody listens there.
    pub async fn connect(address: &Path, namespace: &str) -> Result<Self, String> {
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = endpoint
            .connect_with_connector(Connect(address.to_owned()))
            .await;
        let channel = channel.map_err(|e| {
            let mut cause: &dyn std::error::Error = &e;
            while let Some(deeper) = cause.source() {
                cause = deeper;
            }
            format!("cannot connect to {}: {cause}", address.display())
        })?;
        let namespace = namespace
            .parse()
            .map_err(|_| format!("namespace {namespace:?}: not a name"))?;
        Ok(Self {
            channel,
            trace: None,
            namespace,
        })
    }

    /// The same connection, for another namespace.
    ///
    /// # Errors
    /// A text, if it is no name.
    pub fn of(&self, namespace: &str) -> Result<Self, String> {
        let bad = |_| format!("namespace {namespace:?}: not a name");
        Ok(Self {
            channel: self.channel.clone(),
            trace: self.trace.clone(),
            namespace: namespace.parse().map_err(bad)?,
        })
    }

    /// From now on it asks on behalf of `trace`.
    #[must_use]
    pub fn traced(self, trace: Option<Rc<Trace>>) -> Self {
        Self { trace, ..self }
    }

    /// `message`, for our namespace.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let trace = self.trace.iter().flat_map(|trace| trace.pairs());
        for (key, value) in trace {
            if let Ok(value) = value.parse() {
                request.metadata_mut().insert(key, value);
            }
        }
        request
            .metadata_mut()
            .insert("containerd-namespace", self.namespace.clone());
        request
    }

    pub fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel.clone()).max_decoding_message_size(16 << 20)
    }

    pub fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel.clone()).max_decoding_message_size(16 << 20)
    }

    pub fn events(&self) -> EventsClient<Channel> {
        EventsClient::new(self.channel.clone())
    }

    pub fn namespaces(&self) -> NamespacesClient<Channel> {
        NamespacesClient::new(self.channel.clone())
    }

    pub fn introspection(&self) -> IntrospectionClient<Channel> {
        IntrospectionClient::new(self.channel.clone())
    }

    pub fn journal(&self) -> JournalClient<Channel> {
        JournalClient::new(self.channel.clone())
    }

    pub fn version(&self) -> VersionClient<Channel> {
        VersionClient::new(self.channel.clone())
    }
}
