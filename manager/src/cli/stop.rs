// SPDX-License-Identifier: Apache-2.0
//! `stop` and `restart`, and what a container's record says of how it is stopped.

use super::client::Client;
use super::control::{container, end, note, note_stopped, state, wait};
use super::run::{NotRun, said};
use super::signal;
use super::start::start;
use crate::config::Span;
use crate::store::Labels;
use crate::{halt, removal};
use clap::Args;
use protos::services::containers::v1::Container;
use protos::task_types::Status;
use std::time::Duration;

/// How long a wait takes to be on its way.
const BEGIN: Duration = Duration::from_millis(20);

/// How a container will be stopped.
#[derive(Clone, Debug, Default, Args)]
pub struct Stopping {
    /// What `stop` and `restart` send it, TERM unless said
    #[arg(long, value_name = "SIGNAL", value_parser = signal_name)]
    stop_signal: Option<String>,
    /// How long they wait before they send KILL, such as 30 (seconds) or 1m; 10s unless said
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    stop_timeout: Option<Span>,
}

/// How a container is stopped now.
#[derive(Clone, Debug, Args)]
pub struct Ending {
    /// What to send first, in place of the container's stop signal
    #[arg(short, long, value_parser = signal::number)]
    signal: Option<u32>,
    /// How long to wait before KILL, such as 5 (seconds) or 1m, in place of its stop timeout
    #[arg(short, long, value_name = "TIME", value_parser = seconds)]
    timeout: Option<Span>,
}

fn signal_name(text: &str) -> Result<String, String> {
    signal::number(text).map(|_| text.to_owned())
}

/// A time, or a number of seconds.
fn seconds(text: &str) -> Result<Span, String> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number {
        format!("{text}s").parse()
    } else {
        text.parse()
    }
}

impl Stopping {
    /// Has a container's labels say it.
    pub fn note(&self, labels: &mut Labels) {
        if let Some(signal) = &self.stop_signal {
            labels.insert(halt::SIGNAL.into(), signal.clone());
        }
        if let Some(Span(timeout)) = self.stop_timeout {
            labels.insert(halt::TIMEOUT.into(), format!("{}ms", timeout.as_millis()));
        }
    }
}

impl Ending {
    /// The signal and the timeout: as said here, as the record says, or as usual.
    fn of(&self, container: &Container) -> Result<(u32, Duration), String> {
        let bad = |e| format!("{}: {e}", container.id);
        let signal = match self.signal {
            Some(signal) => signal,
            None => halt::signal(&container.labels).map_err(bad)?,
        };
        let timeout = match self.timeout {
            Some(Span(timeout)) => timeout,
            None => halt::timeout(&container.labels).map_err(bad)?,
        };
        Ok((signal, timeout))
    }
}

/// Its stop signal, and KILL if that is not enough. It stays stopped, whatever its restart policy says;
/// so it goes on if that can't be stored.
pub async fn stop(client: &Client, id: &str, ending: &Ending) -> Result<(), String> {
    let container = container(client, id).await?;
    let (signal, timeout) = ending.of(&container)?;
    note_stopped(client, &container, true).await?;
    let mut waiting = Box::pin(wait(client, id));
    // The wait is on its way before the signal.
    let early = tokio::time::timeout(BEGIN, &mut waiting).await;
    if let Ok(ended) = early {
        return ended.map(drop).map_err(said);
    }
    end(client, id, signal.cast_signed(), false).await?;
    if tokio::time::timeout(timeout, &mut waiting).await.is_err() {
        end(client, id, libc::SIGKILL, true).await?;
        waiting.await.map_err(said)?;
    }
    Ok(())
}

/// Stops it, if it runs, and starts it again.
pub async fn restart(client: &Client, id: &str, ending: &Ending) -> Result<(), NotRun> {
    let refused = |why| NotRun::refused(id, why);
    let known = container(client, id).await.map_err(refused)?;
    let ends = |status| status != Status::Stopped as i32 && status != Status::Created as i32;
    let task = state(client, id).await;
    if task.is_ok_and(|task| ends(task.status)) {
        let goes = removal::is_wanted(&known.labels);
        if goes {
            note(client, &known, removal::LABEL, "")
                .await
                .map_err(refused)?;
        }
        stop(client, id, ending).await.map_err(refused)?;
        start(client, id).await?;
        if goes {
            note(client, &known, removal::LABEL, "true")
                .await
                .map_err(refused)?;
        }
        return Ok(());
    }
    start(client, id).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_how_it_is_stopped() {
        let stopping = Stopping {
            stop_signal: Some("sigquit".into()),
            stop_timeout: seconds("90").ok(),
        };
        let mut container = Container::default();
        let usual = Ending {
            signal: None,
            timeout: None,
        };
        assert_eq!(usual.of(&container), Ok((15, Duration::from_secs(10))));
        stopping.note(&mut container.labels);
        assert_eq!(usual.of(&container), Ok((3, Duration::from_secs(90))));
        let said = Ending {
            signal: Some(9),
            timeout: seconds("2m").ok(),
        };
        assert_eq!(said.of(&container), Ok((9, Duration::from_secs(120))));
        container.labels.insert(halt::SIGNAL.into(), "NONE".into());
        assert!(usual.of(&container).unwrap_err().contains("NONE"));
        for text in ["", "-1", "1x", "s"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
