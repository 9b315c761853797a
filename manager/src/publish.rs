// SPDX-License-Identifier: Apache-2.0
//! `dunnage publish`: what old shims run to publish an event (cmd/containerd/command/publish.go).

use crate::cli::client::Client;
use protos::services::events::v1::PublishRequest;
use protos::{Any, Message};
use std::io::Read;

/// Reads an Any from stdin and publishes it.
///
/// # Errors
/// A text, if nobody takes it.
pub async fn publish(client: &Client, topic: String) -> Result<(), String> {
    let mut bytes = Vec::new();
    std::io::stdin()
        .read_to_end(&mut bytes)
        .map_err(|e| format!("stdin: {e}"))?;
    let event = Any::decode(bytes.as_slice()).map_err(|e| format!("event on stdin: {e}"))?;
    let request = client.request(PublishRequest {
        topic,
        event: Some(event),
    });
    let published = client.events().publish(request).await;
    published.map(drop).map_err(|e| e.message().to_owned())
}
