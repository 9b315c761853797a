// SPDX-License-Identifier: Apache-2.0
//! Sends the events of the outbox to containerd, in order, until they have arrived (contract B70 to B73).

use protos::events_service::ForwardRequest;
use protos::ttrpc::{Call, CallError, Client};
use protos::types::Envelope;
use protos::{Code, Message};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use task::outbox::Outbox;
use task::record;

/// How long containerd may take to accept one event (S/publisher.go).
const TIMEOUT: Duration = Duration::from_secs(5);
/// How soon, and how seldom, a containerd that is away is tried again.
const FIRST_RETRY: Duration = Duration::from_millis(20);
const LAST_RETRY: Duration = Duration::from_secs(1);

pub struct Publisher {
    address: Option<PathBuf>,
    namespace: String,
    client: Option<Client>,
}

impl Publisher {
    /// Publishes to the ttrpc socket at `address`; without one events go nowhere.
    pub fn new(address: Option<PathBuf>, namespace: String) -> Self {
        Self {
            address,
            namespace,
            client: None,
        }
    }

    /// Publishes for ever.
    pub async fn run(mut self, outbox: Rc<Outbox>) {
        if self.address.is_none() {
            log::warn!("TTRPC_ADDRESS is not set: events are not published");
        }
        loop {
            let (timestamp, event) = outbox.head().await;
            record::now();
            let (topic, event) = event.envelope();
            let envelope = Envelope {
                timestamp: Some(timestamp),
                namespace: self.namespace.clone(),
                topic: topic.into(),
                event: Some(event),
            };
            let request = ForwardRequest {
                envelope: Some(envelope),
            }
            .encode_to_vec();
            self.deliver(topic, request, &outbox).await;
            outbox.sent();
            record::soon();
        }
    }

    /// Tries until it has arrived, or was refused for good.
    async fn deliver(&mut self, topic: &str, request: Vec<u8>, outbox: &Outbox) {
        let Some(address) = self.address.clone() else {
            return;
        };
        let mut pause = FIRST_RETRY;
        let mut complained = false;
        loop {
            let reused = self.client.is_some();
            outbox.set_sending(true);
            let why = match self.forward(&address, request.clone()).await {
                Ok(()) => return,
                Err(CallError::Status(status)) if !is_passing(status.code) => {
                    return log::error!("{topic} refused: {status}");
                }
                Err(e) => e,
            };
            outbox.set_sending(false);
            self.client = None;
            // A connection may have died long ago; a new one deserves a try at once.
            if reused {
                continue;
            }
            if !complained {
                log::warn!("{topic} waits for containerd: {why}");
                complained = true;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_RETRY);
        }
    }

    async fn forward(&mut self, address: &Path, request: Vec<u8>) -> Result<(), CallError> {
        let client = match &self.client {
            Some(client) => client.clone(),
            None => {
                let stream = task::connect::to(address).await;
                let client = Client::new(stream.map_err(|_| CallError::Closed)?);
                self.client.insert(client).clone()
            }
        };
        let metadata = [("containerd-namespace-ttrpc", self.namespace.as_str())];
        let forward = client.call_raw(
            ForwardRequest::SERVICE,
            ForwardRequest::METHOD,
            request,
            &metadata,
            Some(TIMEOUT),
        );
        forward.await.map(drop)
    }
}

/// Worth another try: containerd is stopping, starting or slow.
fn is_passing(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable | Code::DeadlineExceeded | Code::Canceled | Code::Unimplemented
    )
}
