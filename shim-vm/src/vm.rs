// SPDX-License-Identifier: Apache-2.0
//! One VM, from its boot to its end.
//!
//! ```text
//!  place made ─> file server ─> QEMU ─> hello ─> configured ─> up ──┬─ power_off ─> gone
//!       └─ any failure: everything killed, the place removed        ├─ QEMU, the file server
//!                                                                   │  or the link ends ─> gone
//!                                                                   └─ doomed: killed ─> gone
//! ```
//!
//! It is doomed when its guest breaks its word ([`Doom::broke_word`], wherever that is seen), or owes
//! something for too long ([`Vm::in_time`]).

mod handover;
mod late;
mod made;
mod saved;
mod taken;

pub use handover::Moved;
pub use saved::{Saved, Session};

use crate::boot::DYING;
use crate::checkpoint::Saving;
use crate::child::Child;
use crate::config::Config;
use crate::console::Console;
use crate::container_sockets::ContainerSockets;
use crate::localhost::{self, Localhost};
use crate::machine::Machine;
use crate::mirrors::Mirrors;
use crate::network::{self, Where};
use crate::notices::{self, News, Notices};
use crate::pod::Pod;
use crate::pool::Leash;
use crate::qemu::Qemu;
use crate::shape::Shape;
use crate::share::Share;
use crate::sockets::Sockets;
use crate::template::Wish;
use crate::word::{self, Doom};
use crate::{boot, clock, forget, place};
use protos::guest::{ConfigureResponse, Hello, PowerOffRequest};
use protos::mux::{Link, MARK};
use protos::ttrpc::{Call, CallError, Client, Context};
use protos::{Code, Message, Status};
use serde_json::{Value, json};
use std::cell::Cell;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use task::aside;
use task::reaper::{ExitStatus, Reaper};
use task::record;
use task::relay::Relays;
use task::trace::{Kind, Span};
use tokio::sync::watch;

/// How long the guest may take to write back and end.
const POWER_OFF: Duration = Duration::from_secs(5);
/// The most connections between the host and the guest: each may keep 128 KiB of what the guest says.
pub const CONNECTIONS: usize = 64;

pub struct Vm {
    machine: Rc<Qemu>,
    files: Rc<Child>,
    files_said: Console,
    /// The guest's serial port.
    socket: UnixStream,
    link: Rc<Link>,
    notices: Rc<Notices>,
    /// What another session with the guest begins with, if there may be one.
    mark: Cell<Option<[u8; MARK]>>,
    /// The stream of the link that calls go over, and who makes them.
    calls: u32,
    client: Client,
    pub doom: Doom,
    /// Where it is asked to be saved, if it may be.
    pub saving: Option<Saving>,
    /// It goes on as another that was saved with its container.
    pub is_clone: bool,
    /// Nobody need be told that it ends.
    pub is_to_end: Cell<bool>,
    /// How long the guest may owe what it must do.
    pub patience: Duration,
    pub share: Share,
    pub pod: Pod,
    pub shape: Shape,
    /// The operator's, as they were when it was booted.
    pub settings: Config,
    pub hello: Hello,
    /// What it answered when it was told what to be, to who has booted it.
    pub configured: ConfigureResponse,
    /// How long after QEMU's start its hello came, or its first answer if it did not boot.
    pub heard_after: Duration,
    /// It goes on as one that was saved (`template.rs`).
    pub restored: bool,
    /// What the next would go on as: to be had once this one has nothing else to do.
    pub wish: Cell<Option<Wish>>,
    pub localhost: Localhost,
    pub relays: Relays,
    pub sockets: Sockets,
    pub container_sockets: ContainerSockets,
    pub mirrors: Mirrors,
    dir: PathBuf,
    network: Where,
    /// It has the network that was made for it after its boot.
    joined: Cell<bool>,
    /// A shim that has died left it: what that had asked for last may be done, or not.
    pub is_adopted: bool,
    /// It was the pool's, and goes with this.
    leash: Option<Leash>,
    gone: watch::Receiver<Option<String>>,
}

impl Vm {
    /// Boots it; `tell` hears all news of the guest's, in order, and says what is wrong with it.
    ///
    /// # Errors
    /// Why it is not up, with the last it said; nothing of it is left.
    pub async fn boot(
        purpose: boot::Purpose<'_>,
        reaper: &Rc<Reaper>,
        tell: impl FnMut(News) -> Result<(), String> + 'static,
    ) -> Result<Rc<Self>, String> {
        let vm = match Self::taken(&purpose, reaper).await {
            Some(vm) => vm,
            None => Self::cold(purpose, reaper).await?,
        };
        Ok(vm.begin(tell))
    }

    /// Begins what goes on for as long as it is there; `tell` as for [`Vm::boot`].
    pub fn begin(mut self, tell: impl FnMut(News) -> Result<(), String> + 'static) -> Rc<Self> {
        let (told, gone) = watch::channel(None);
        self.gone = gone;
        let vm = Rc::new(self);
        vm.watch_over(told, tell);
        localhost::serve(&vm);
        ContainerSockets::serve(&vm);
        vm
    }

    /// One that boots now; nobody watches it yet.
    ///
    /// # Errors
    /// As for [`Vm::boot`].
    pub async fn cold(purpose: boot::Purpose<'_>, reaper: &Rc<Reaper>) -> Result<Self, String> {
        let (dir, network) = (purpose.dir.clone(), purpose.network.clone());
        let wanted = purpose.clone();
        place::make(&dir).map_err(|e| format!("mkdir {}: {e}", dir.display()))?;
        let (parts, ready) = match boot::boot(purpose, reaper).await {
            Ok(booted) => booted,
            Err(why) => {
                clear(&dir, &network).await;
                return Err(why);
            }
        };
        let hello = &ready.hello;
        let (agent, kernel) = (word::line(&hello.agent), word::line(&hello.kernel));
        log::debug!("VM up: agent {agent}, kernel {kernel}");
        Ok(Self::made(parts, ready, &wanted))
    }

    /// `tell` hears the guest's news, `told` gets the reason of its end.
    fn watch_over(
        &self,
        told: watch::Sender<Option<String>>,
        tell: impl FnMut(News) -> Result<(), String> + 'static,
    ) {
        let (notices, link) = (Rc::clone(&self.notices), Rc::clone(&self.link));
        let heard = notices::listen(notices, link, self.doom.clone(), tell);
        let heard = tokio::task::spawn_local(heard);
        tokio::task::spawn_local(end(
            Rc::clone(&self.machine),
            Rc::clone(&self.files),
            Rc::clone(&self.link),
            self.doom.clone(),
            heard,
            told,
        ));
        tokio::task::spawn_local(clock::keep(self.client.clone()));
        let (client, files_said) = (self.client.clone(), self.files_said.clone());
        tokio::task::spawn_local(forget::keep(client, files_said));
    }

    /// The process that stands for every process in the VM.
    pub fn pid(&self) -> u32 {
        self.machine.pid()
    }

    /// The process that serves it the host's files.
    pub fn files_pid(&self) -> u32 {
        self.files.pid
    }

    /// What is known of it now; the words of the guest are cut, and may be anything.
    pub fn look(&self) -> Value {
        json!({
            "qemu": self.pid(),
            "files": self.files_pid(),
            "agent": word::line(&self.hello.agent),
            "kernel": word::line(&self.hello.kernel),
            "booted_seconds": self.heard_after.as_secs_f64(),
            "restored": self.restored,
            "adopted": self.is_adopted,
            "from_pool": self.is_from_pool(),
            "connections": self.relays.count(),
            "gone": self.gone.borrow().clone(),
            "console": self.last_words(),
        })
    }

    /// What its console says.
    pub fn console(&self) -> &Console {
        &self.machine.console
    }

    /// Why it is gone, if it is.
    pub fn end(&self) -> Option<String> {
        self.gone.borrow().clone()
    }

    /// The last lines of what its guest and QEMU said.
    pub fn last_words(&self) -> String {
        self.machine.last_words()
    }

    /// The last lines of what the file server said.
    pub fn files_said(&self) -> String {
        self.files_said.last()
    }

    /// The link, to open streams on.
    pub fn link(&self) -> &Rc<Link> {
        &self.link
    }

    /// Calls the guest, for as long as `context` waits.
    ///
    /// # Errors
    /// The guest's status, why nobody waits any more, or `Unavailable` once the VM is gone.
    pub async fn ask<C: Call>(&self, request: &C, context: &Context) -> Result<C::Answer, Status> {
        let (service, method) = (C::SERVICE, C::METHOD);
        let request = request.encode_to_vec();
        record::now();
        let span = Span::of(context, &format!("guest {method}"), Kind::Client);
        let trace = span.context(context).trace;
        let trace = trace.map(|trace| trace.pairs()).unwrap_or_default();
        let trace: Vec<_> = trace.iter().map(|(key, value)| (*key, &**value)).collect();
        let call = self
            .client
            .call_raw(service, method, request, &trace, context.remaining());
        let answer = tokio::select! {
            biased;
            answer = call => answer,
            why = context.cancelled() => return Err(why),
        };
        span.done(&answer);
        drop(span);
        match answer {
            Ok(answer) => match C::Answer::decode(answer.as_slice()) {
                Ok(answer) => return Ok(answer),
                Err(e) => self.doom.broke_word(&format!("answer of {method}: {e}")),
            },
            Err(CallError::Status(status)) => {
                return Err(Status::new(status.code, word::text(&status.message)));
            }
            Err(CallError::Closed) => {}
        }
        // No answer will come. That the VM is gone is said when it is.
        tokio::select! {
            _ = self.gone() => Err(Status::new(Code::Unavailable, "the VM is gone")),
            why = context.cancelled() => Err(why),
        }
    }

    /// Waits for what the guest owes, and kills the VM when that takes longer than `patience`;
    /// `None` once the VM is gone. Every wait for the guest that no caller's context ends is here.
    pub async fn in_time<T>(
        &self,
        what: &str,
        patience: Duration,
        owed: impl Future<Output = T>,
    ) -> Option<T> {
        tokio::select! {
            biased;
            owed = owed => return Some(owed),
            _ = self.gone() => {}
            () = tokio::time::sleep(patience) => {
                let seconds = patience.as_secs();
                self.doom.end(format!("the guest owes {what} for {seconds} s"));
                self.gone().await;
            }
        }
        None
    }

    pub fn is_gone(&self) -> bool {
        self.gone.borrow().is_some()
    }

    /// Waits until the VM and its file server have ended, and tells why.
    pub async fn gone(&self) -> String {
        let mut gone = self.gone.clone();
        let why = gone.wait_for(Option::is_some).await;
        why.ok().and_then(|why| why.clone()).unwrap_or_default()
    }

    /// Ends the VM, politely and then not, and removes its place. Also for one that is gone.
    pub async fn power_off(&self) {
        let polite = async {
            let context = Context::background();
            // There may be no answer.
            let _ = self.ask(&PowerOffRequest {}, &context).await;
            self.machine.wait().await
        };
        if tokio::time::timeout(POWER_OFF, polite).await.is_err() {
            log::warn!("the guest did not end within {POWER_OFF:?}, killed");
        }
        self.machine.kill();
        self.gone().await;
        self.share.close().await;
        clear(&self.dir, &self.network).await;
    }
}

/// Removes the VM's place, and its way to the network.
pub async fn clear(dir: &Path, network: &Where) {
    if let Err(e) = place::clear(dir).await {
        log::error!("{}: {e}", dir.display());
    }
    if let Some(netns) = network.path().map(Path::to_owned)
        && let Err(e) = aside::alone(move || network::detach(&netns)).await
    {
        log::error!("network: {e}");
    }
}

/// What ends with QEMU may be heard of before QEMU's own end, which is why then.
async fn unless_ended(machine: &Qemu, otherwise: &str) -> String {
    match tokio::time::timeout(DYING, machine.wait()).await {
        Ok(status) => format!("QEMU ended: {status}"),
        Err(_) => otherwise.to_owned(),
    }
}

/// Waits for whatever ends first, ends the rest, and tells once all is gone and every event of the
/// guest's was heard.
async fn end(
    machine: Rc<Qemu>,
    files: Rc<Child>,
    link: Rc<Link>,
    doom: Doom,
    heard: tokio::task::JoinHandle<()>,
    gone: watch::Sender<Option<String>>,
) {
    let why = tokio::select! {
        biased;
        why = doom.sealed() => why,
        status = machine.wait() => format!("QEMU ended: {status}"),
        status = files.wait() => match status {
            // As QEMU has hung up.
            ExitStatus::Code(0) => unless_ended(&machine, "the file server has ended").await,
            status => format!("the file server ended: {status}"),
        },
        () = link.closed() => unless_ended(&machine, "the link to the guest has ended").await,
    };
    machine.kill();
    machine.wait().await;
    files.kill();
    // It may hang in a filesystem of the host's, and then it is only late.
    let _ = tokio::time::timeout(DYING, files.wait()).await;
    link.closed().await;
    let _ = heard.await;
    let _ = tokio::time::timeout(DYING, machine.said_all()).await;
    let said = machine.last_words();
    gone.send_replace(Some(format!("{why}; it said: {said}")));
}
