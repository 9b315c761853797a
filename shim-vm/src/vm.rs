//! One VM, from its boot to its end.
//!
//! ```text
//!  place made ─> file server ─> QEMU ─> hello ─> configured ─> up ──┬─ power_off ─> gone
//!       └─ any failure: everything killed, the place removed        └─ QEMU, the file server
//!                                                                      or the link ends ─> gone
//! ```

use crate::child::Child;
use crate::config::{Accel, Config};
use crate::console::Console;
use crate::image::Image;
use crate::machine::{Machine, Plan, SHARE_TAG};
use crate::network::{self, Where};
use crate::qemu::Qemu;
use crate::share::Share;
use crate::{clock, files, notices, place};
use protos::guest::{ConfigureRequest, Empty, Event, Hello};
use protos::mux::{Link, Stream};
use protos::ttrpc::{CallError, Client, Context};
use protos::{Code, Message, Status, service};
use std::cell::Cell;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};
use task::aside;
use task::reaper::Reaper;
use tokio::net::UnixStream;
use tokio::sync::watch;

/// How long the guest may take to write back and end.
const POWER_OFF: Duration = Duration::from_secs(5);
/// How long after the link QEMU may end.
const DYING: Duration = Duration::from_secs(2);

/// What a VM is booted for.
pub struct Purpose<'a> {
    pub context: &'a Context,
    pub name: String,
    pub dir: PathBuf,
    pub config: Config,
    pub image: Image,
    pub accel: Accel,
    pub network: Where,
    pub guest: ConfigureRequest,
}

pub struct Vm {
    machine: Rc<Qemu>,
    files: Rc<Child>,
    link: Rc<Link>,
    client: Client,
    pub share: Share,
    pub hello: Hello,
    /// How long after QEMU's start its hello came.
    pub heard_after: Duration,
    dir: PathBuf,
    network: Where,
    /// It has the network that was made for it after its boot.
    joined: Cell<bool>,
    gone: watch::Receiver<Option<String>>,
}

impl Vm {
    /// Boots it; `tell` hears every event of the guest's, in order.
    ///
    /// # Errors
    /// Why it is not up, with the last it said; nothing of it is left.
    pub async fn boot(
        purpose: Purpose<'_>,
        reaper: &Rc<Reaper>,
        tell: impl FnMut(Event) + 'static,
    ) -> Result<Rc<Self>, String> {
        let dir = purpose.dir.clone();
        place::make(&dir).map_err(|e| format!("mkdir {}: {e}", dir.display()))?;
        let console = Console::default();
        let network = purpose.network.clone();
        let booted = Self::boot_at(purpose, reaper, &console, tell).await;
        if booted.is_err() {
            clear(&dir, &network).await;
        }
        booted
    }

    async fn boot_at(
        purpose: Purpose<'_>,
        reaper: &Rc<Reaper>,
        console: &Console,
        tell: impl FnMut(Event) + 'static,
    ) -> Result<Rc<Self>, String> {
        let (dir, config, context) = (purpose.dir, purpose.config, purpose.context);
        let wanted = purpose.network.clone();
        let network = aside::alone(move || network::prepare(&wanted)).await;
        let network = network.map_err(|e| e.to_string())?;
        let share = Share::new(dir.join("share"), Rc::clone(reaper))?;
        let (files, socket) = files::start(&dir, share.dir(), console, reaper)?;
        let deadline = config.deadline(purpose.accel);
        let plan = Plan {
            name: purpose.name,
            dir: dir.clone(),
            image: purpose.image,
            accel: purpose.accel,
            memory: config.memory,
            vcpus: config.vcpus,
            program: config.qemu.clone(),
            files: Some(socket),
            taps: network.taps,
            netns: network.namespace,
        };
        let mut machine = Qemu::prepare(plan)?.with_console_in_log(config.debug_console);
        let up = async {
            let started = Instant::now();
            let socket = machine.boot(reaper)?;
            let pids = [machine.pid(), files.pid];
            place::record(&dir, &pids, purpose.network.path()).map_err(|e| e.to_string())?;
            let link = connect(socket).map_err(|e| format!("link: {e}"))?;
            let mut notices = link.first();
            let hello = tokio::select! {
                hello = notices::hello(&mut notices) => hello,
                status = machine.wait() => Err(format!("QEMU ended: {status}")),
                status = files.wait() => Err(format!("the file server ended: {status}")),
                why = context.cancelled() => {
                    machine.kill();
                    Err(why.message)
                }
                () = tokio::time::sleep(deadline) => {
                    machine.kill();
                    Err(format!("the guest said nothing within {} s", deadline.as_secs()))
                }
            }?;
            let heard_after = started.elapsed();
            let client = client(link.open()).map_err(|e| format!("link: {e}"))?;
            let request = ConfigureRequest {
                share: SHARE_TAG.into(),
                seed: seed().map_err(|e| format!("/dev/urandom: {e}"))?,
                interfaces: network.interfaces,
                routes: network.routes,
                neighbours: network.neighbours,
                ..purpose.guest
            };
            let configured = client.call(service::GUEST, "Configure", &request, Some(deadline));
            let _: Empty = configured
                .await
                .map_err(|e| format!("set up the guest: {e}"))?;
            let set = clock::set(&client).await;
            set.map_err(|e| format!("set the guest's clock: {e}"))?;
            Ok::<_, String>((link, notices, hello, heard_after, client))
        };
        let up = up.await;
        let (link, notices, hello, heard_after, client) = match up {
            Ok(up) => up,
            Err(mut why) => {
                // Whatever was seen first: if QEMU has ended by itself, that is why.
                if machine.pid() != 0
                    && let Ok(status) = tokio::time::timeout(DYING, machine.wait()).await
                {
                    why = format!("{why}; QEMU ended: {status}");
                }
                machine.kill();
                files.kill();
                if machine.pid() != 0 {
                    machine.wait().await;
                }
                files.wait().await;
                share.close().await;
                // Its last words may be on their way.
                let read = async { tokio::join!(console.read_to_end(), machine.said_all()) };
                let _ = tokio::time::timeout(DYING, read).await;
                let said = [console.last(), machine.last_words()];
                let said = said.iter().filter(|said| !said.is_empty());
                let said: Vec<&str> = said.map(String::as_str).collect();
                return Err(format!(
                    "the VM did not start: {why}; it said: {}",
                    said.join(" | ")
                ));
            }
        };
        log::debug!("VM up: agent {}, kernel {}", hello.agent, hello.kernel);
        let (gone_sender, gone) = watch::channel(None);
        let vm = Rc::new(Self {
            machine: Rc::new(machine),
            files: Rc::new(files),
            link,
            client,
            share,
            hello,
            heard_after,
            dir,
            network: purpose.network,
            joined: Cell::new(false),
            gone,
        });
        let heard = tokio::task::spawn_local(notices::listen(notices, tell));
        tokio::task::spawn_local(end(
            Rc::clone(&vm.machine),
            Rc::clone(&vm.files),
            Rc::clone(&vm.link),
            heard,
            gone_sender,
        ));
        tokio::task::spawn_local(clock::keep(vm.client.clone()));
        Ok(vm)
    }

    /// The process that stands for every process in the VM.
    pub fn pid(&self) -> u32 {
        self.machine.pid()
    }

    /// The process that serves it the host's files.
    pub fn files_pid(&self) -> u32 {
        self.files.pid
    }

    /// The link, to open streams on.
    pub fn link(&self) -> &Rc<Link> {
        &self.link
    }

    /// Gives the VM the network that was made for it since it booted, if there is one.
    ///
    /// # Errors
    /// Why that can't be done.
    pub async fn join_network(&self, context: &Context) -> Result<(), String> {
        if self.network != Where::Own || self.joined.get() {
            return Ok(());
        }
        let netns = PathBuf::from(format!("/proc/{}/ns/net", self.pid()));
        let network = aside::alone(move || network::join(&netns)).await;
        let Some(network) = network.map_err(|e| e.to_string())? else {
            return Ok(());
        };
        let request = ConfigureRequest {
            interfaces: network.interfaces,
            routes: network.routes,
            neighbours: network.neighbours,
            ..Default::default()
        };
        let set = self.ask(service::GUEST, "Configure", &request, context);
        let _: Empty = set.await.map_err(|status| status.message)?;
        self.joined.set(true);
        Ok(())
    }

    /// Calls the guest, for as long as `context` waits.
    ///
    /// # Errors
    /// The guest's status, why nobody waits any more, or `Unavailable` once the VM is gone.
    pub async fn ask<A: Message + Default>(
        &self,
        service: &str,
        method: &str,
        request: &impl Message,
        context: &Context,
    ) -> Result<A, Status> {
        let call = self
            .client
            .call(service, method, request, context.remaining());
        tokio::select! {
            biased;
            answer = call => answer.map_err(|e| match e {
                CallError::Status(status) => status,
                CallError::Closed => Status::new(Code::Unavailable, "the VM is gone"),
            }),
            why = context.cancelled() => Err(why),
        }
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
            let _ = self
                .ask::<Empty>(service::GUEST, "PowerOff", &Empty {}, &context)
                .await;
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

/// Random bytes, as many as the guest's kernel takes at once.
fn seed() -> io::Result<Vec<u8>> {
    let mut seed = vec![0; 64];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut seed)?;
    Ok(seed)
}

/// Removes the VM's place, and its way to the network.
async fn clear(dir: &Path, network: &Where) {
    if let Err(e) = place::clear(dir).await {
        log::error!("{}: {e}", dir.display());
    }
    if let Some(netns) = network.path().map(Path::to_owned)
        && let Err(e) = aside::alone(move || network::detach(&netns)).await
    {
        log::error!("network: {e}");
    }
}

/// Speaks over the guest's serial port.
fn connect(socket: std::os::unix::net::UnixStream) -> io::Result<Rc<Link>> {
    socket.set_nonblocking(true)?;
    let (reader, writer) = UnixStream::from_std(socket)?.into_split();
    let link = Link::new();
    let running = Rc::clone(&link);
    tokio::task::spawn_local(async move {
        let why = running.run(reader, writer).await;
        log::debug!("the link has ended: {why}");
    });
    Ok(link)
}

/// The guest's ttrpc, over its stream.
fn client(mut stream: Stream) -> io::Result<Client> {
    let (ours, mut theirs) = UnixStream::pair()?;
    tokio::task::spawn_local(async move {
        let _ = tokio::io::copy_bidirectional(&mut stream, &mut theirs).await;
    });
    Ok(Client::new(ours))
}

/// Waits for whatever ends first, ends the rest, and tells once all is gone and every event of the
/// guest's was heard.
async fn end(
    machine: Rc<Qemu>,
    files: Rc<Child>,
    link: Rc<Link>,
    heard: tokio::task::JoinHandle<()>,
    gone: watch::Sender<Option<String>>,
) {
    let why = tokio::select! {
        status = machine.wait() => format!("QEMU ended: {status}"),
        status = files.wait() => format!("the file server ended: {status}"),
        () = link.closed() => "the link to the guest has ended".to_owned(),
    };
    machine.kill();
    machine.wait().await;
    files.kill();
    files.wait().await;
    link.closed().await;
    let _ = heard.await;
    let _ = tokio::time::timeout(DYING, machine.said_all()).await;
    let said = machine.last_words();
    gone.send_replace(Some(format!("{why}; it said: {said}")));
}
