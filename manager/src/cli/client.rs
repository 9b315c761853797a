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
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::net::UnixStream;
use tonic::Request;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tower_service::Service;

pub struct Client {
    channel: Channel,
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
        Ok(Self { channel, namespace })
    }

    /// The same connection, for another namespace.
    ///
    /// # Errors
    /// A text, if it is no name.
    pub fn of(&self, namespace: &str) -> Result<Self, String> {
        let bad = |_| format!("namespace {namespace:?}: not a name");
        Ok(Self {
            channel: self.channel.clone(),
            namespace: namespace.parse().map_err(bad)?,
        })
    }

    /// `message`, for our namespace.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
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
