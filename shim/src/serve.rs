// SPDX-License-Identifier: Apache-2.0
//! The daemon: serves the Task API on the inherited socket until it is told to stop (contract B50 to B57).

use crate::bootstrap::LISTENER_FD;
use crate::error::{Error, Result};
use crate::flags::Flags;
use crate::inspect::Inspector;
use crate::keeper::{self, ADOPT, Held, KEEPER_FD};
use crate::publisher::Publisher;
use crate::upgrade::{Asked, HANDOVER_FD, Handover, Upgrader, become_image, check};
use crate::{Daemon, Shim, inspect, lifeline, log as shim_log, runtime, socket};
use nix::sys::signal::Signal;
use protos::service;
use protos::ttrpc::{Answer, Handle, MovedConnection, Request, Server, Service};
use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, Instant};
use task::aside;
use task::handover::Kept;
use task::outbox::Outbox;
use task::reaper::Reaper;
use task::record;
use task::signals::Signals;
use task::sys;
use task::tally;
use task::trace::{self, Kind, Span};
use tokio::net::UnixStream;

/// How long events may take to reach containerd once the shim is to end.
const DRAIN: Duration = Duration::from_secs(5);
/// What a daemon is told by signals.
const SIGNALS: [Signal; 5] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];
/// How long calls may take to end once the binary is to be replaced.
const FREEZE: Duration = Duration::from_secs(10);

/// How serving ended.
enum End {
    Done,
    /// The state is out; the binary is to become the next image.
    Upgrade(PathBuf, Handover, Kept),
}

/// Serves until Shutdown finds no container left, or a signal ends it.
///
/// # Errors
/// If the daemon can't be set up.
pub fn serve(shim: &dyn Shim, flags: &Flags) -> Result<()> {
    let resumes = flags.action == "resume" || flags.action == ADOPT;
    let listener = listener(flags)?;
    let path = listener.local_addr().ok();
    let path = path.and_then(|address| address.as_pathname().map(PathBuf::from));
    let remove_socket = || {
        if let Some(path) = &path {
            let _ = std::fs::remove_file(path);
        }
    };
    lifeline::wait().inspect_err(|_| remove_socket())?;
    let (mut taken_over, held) = match resumes {
        true => handed_over()?,
        false => (None, set_up(shim, flags, &listener)?),
    };
    shim_log::start(shim.name(), flags.debug);
    let of = [
        ("dunnage.namespace", &*flags.namespace),
        ("dunnage.shim.id", &*flags.id),
    ];
    trace::start(shim.name(), env!("CARGO_PKG_VERSION"), &of);
    if flags.action == ADOPT {
        log::warn!("{}: its shim was killed, this one goes on", flags.id);
    }
    nix::sys::prctl::set_child_subreaper(true)
        .map_err(|e| Error::new(format!("become subreaper: {e}")))?;
    crate::sys::run_first();
    sys::limits::raise_open_files();

    let mut outcome = Ok(());
    let done = loop {
        let daemon = run(
            shim,
            flags,
            &listener,
            held.as_ref(),
            taken_over.take(),
            outcome,
        );
        match daemon {
            Ok(End::Done) => break Ok(()),
            Err(e) => break Err(e),
            Ok(End::Upgrade(binary, handover, kept)) => {
                let keeper = held.as_ref().map(|held| held.socket());
                let e = become_image(&binary, flags, &listener, keeper, &handover);
                log::error!("upgrade failed, the old binary goes on: {e}");
                outcome = Err(e.to_string());
                // From here on they have other owners, named by number.
                kept.forget();
                taken_over = Some(handover);
            }
        }
    };
    // By now nobody listens, so no client finds a socket that will not answer.
    remove_socket();
    done
}

/// What another image has handed over, or a keeper has of a daemon that has died, and the keeper.
fn handed_over() -> Result<(Option<Handover>, Option<Rc<Held>>)> {
    let failed = |e| Error::io("take over", "state", e);
    let handover = sys::adopt(HANDOVER_FD).map_err(failed)?;
    let mut handover = Handover::read(File::from(handover))?;
    let held = match handover.kept.take() {
        Some(kept) => Some(Held::new(sys::adopt(KEEPER_FD).map_err(failed)?, kept)),
        None => None,
    };
    Ok((Some(handover), held))
}

/// Prepares the process of a new daemon, and its keeper if it has one.
fn set_up(shim: &dyn Shim, flags: &Flags, listener: &UnixListener) -> Result<Option<Rc<Held>>> {
    shim_log::open_fifo()?;
    let Some(patience) = shim.outlives() else {
        return Ok(None);
    };
    let keeper = keeper::fork(flags, listener.as_fd(), patience)?;
    let keeper = crate::sys::move_fd(keeper, KEEPER_FD);
    let keeper = keeper.map_err(|e| Error::new(format!("keeper: {e}")))?;
    Ok(Some(Held::new(keeper, [])))
}

/// The socket: inherited, or made at `-socket` when an operator starts the daemon by hand (B53).
fn listener(flags: &Flags) -> Result<UnixListener> {
    if flags.socket.is_empty() {
        let inherited = sys::adopt(LISTENER_FD);
        let inherited = inherited.map_err(|e| Error::io("take over the socket at fd", "3", e));
        return Ok(inherited?.into());
    }
    let path = socket::path_of(&flags.socket).unwrap_or_else(|| PathBuf::from(&flags.socket));
    match socket::bind(&path)? {
        socket::Bound::Ours(listener) => {
            // Where the next image, or whoever looks for our socket, finds it.
            let moved = crate::sys::move_fd(listener.into(), LISTENER_FD);
            Ok(moved.map_err(|e| Error::io("move socket", path, e))?.into())
        }
        socket::Bound::Theirs => {
            let text = format!("socket {}: another shim listens there", path.display());
            Err(Error::new(text))
        }
    }
}

/// One image's life: from taking over (or from nothing) to the end (or to handing over).
fn run(
    shim: &dyn Shim,
    flags: &Flags,
    listener: &UnixListener,
    held: Option<&Rc<Held>>,
    taken_over: Option<Handover>,
    outcome: std::result::Result<(), String>,
) -> Result<End> {
    let ttrpc_address = std::env::var("TTRPC_ADDRESS").ok();
    let ttrpc_address = ttrpc_address.as_deref().and_then(socket::path_of);
    let publisher = Publisher::new(ttrpc_address, flags.namespace.clone());
    let failed = |e: io::Error| Error::new(format!("set up the daemon: {e}"));
    let listener = listener.try_clone().map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;

    runtime()?.block_on(async {
        let signals = Signals::new(SIGNALS).map_err(failed)?;
        let reaper = Reaper::new().map_err(failed)?;
        let outbox = Rc::new(Outbox::default());
        let namespace = flags.namespace.clone();
        let service = shim.daemon(namespace, Rc::clone(&reaper), Rc::clone(&outbox))?;
        record::by(held.map(|held| Rc::clone(held) as _));
        let moved = match taken_over {
            Some(handover) => take_over(&*service, handover)?,
            None => Vec::new(),
        };
        let listener = tokio::net::UnixListener::from_std(listener).map_err(failed)?;
        let upgrader = Upgrader::new(outcome);
        let tasks = Rc::new(Recorded(Rc::clone(&service) as _));
        let mut server = Server::new()
            .add(service::TASK_V2, Rc::clone(&tasks) as _)
            .add(service::TASK_V3, tasks)
            .add(service::UPGRADE, Rc::clone(&upgrader) as _);
        let inspector = Rc::new(Inspector {
            flags: flags.clone(),
            handle: server.handle(),
            daemon: Rc::clone(&service),
        });
        server = server.add(service::INSPECT, Rc::clone(&inspector) as _);
        for (name, beside) in Rc::clone(&service).services() {
            server = server.add(name, Rc::new(Recorded(beside)));
        }
        let upgrade = Upgrade {
            handle: server.handle(),
            service: Rc::clone(&service),
            reaper,
            held: held.cloned(),
        };
        if let Some(held) = held {
            let daemon = Rc::downgrade(&service);
            tokio::task::spawn_local(Rc::clone(held).serve(daemon));
        }
        tokio::task::spawn_local(publisher.run(Rc::clone(&outbox)));
        let mut running = service.run();
        tokio::select! {
            e = server.serve(listener, moved) => return Err(failed(e)),
            e = &mut running => return Err(failed(e)),
            signal = next_signal(&signals, &upgrader, &inspector) => log::info!("{}: the shim ends", signal?),
            end = upgrade.run(&upgrader) => return Ok(end),
            () = service.shut_down() => {}
        }
        // Children that end are waited for to the last.
        tokio::select! {
            () = service.end() => {}
            e = &mut running => return Err(failed(e)),
        }
        drain(&*service, &outbox).await;
        Ok(End::Done)
    })
}

/// Goes on with what another image had: the service's state, and the connections, which come back.
fn take_over(
    service: &dyn Daemon,
    handover: Handover,
) -> Result<Vec<(UnixStream, MovedConnection)>> {
    service.take_over(handover.engine)?;
    let open = |fd| UnixStream::from_std(std::os::unix::net::UnixStream::from(sys::adopt(fd)?));
    let connections = handover.connections.into_iter();
    let connections = connections.map(|(fd, connection)| Ok((open(fd)?, connection)));
    let failed = |e: io::Error| Error::io("take over", "connection", e);
    connections.collect::<io::Result<_>>().map_err(failed)
}

/// Waits until what has been reaped is recorded, and then told.
async fn drain(service: &dyn Daemon, outbox: &Outbox) {
    let told = async {
        service.settled().await;
        outbox.drained().await;
    };
    if tokio::time::timeout(DRAIN, told).await.is_err() {
        log::error!("events that containerd did not take within 5 s are lost");
    }
}

/// Waits for a signal that ends the shim (B51). SIGUSR1 only leaves a line in the log (B50),
/// SIGUSR2 asks for the binary that is at our path by now, SIGQUIT for what `inspect` tells.
async fn next_signal(
    signals: &Signals,
    upgrader: &Upgrader,
    inspector: &Inspector,
) -> Result<Signal> {
    loop {
        match signals.next().await {
            Ok(Signal::SIGUSR1) => log::info!("SIGUSR1: one thread, no stacks to dump"),
            Ok(Signal::SIGUSR2) => upgrader.ask_for_own_path(),
            Ok(Signal::SIGQUIT) => match serde_json::to_string(&inspector.report()) {
                Ok(report) => log::info!("SIGQUIT: {report}"),
                Err(e) => log::error!("SIGQUIT: {e}"),
            },
            Ok(signal) => return Ok(signal),
            Err(e) => return Err(Error::new(format!("wait for signals: {e}"))),
        }
    }
}

/// What it takes to hand over.
struct Upgrade {
    handle: Handle,
    service: Rc<dyn Daemon>,
    reaper: Rc<Reaper>,
    held: Option<Rc<Held>>,
}

/// A service of the daemon's, which answers once what it says is where it outlives this process.
struct Recorded(Rc<dyn Service>);

impl Service for Recorded {
    fn call(self: Rc<Self>, mut request: Request) -> Pin<Box<dyn Future<Output = Answer>>> {
        let only_waits = self.0.only_waits(&request.method);
        let span = traced(&mut request, only_waits);
        let (began, method) = (Instant::now(), request.method.clone());
        let answer = Rc::clone(&self.0).call(request);
        Box::pin(async move {
            let answer = answer.await;
            record::now();
            let took = (!only_waits).then(|| began.elapsed());
            tally::call(&method, took, answer.is_err());
            span.done(&answer);
            answer
        })
    }

    fn only_waits(&self, method: &str) -> bool {
        self.0.only_waits(method)
    }
}

/// The span of a call, which what it does is a part of. One that only looks or waits begins no trace.
fn traced(request: &mut Request, only_waits: bool) -> Span {
    let method = request.method.as_str();
    let looks = only_waits || matches!(method, "State" | "Stats" | "Pids" | "Connect");
    let span = match looks {
        true => Span::of(&request.context, method, Kind::Server),
        false => Span::first_or_of(&request.context, method, Kind::Server),
    };
    span.set("rpc.system", "ttrpc");
    span.set("rpc.method", method);
    if span.trace().is_some() {
        let (container, exec) = inspect::ids(method, &request.payload);
        span.set("container.id", container);
        if !exec.is_empty() {
            span.set("process.exec.id", exec);
        }
    }
    request.context = span.context(&request.context);
    span
}

impl Upgrade {
    /// Sees to requests until one leads to a handover.
    async fn run(&self, upgrader: &Upgrader) -> End {
        loop {
            let asked = upgrader.asked().await;
            match self.hand_over(&asked).await {
                Ok((handover, kept)) => return End::Upgrade(asked.binary, handover, kept),
                Err(e) => {
                    self.handle.thaw();
                    asked.refuse(&e.to_string());
                }
            }
        }
    }

    async fn hand_over(&self, asked: &Asked) -> Result<(Handover, Kept)> {
        let (preview, kept) = self.describe()?;
        drop(kept);
        check(&asked.binary, &preview, &self.reaper).await?;
        // A thread that is stuck would be cut off in the middle of its work, or keep the new image
        // from coming; streams to files never end, and pause.
        let _hold = aside::hold();
        let still = async {
            loop {
                aside::done().await;
                self.handle.freeze().await;
                self.service.settled().await;
                if self.handle.is_idle() && aside::is_done() {
                    return;
                }
            }
        };
        let late = |_| match aside::is_done() {
            true => Error::new("calls that run did not end within 10 s"),
            false => Error::new("a file system did not answer within 10 s"),
        };
        tokio::time::timeout(FREEZE, still).await.map_err(late)?;
        let described = self.describe()?;
        self.handle.let_go();
        Ok(described)
    }

    /// In one step, so that nothing changes meanwhile.
    fn describe(&self) -> Result<(Handover, Kept)> {
        let failed = |e: io::Error| Error::new(format!("describe the state: {e}"));
        let kept = RefCell::new(Kept::default());
        let engine = self
            .service
            .hand_over(&mut kept.borrow_mut())
            .map_err(failed)?;
        let mut connections = Vec::new();
        let keep = |fd: std::os::fd::BorrowedFd<'_>, connection| {
            connections.push((kept.borrow_mut().keep(fd)?, connection));
            Ok(())
        };
        self.handle.describe(keep).map_err(failed)?;
        let mut handover = Handover::new(engine, connections);
        handover.kept = self.held.as_ref().map(|held| held.taken());
        Ok((handover, kept.into_inner()))
    }
}
