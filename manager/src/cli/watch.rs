// SPDX-License-Identifier: Apache-2.0
//! Watching a process: what it says comes to us, our input and signals go to it.

use super::client::{Client, lasting};
use super::control;
use super::run::{NOT_RUN, NotRun, said, start_process};
use super::stdio::{Copying, Raw, window};
use nix::sys::signal::Signal;
use protos::services::tasks::v1::*;
use std::io;
use std::pin::Pin;
use std::time::Duration;
use task::signals::Signals;
use tonic::{Code, Status};

/// What a shell says of a program that died of it.
const SIGPIPE_CODE: u8 = 128 + 13;

/// How long a process has to end by itself that has nobody to write to.
const PIPE_GRACE: Duration = Duration::from_secs(1);

/// What becomes of a process when its output can't be written any more, most often because its
/// reader has gone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unheard {
    /// It is ended, as nobody else can ever read of it: SIGPIPE, and SIGKILL a second later.
    Ends,
    /// It runs on without us, as with ctr, docker and podman.
    Stays,
}

/// How watching ends.
pub enum End {
    /// With an exit code.
    Code(u8),
    /// By the keys that part us from what runs on.
    Parted,
}

impl End {
    pub fn code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Parted => 0,
        }
    }
}

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

/// A process to watch.
pub struct Watch<'a> {
    pub client: &'a Client,
    pub id: &'a str,
    /// Empty for init.
    pub exec: &'a str,
    pub terminal: bool,
    pub unheard: Unheard,
}

type Waiting<'a> = Pin<Box<dyn Future<Output = Result<WaitResponse, Status>> + 'a>>;

impl Watch<'_> {
    /// Starts the process, and watches it as [`Watch::attach`] does.
    ///
    /// # Errors
    /// If it could not be started, or its end is not told.
    pub async fn start(
        &self,
        signals: Signals,
        copying: Copying,
        raw: Option<Raw>,
    ) -> Result<End, NotRun> {
        start_process(self.client, self.id, self.exec).await?;
        Ok(self.attach(signals, copying, raw).await?)
    }

    /// Passes everything on both ways until the process has ended, or nobody reads what it says.
    /// Its exit code, and for the latter that of SIGPIPE.
    ///
    /// # Errors
    /// A text, if its end is not told.
    pub async fn attach(
        &self,
        signals: Signals,
        mut copying: Copying,
        raw: Option<Raw>,
    ) -> Result<End, String> {
        let mut waiting: Waiting<'_> = Box::pin(control::wait_for(self.client, self.id, self.exec));
        if self.terminal {
            self.resize().await;
        }
        let mut input_ended = copying.input_ended.take();
        let mut parted = copying.parted.take();
        let exit = loop {
            let ended = async {
                match &mut input_ended {
                    // Who has parted from it has not ended it.
                    Some(ended) => ended.await.is_ok(),
                    None => std::future::pending().await,
                }
            };
            let keys = async {
                match &mut parted {
                    Some(keys) => keys.await.is_ok(),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                exit = &mut waiting => break exit.map_err(said)?,
                signal = signals.next() => match signal {
                    Ok(Signal::SIGWINCH) => self.resize().await,
                    Ok(signal) => match self.kill(signal).await {
                        // It has ended, and how is on its way to us.
                        Err(e) if e.code() == Code::NotFound => {}
                        Err(e) => super::complain(&format!("{signal}: {}", said(e))),
                        Ok(()) => {}
                    },
                    Err(e) => return Err(format!("signals: {e}")),
                },
                error = copying.lost() => {
                    drop(raw);
                    if self.unheard == Unheard::Ends {
                        self.end(&mut waiting).await?;
                    }
                    return Ok(End::Code(unheard(&error)));
                }
                are_typed = keys => {
                    parted = None;
                    if are_typed {
                        return Ok(End::Parted);
                    }
                }
                has_ended = ended => {
                    input_ended = None;
                    if has_ended {
                        self.close_input().await;
                    }
                }
            }
        };
        // Something it left in the background may hold the output.
        let _ = tokio::time::timeout(Duration::from_secs(10), copying.drained()).await;
        drop(raw);
        Ok(End::Code(match copying.was_lost() {
            Some(error) => unheard(&error),
            None => u8::try_from(exit.exit_status).unwrap_or(u8::MAX),
        }))
    }

    /// As a pipe without a reader ends whoever writes to it, whether it lets that happen or not.
    async fn end(&self, waiting: &mut Waiting<'_>) -> Result<(), String> {
        // One that has ended by now is waited for, too.
        let _ = self.kill(Signal::SIGPIPE).await;
        if tokio::time::timeout(PIPE_GRACE, &mut *waiting)
            .await
            .is_ok()
        {
            return Ok(());
        }
        let _ = self.kill(Signal::SIGKILL).await;
        waiting.await.map(drop).map_err(said)
    }

    async fn close_input(&self) {
        let closed = lasting(async || {
            let request = self.client.request(CloseIoRequest {
                container_id: self.id.to_owned(),
                exec_id: self.exec.to_owned(),
                stdin: true,
            });
            self.client.tasks().close_io(request).await
        });
        let _ = closed.await;
    }

    async fn kill(&self, signal: Signal) -> Result<(), Status> {
        lasting(async || {
            let request = self.client.request(KillRequest {
                container_id: self.id.to_owned(),
                exec_id: self.exec.to_owned(),
                signal: signal as u32,
                all: false,
            });
            self.client.tasks().kill(request).await.map(drop)
        })
        .await
    }

    async fn resize(&self) {
        if let Some((width, height)) = window() {
            let request = self.client.request(ResizePtyRequest {
                container_id: self.id.to_owned(),
                exec_id: self.exec.to_owned(),
                width,
                height,
            });
            let _ = self.client.tasks().resize_pty(request).await;
        }
    }
}

/// The exit code when output was lost: silently that of SIGPIPE, as of any program, if its reader
/// has gone.
fn unheard(error: &io::Error) -> u8 {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return SIGPIPE_CODE;
    }
    super::complain(&format!("output: {error}"));
    NOT_RUN
}
