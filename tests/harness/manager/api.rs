// SPDX-License-Identifier: Apache-2.0
//! The daemon's gRPC API itself: for what no client would ask, and for codes that none would show.

use super::{DEADLINE, Manager};
use crate::peers;
use prost::Message;
use prost::bytes::{Buf, BufMut};
use protos::Any;
use protos::services::containers::v1::{
    Container, CreateContainerRequest, CreateContainerResponse, container,
};
use protos::services::events::v1::SubscribeRequest;
use protos::types::Envelope;
use serde_json::json;
use std::path::Path;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// Messages as they are on the wire.
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut item = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut item);
        Ok(Some(item))
    }
}

/// A client of its own connection.
pub struct Api {
    runtime: Runtime,
    channel: Channel,
    pub namespace: String,
}

impl Api {
    pub fn new(manager: &Manager) -> Self {
        Self::at(&manager.socket(), &manager.namespace())
    }

    /// Of the daemon that listens, or will listen, at `socket`.
    pub fn at(socket: &Path, namespace: &str) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("runtime");
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()));
        let channel = {
            let _inside = runtime.enter();
            endpoint.expect("an address").connect_lazy()
        };
        Self {
            runtime,
            channel,
            namespace: namespace.to_owned(),
        }
    }

    /// Calls `Service/Method`, the service named without `containerd.services.`.
    ///
    /// # Errors
    /// The daemon's status; `Unavailable` without a daemon.
    #[track_caller]
    pub fn call<A: Message + Default + 'static>(
        &self,
        method: &str,
        request: impl Message + Default + 'static,
    ) -> Result<A, Status> {
        let path: PathAndQuery = format!("/containerd.services.{method}")
            .parse()
            .expect("a path");
        let mut request = Request::new(request);
        if !self.namespace.is_empty() {
            let value = self.namespace.parse().expect("a header's value");
            request.metadata_mut().insert("containerd-namespace", value);
        }
        let mut grpc = Grpc::new(self.channel.clone());
        let call = async {
            let ready = grpc.ready().await;
            ready.map_err(|e| Status::unavailable(e.to_string()))?;
            grpc.unary(request, path, ProstCodec::default()).await
        };
        let call = async { tokio::time::timeout(DEADLINE, call).await };
        let answer = self.runtime.block_on(call);
        let answer = answer.unwrap_or_else(|_| panic!("no answer to {method} within {DEADLINE:?}"));
        answer
            .map(tonic::Response::into_inner)
            .map_err(|e| match std::error::Error::source(&e) {
                // Not the daemon's word: the connection broke.
                Some(broken) => Status::unavailable(broken.to_string()),
                None => e,
            })
    }

    /// Asks `package.Service/Method` with these bytes, and reads all that it answers; `None` if it has
    /// not ended within `patience`.
    pub fn send(
        &self,
        method: &str,
        bytes: &[u8],
        patience: Duration,
    ) -> Option<Result<(), Status>> {
        let path: PathAndQuery = format!("/{method}").parse().expect("a path");
        let mut request = Request::new(bytes.to_vec());
        let value = self.namespace.parse().expect("a header's value");
        request.metadata_mut().insert("containerd-namespace", value);
        let mut grpc = Grpc::new(self.channel.clone());
        let call = async {
            let ready = grpc.ready().await;
            ready.map_err(|e| Status::from_error(e.into()))?;
            // What is no stream is one with a single message.
            let stream = grpc.server_streaming(request, path, Raw).await;
            let mut stream = stream?.into_inner();
            while stream.message().await?.is_some() {}
            Ok(())
        };
        let call = async { tokio::time::timeout(patience, call).await.ok() };
        self.runtime.block_on(call)
    }

    /// Subscribes to events, and reads none before [`Api::next`] does.
    #[track_caller]
    pub fn subscribe(&self, request: SubscribeRequest) -> Streaming<Envelope> {
        let path = PathAndQuery::from_static("/containerd.services.events.v1.Events/Subscribe");
        let mut grpc = Grpc::new(self.channel.clone());
        let call = async {
            grpc.ready().await.expect("a connection");
            let codec = ProstCodec::default();
            grpc.server_streaming(Request::new(request), path, codec)
                .await
        };
        let stream = self.runtime.block_on(call);
        stream.expect("a subscription").into_inner()
    }

    /// The next event of a subscription; `None` at its end.
    ///
    /// # Errors
    /// The daemon's status.
    #[track_caller]
    pub fn next(&self, stream: &mut Streaming<Envelope>) -> Result<Option<Envelope>, Status> {
        let next = async { tokio::time::timeout(DEADLINE, stream.message()).await };
        let next = self.runtime.block_on(next);
        next.unwrap_or_else(|_| panic!("no event within {DEADLINE:?}"))
    }

    /// Makes the record of a container.
    ///
    /// # Errors
    /// As [`Api::call`].
    pub fn create_container(&self, container: Container) -> Result<Container, Status> {
        let request = CreateContainerRequest {
            container: Some(container),
        };
        let answer: CreateContainerResponse =
            self.call("containers.v1.Containers/Create", request)?;
        Ok(answer.container.unwrap_or_default())
    }

    /// A container that runs `words` on the tests' root filesystem, or on what is in its bundle.
    pub fn container(&self, id: &str, rootfs: Option<&Path>, words: &[&str]) -> Container {
        let spec = json!({
            "ociVersion": "1.0.2",
            "root": {"path": rootfs.map_or("rootfs".into(), |path| path.display().to_string())},
            "process": {
                "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": words,
                "env": ["PATH=/bin:/sbin:/usr/bin"],
            },
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            ],
            "linux": {
                "cgroupsPath": format!("/{}/{id}", self.namespace),
                "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "network"}],
            },
        });
        Container {
            id: id.to_owned(),
            runtime: Some(container::Runtime {
                name: "io.containerd.runc.v2".into(),
                options: None,
            }),
            spec: Some(Any {
                type_url: SPEC.into(),
                value: spec.to_string().into_bytes(),
            }),
            ..Default::default()
        }
    }

    /// [`Api::container`], on the tests' root filesystem.
    pub fn plain_container(&self, id: &str, words: &[&str]) -> Container {
        self.container(id, Some(peers::rootfs()), words)
    }
}
