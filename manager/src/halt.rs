// SPDX-License-Identifier: Apache-2.0
//! How a container is stopped, as its labels say.

use crate::cli::signal;
use crate::config::Span;
use crate::store::Labels;
use std::time::Duration;

/// What containerd calls the signal of an image.
pub const SIGNAL: &str = "io.containerd.image.config.stop-signal";
pub const TIMEOUT: &str = "io.dunnage.stop-timeout";
/// As docker and podman have it.
const USUAL_TIMEOUT: Duration = Duration::from_secs(10);

/// What it is sent first, TERM unless said.
///
/// # Errors
/// A text with the label that says no signal.
pub fn signal(labels: &Labels) -> Result<u32, String> {
    let name = labels.get(SIGNAL).map_or("TERM", String::as_str);
    signal::number(name).map_err(|e| format!("label {SIGNAL}: {e}"))
}

/// How long that may take before it is killed.
///
/// # Errors
/// A text with the label that says no time.
pub fn timeout(labels: &Labels) -> Result<Duration, String> {
    let Some(text) = labels.get(TIMEOUT) else {
        return Ok(USUAL_TIMEOUT);
    };
    let span = text.parse::<Span>();
    span.map(|it| it.0)
        .map_err(|e| format!("label {TIMEOUT}: {e}"))
}
