// SPDX-License-Identifier: Apache-2.0
//! A VM's boot: what it is made of, its processes, and a guest that is ready: its hello, what it is
//! told to be, its clock.

use crate::checkpoint::Saving;
use crate::child::Child;
use crate::config::{Accel, Config};
use crate::console::Console;
use crate::container_sockets::ContainerSockets;
use crate::image::Image;
use crate::limits::Place;
use crate::machine::{Begins, Machine, SHARE_TAG};
use crate::network::Where;
use crate::notices::Notices;
use crate::place;
use crate::pod::Pod;
use crate::program::{self, Program};
use crate::qemu::{Qemu, slots};
use crate::shape::Shape;
use crate::share::Share;
use crate::template::{self, Kept, Store, Wish};
use crate::word::{self, Doom};
use crate::{clock, link, localhost, patience, vm};
use nix::sys::resource::{Resource, getrlimit};
use protos::guest::{ConfigureRequest, ConfigureResponse, Hello, Limit};
use protos::mux::{Link, MARK};
use protos::ttrpc::{CallError, Client, Context};
use std::cell::Cell;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};
use task::aside;
use task::reaper::Reaper;
use task::record;
use task::trace::{Kind, Span};

mod prepare;

pub use prepare::{Prepared, prepare};

/// How long QEMU may take to end by itself, after a boot that failed or the end of the link, the file
/// server to end after it, and what they said to arrive.
pub const DYING: Duration = Duration::from_secs(2);

/// How long a VM that goes on as another may take until it answers; what boots may take longer.
const RESTORING: Duration = Duration::from_secs(10);

/// What a VM is booted for.
#[derive(Clone)]
pub struct Purpose<'a> {
    pub context: &'a Context,
    pub name: String,
    pub dir: PathBuf,
    /// The operator's, and what they are with what is wanted.
    pub settings: Config,
    pub config: Config,
    pub image: Image,
    pub accel: Accel,
    pub shape: Shape,
    pub network: Where,
    /// The host's cgroup.
    pub place: Place,
    pub guest: ConfigureRequest,
}

/// What there is of a VM on the host.
pub struct Parts {
    pub machine: Qemu,
    pub files: Child,
    /// What the file server says.
    pub files_said: Console,
    pub share: Share,
    pub pod: Pod,
    /// What listens in the pod's network namespace.
    pub localhost: Option<localhost::Sockets>,
    pub container_sockets: ContainerSockets,
    /// Where the machine is asked to save itself.
    pub saving: Option<Saving>,
    pub doom: Doom,
}

/// A guest that is ready.
pub struct Ready {
    /// The guest's serial port.
    pub socket: UnixStream,
    pub link: Rc<Link>,
    pub notices: Rc<Notices>,
    /// The stream of the link that calls go over, and who makes them.
    pub calls: u32,
    pub client: Client,
    /// What another session with the guest begins with, if there may be one.
    pub mark: Option<[u8; MARK]>,
    pub hello: Hello,
    pub configured: ConfigureResponse,
    /// How long after QEMU's start its hello came, or its first answer if it did not boot.
    pub heard_after: Duration,
    /// It goes on as one that was saved.
    pub restored: bool,
    /// What the next would go on as, if it were made.
    pub wish: Option<Wish>,
}

/// Makes a VM in its place, which is there: of a template, or it boots.
///
/// # Errors
/// Why it is not up, with the last it said; no process of it is left.
pub async fn boot(purpose: Purpose<'_>, reaper: &Rc<Reaper>) -> Result<(Parts, Ready), String> {
    let program = program::find(&purpose.config.qemu, reaper).await?;
    let (kept, wish) = match purpose.config.templates {
        true => template::look_for(&purpose, &program).await,
        false => (None, None),
    };
    if let Some(kept) = kept {
        let key = kept.identity.key.clone();
        let begun = begin(purpose.clone(), program.clone(), Some(kept), reaper).await;
        let why = match begun {
            Err(why) => why,
            begun => return begun,
        };
        tokio::select! {
            biased;
            _ = purpose.context.cancelled() => return Err(why),
            () = std::future::ready(()) => {}
        }
        log::warn!("{}: it boots, because {why}", purpose.name);
        aside::run(move || Store::new().fail(&key, &why)).await;
        vm::clear(&purpose.dir, &purpose.network).await;
        place::make(&purpose.dir).map_err(|e| format!("{}: {e}", purpose.dir.display()))?;
    }
    let (parts, ready) = begin(purpose, program, None, reaper).await?;
    Ok((parts, Ready { wish, ..ready }))
}

/// The same, of this template or without one.
async fn begin(
    purpose: Purpose<'_>,
    program: Program,
    kept: Option<Box<Kept>>,
    reaper: &Rc<Reaper>,
) -> Result<(Parts, Ready), String> {
    let (dir, config) = (purpose.dir.clone(), purpose.config.clone());
    let span = Span::of(purpose.context, "vm boot", Kind::Internal);
    span.set("vm.accelerator", format!("{:?}", purpose.accel));
    let (giver_up, accel) = (purpose.context, purpose.accel);
    let context = span.context(giver_up);
    let mut hello = None;
    let begins = |networks: usize| {
        // A template has places for so many.
        let kept = kept.filter(|_| networks <= slots::NETWORKS);
        span.set("vm.restored", kept.is_some().to_string());
        Ok(match kept {
            Some(kept) => {
                hello = Some(kept.hello);
                Begins::Restored(kept.state.into())
            }
            None => Begins::Booted,
        })
    };
    let Prepared {
        mut parts,
        request,
        holds,
        localhost,
    } = prepare(purpose, program, begins, reaper).await?;
    let (doom, mut deadline) = (parts.doom.clone(), config.deadline(accel));
    if hello.is_some() {
        deadline = deadline.min(RESTORING);
    }
    let up = {
        let qemu = Cell::new(0);
        let given_up = pin!(patience::given_up(giver_up, &doom, deadline, &qemu));
        let record = |pids: [u32; 2]| {
            qemu.set(pids[0]);
            place::record(&dir, &pids, &holds).map_err(|e| e.to_string())
        };
        let is_marked = is_marked(&config);
        let with = (reaper.as_ref(), &context, is_marked);
        parts.come_up(request, hello, record, given_up, with).await
    };
    span.done(&up);
    drop(span);
    match up {
        Ok(ready) => {
            parts.localhost = localhost.await.unwrap_or_default();
            Ok((parts, ready))
        }
        Err(why) => Err(parts.end(&why).await),
    }
}

impl Parts {
    /// From its processes to a guest that is ready; `record` writes down who they are.
    async fn come_up(
        &mut self,
        request: ConfigureRequest,
        said: Option<Hello>,
        record: impl Fn([u32; 2]) -> Result<(), String>,
        mut given_up: impl Future<Output = String> + Unpin,
        (reaper, context, is_marked): (&Reaper, &Context, bool),
    ) -> Result<Ready, String> {
        let started = Instant::now();
        let run = self.run(record, &mut given_up, (reaper, context)).await;
        let (socket, pids) = run.inspect_err(|_| self.machine.kill())?;
        let ready = async {
            tokio::try_join!(
                ready(
                    (socket, said),
                    &self.doom,
                    request,
                    (started, is_marked),
                    context
                ),
                self.pod.join(pids)
            )
        };
        let (ready, ()) = tokio::select! {
            ready = ready => ready,
            status = self.machine.wait() => Err(format!("QEMU ended: {status}")),
            status = self.files.wait() => Err(format!("the file server ended: {status}")),
            why = given_up => {
                self.machine.kill();
                Err(why)
            }
        }?;
        self.pod.up().await?;
        Ok(ready)
    }

    /// Its processes; `record` writes down who they are.
    async fn run(
        &mut self,
        record: impl Fn([u32; 2]) -> Result<(), String>,
        mut given_up: impl Future<Output = String> + Unpin,
        (reaper, context): (&Reaper, &Context),
    ) -> Result<(UnixStream, [u32; 2]), String> {
        let span = Span::of(context, "vm processes", Kind::Internal);
        let runs = async {
            self.files.runs().await?;
            let socket = self.machine.boot(reaper).await?;
            let pids = [self.machine.pid(), self.files.pid];
            record(pids)?;
            self.machine.runs().await?;
            Ok::<_, String>((socket, pids))
        };
        let runs = tokio::select! {
            runs = runs => Ok(runs?),
            why = &mut given_up => Err(why),
        };
        span.done(&runs);
        runs
    }

    /// Ends what did not come up, and gives the reason with the last it said. A process that waits
    /// for a disk ends with that.
    async fn end(self, why: &str) -> String {
        let Self {
            machine,
            files,
            files_said,
            ..
        } = self;
        let mut why = why.to_owned();
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
        self.share.close().await;
        // Its last words may be on their way.
        let read = async { tokio::join!(files_said.read_to_end(), machine.said_all()) };
        let _ = tokio::time::timeout(DYING, read).await;
        let said = [files_said.last(), machine.last_words()];
        let said = said.iter().filter(|said| !said.is_empty());
        let said: Vec<&str> = said.map(String::as_str).collect();
        format!("the VM did not start: {why}; it said: {}", said.join(" | "))
    }
}

/// Waits until the guest is ready, as long as it takes; QEMU was started at `started`. What it has said
/// already it does not say again: then it is one that goes on as another was.
///
/// # Errors
/// Why it will not be.
async fn ready(
    (socket, said): (UnixStream, Option<Hello>),
    doom: &Doom,
    request: ConfigureRequest,
    (started, is_marked): (Instant, bool),
    context: &Context,
) -> Result<Ready, String> {
    let span = Span::of(context, "vm kernel", Kind::Internal);
    let link = Link::host();
    link::run(&link, &socket, doom).map_err(|e| format!("link: {e}"))?;
    let notices = Rc::new(Notices::new(link.first(), Vec::new(), 0));
    let restored = said.is_some();
    let hello = match said {
        Some(said) => said,
        None => notices.hello().await?,
    };
    let mut heard_after = started.elapsed();
    drop(span);
    let _span = Span::of(context, "vm configure", Kind::Internal);
    let stream = link.open();
    let calls = stream.number();
    let client = link::client(&link, stream, 0, doom);
    let request = ConfigureRequest {
        share: SHARE_TAG.into(),
        restored,
        ..request
    };
    let (configured, mark) = configure(&client, request, is_marked).await?;
    if restored {
        heard_after = started.elapsed();
    }
    Ok(Ready {
        socket,
        link,
        notices,
        calls,
        client,
        mark,
        hello,
        configured,
        heard_after,
        restored,
        wish: None,
    })
}

/// Whether another session with the guest may come: with a shim after this one, or where it was saved to.
pub fn is_marked(config: &Config) -> bool {
    record::is_kept() || config.checkpoints
}

/// Tells the guest what to be, gives it randomness that nobody else has, and sets its clock; what it
/// answers, and what another session with it begins with, if there may be one (`is_marked`).
///
/// # Errors
/// What of it the guest can't.
pub async fn configure(
    client: &Client,
    request: ConfigureRequest,
    is_marked: bool,
) -> Result<(ConfigureResponse, Option<[u8; MARK]>), String> {
    let mark = is_marked.then(random).transpose()?;
    let (open_files, locked_memory) = limits().map_err(|e| format!("limits: {e}"))?;
    let request = ConfigureRequest {
        open_files: Some(open_files),
        locked_memory: Some(locked_memory),
        seed: random::<64>()?.into(),
        mark: mark.map(Vec::from).unwrap_or_default(),
        ..request
    };
    let refused =
        |what: &'static str| move |e: CallError| format!("{what}: {}", word::text(&e.to_string()));
    let configured = client.call(&request, None);
    let configured = configured.await.map_err(refused("set up the guest"))?;
    let set = clock::set(client).await;
    set.map_err(refused("set the guest's clock"))?;
    Ok((configured, mark))
}

/// What a container of ours would have on this host of open files and of locked memory.
fn limits() -> io::Result<(Limit, Limit)> {
    let limit = |(soft, hard)| Limit { soft, hard };
    let open_files = task::sys::limits::given_open_files()?;
    let locked_memory = getrlimit(Resource::RLIMIT_MEMLOCK)?;
    Ok((limit(open_files), limit(locked_memory)))
}

/// Random bytes.
///
/// # Errors
/// From the kernel.
fn random<const N: usize>() -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(|e| format!("/dev/urandom: {e}"))?;
    Ok(bytes)
}
