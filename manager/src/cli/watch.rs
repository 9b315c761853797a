//! Watching a process: what it says comes to us, our input and signals go to it.

use super::client::Client;
use super::run::{said, start_process};
use super::stdio::{Copying, Raw, window};
use nix::sys::signal::Signal;
use protos::services::tasks::v1::*;
use task::signals::Signals;

/// The signals that are passed on. Take them before any thread is started, else it dies of them.
pub fn signals() -> Result<Signals, String> {
    let wished = [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGWINCH,
    ];
    Signals::new(wished).map_err(|e| format!("signals: {e}"))
}

/// Starts a process, passes everything on both ways, and waits for its end.
pub async fn watch(
    client: &Client,
    id: &str,
    exec: &str,
    terminal: bool,
    signals: Signals,
    mut copying: Copying,
    start: bool,
) -> Result<u8, String> {
    let mut tasks = client.tasks();
    let request = client.request(WaitRequest {
        container_id: id.to_owned(),
        exec_id: exec.to_owned(),
    });
    let mut waiting = Box::pin(tasks.wait(request));
    if start {
        start_process(client, id, exec).await?;
    }
    let raw = terminal.then(Raw::new).flatten();
    if terminal {
        resize(client, id, exec).await;
    }
    let mut input_ended = copying.input_ended.take();
    let exit = loop {
        let ended = async {
            match &mut input_ended {
                Some(ended) => drop(ended.await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            exit = &mut waiting => break exit.map_err(said)?.into_inner(),
            signal = signals.next() => match signal {
                Ok(Signal::SIGWINCH) => resize(client, id, exec).await,
                Ok(signal) => kill(client, id, exec, signal as u32).await?,
                Err(e) => return Err(format!("signals: {e}")),
            },
            () = ended => {
                input_ended = None;
                let request = client.request(CloseIoRequest {
                    container_id: id.to_owned(),
                    exec_id: exec.to_owned(),
                    stdin: true,
                });
                let _ = client.tasks().close_io(request).await;
            }
        }
    };
    // Something it left in the background may hold the output.
    let _ = tokio::time::timeout(std::time::Duration::from_secs(10), copying.drained()).await;
    drop(raw);
    Ok(u8::try_from(exit.exit_status).unwrap_or(u8::MAX))
}

async fn kill(client: &Client, id: &str, exec: &str, signal: u32) -> Result<(), String> {
    let request = client.request(KillRequest {
        container_id: id.to_owned(),
        exec_id: exec.to_owned(),
        signal,
        all: false,
    });
    client.tasks().kill(request).await.map(drop).map_err(said)
}

async fn resize(client: &Client, id: &str, exec: &str) {
    if let Some((width, height)) = window() {
        let request = client.request(ResizePtyRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            width,
            height,
        });
        let _ = client.tasks().resize_pty(request).await;
    }
}
