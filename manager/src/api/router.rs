// SPDX-License-Identifier: Apache-2.0
//! The router: a path's service, or a refusal that says what is missing.

use super::{Api, Called, MAX_MESSAGE};
use crate::services::containerd::services as generated;
use crate::services::dunnage::v1::journal_server::JournalServer;
use crate::services::grpc::health::v1::health_server::HealthServer;
use generated::containers::v1::containers_server::ContainersServer;
use generated::events::v1::events_server::EventsServer;
use generated::introspection::v1::introspection_server::IntrospectionServer;
use generated::leases::v1::leases_server::LeasesServer;
use generated::namespaces::v1::namespaces_server::NamespacesServer;
use generated::tasks::v1::tasks_server::TasksServer;
use generated::version::v1::version_server::VersionServer;
use http::{Request, Response};
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tower_service::Service;

#[derive(Clone)]
pub struct Router {
    api: Api,
}

impl Router {
    pub fn new(api: Api) -> Self {
        Self { api }
    }
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl Service<Request<Body>> for Router {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Answer {
        let path = request.uri().path().to_owned();
        let called = Called(path.trim_start_matches('/').to_owned());
        request.extensions_mut().insert(called);
        let mut parts = path.trim_start_matches('/').splitn(2, '/');
        let (service, method) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        log::debug!("{service}/{method}");
        let api = self.api.clone();
        macro_rules! to {
            ($server:ident) => {
                $server::new(api)
                    .max_decoding_message_size(MAX_MESSAGE)
                    .max_encoding_message_size(MAX_MESSAGE)
                    .call(request)
            };
        }
        let answer: Answer = match service {
            "containerd.services.containers.v1.Containers" => to!(ContainersServer),
            "containerd.services.events.v1.Events" => to!(EventsServer),
            "containerd.services.introspection.v1.Introspection" => to!(IntrospectionServer),
            "containerd.services.leases.v1.Leases" => to!(LeasesServer),
            "containerd.services.namespaces.v1.Namespaces" => to!(NamespacesServer),
            "containerd.services.tasks.v1.Tasks" => to!(TasksServer),
            "containerd.services.version.v1.Version" => to!(VersionServer),
            "dunnage.v1.Journal" => to!(JournalServer),
            "grpc.health.v1.Health" => to!(HealthServer),
            _ => Box::pin(std::future::ready(Ok(refusal(service, method)))),
        };
        let (service, method) = (service.to_owned(), method.to_owned());
        Box::pin(async move {
            let answer = answer.await?;
            // tonic refuses a method it has no code for without a word.
            let headers = answer.headers();
            let silent = headers
                .get("grpc-status")
                .is_some_and(|status| status == "12")
                && !headers.contains_key("grpc-message");
            Ok(if silent {
                refusal(&service, &method)
            } else {
                answer
            })
        })
    }
}

fn refusal(service: &str, method: &str) -> Response<Body> {
    log::debug!("refused: {service}/{method}");
    let text = format!(
        "unknown method {method} of {service}: dunnage runs containers and has no images, \
         content or snapshots: not implemented"
    );
    Status::unimplemented(text).into_http()
}
