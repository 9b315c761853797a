// SPDX-License-Identifier: Apache-2.0
//! The agent's event loop: the link to the host, and what is served over it.

use crate::guest::Guest;
use crate::late;
use crate::layers::Layers;
use crate::news::{News, next, say};
use crate::port::Port;
use crate::roots::Leaving;
use crate::tasks::Tasks;
use protos::guest::Hello;
use protos::guest::notice::Notice;
use protos::mux::{Link, Stream};
use protos::service;
use protos::ttrpc::Server;
use std::io;
use std::rc::Rc;
use task::outbox::Outbox;
use task::reaper::Reaper;
use task::stdio::Parked;
use tokio::io::{AsyncRead, AsyncWrite};

/// The version of what both sides speak.
const PROTOCOL: u32 = 2;
/// The engine's namespace: a VM has but one.
const NAMESPACE: &str = "vm";

/// Serves the host until it goes away or says so. `started_ms`: when this process began.
///
/// # Errors
/// Why the VM must end.
pub fn run(started_ms: u64) -> Result<(), String> {
    start_log();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_park(task::peak::give_back)
        .build_local(Default::default());
    let runtime = runtime.map_err(|e| format!("set up the event loop: {e}"))?;
    runtime.block_on(serve(started_ms))
}

async fn serve(started_ms: u64) -> Result<(), String> {
    let port = Port::open()?;
    let link = Link::guest();
    let is_template = late::is_template();
    if is_template {
        late::prepare()?;
    }
    // The first that is sent.
    let mut notices = link.first();
    let said = say(&mut notices, hello(started_ms)).await;
    said.map_err(|e| format!("hello: {e}"))?;
    tokio::select! {
        e = carry(&link, port) => Err(format!("the host is gone: {e}")),
        ended = answer(&link, notices, started_ms, is_template) => ended,
    }
}

/// Carries what the host says, and, if it has given a mark, what another says that takes its place.
async fn carry(link: &Link, mut port: Port) -> io::Error {
    loop {
        let why = link.carry(port.clone(), port.clone()).await;
        if !link.is_marked() {
            link.close();
            return why;
        }
        log::debug!("the port has hung up: {why}");
        match port.connected_again().await {
            Ok(again) => port = again,
            Err(e) => return e,
        }
    }
}

/// Once the host knows that we are here, gets ready for what it wants, and answers.
async fn answer(
    link: &Rc<Link>,
    notices: Stream,
    started_ms: u64,
    is_ready: bool,
) -> Result<(), String> {
    link.sent().await;

    let failed = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
    if !is_ready {
        crate::boot::finish()?;
    }
    let reaper = Reaper::new().map_err(failed("reaper"))?;
    let layers = Layers::new(Rc::clone(&reaper));
    let outbox = Rc::new(Outbox::default());
    let parked = Rc::new(Parked::new(Rc::clone(link)));
    let clients = Rc::clone(&parked);
    let tools = Rc::clone(&reaper);
    let engine = task::Service::over(clients, NAMESPACE.into(), reaper, Rc::clone(&outbox));
    let leaving = Rc::<Leaving>::default();
    let guest = Guest::new(
        Rc::clone(&leaving),
        Rc::clone(&layers),
        Rc::clone(link),
        Rc::clone(&parked),
        tools,
    );
    let sessions = Sessions {
        started_ms,
        link: Rc::clone(link),
        tasks: Tasks::new(Rc::clone(&engine), leaving, layers),
        guest,
        news: News::new(outbox, Rc::clone(&engine.engine().told)),
        parked,
    };
    tokio::select! {
        e = sessions.run(notices) => Err(format!("the host is gone: {e}")),
        e = engine.run() => Err(format!("reap: {e}")),
        () = sessions.guest.powered_off() => Ok(()),
    }
}

/// What is served to a host, and to another that takes its place when it has died. Calls of a host
/// that has died are given up, as those of any client; what they did is undone.
struct Sessions {
    started_ms: u64,
    link: Rc<Link>,
    tasks: Rc<Tasks>,
    guest: Rc<Guest>,
    news: News,
    /// Streams that wait for the request that names them.
    parked: Rc<Parked>,
}

impl Sessions {
    async fn run(&self, notices: Stream) -> io::Error {
        let (mut from, mut to) = tokio::io::split(notices);
        let first = async {
            // The host's first stream is its ttrpc connection.
            if let Some(calls) = self.link.accept().await {
                self.server().serve_over(calls);
            }
            self.serve(&mut from, &mut to, 0).await
        };
        let mut ended = tokio::select! {
            biased;
            () = self.link.began() => None,
            e = first => Some(e),
        };
        loop {
            if let Some(e) = ended {
                return e;
            }
            ended = tokio::select! {
                biased;
                () = self.link.began() => None,
                e = self.another(&mut from, &mut to) => Some(e),
            };
        }
    }

    /// A session after the first.
    async fn another(
        &self,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
    ) -> io::Error {
        let begins = async {
            let begin = next(from).await?;
            self.link.end_what_is_left();
            let calls = self.parked.take_number(begin.calls);
            self.server()
                .serve_over(calls.ok_or(io::ErrorKind::InvalidData)?);
            say(to, hello(self.started_ms)).await.map(|()| begin.number)
        };
        match begins.await {
            Ok(heard) => self.serve(from, to, heard).await,
            Err(e) => e,
        }
    }

    async fn serve(
        &self,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        heard: u64,
    ) -> io::Error {
        tokio::select! {
            () = self.parked.park() => io::Error::other("the link is closed"),
            e = self.news.send(to, heard) => e,
            e = self.news.hear(from) => e,
        }
    }

    fn server(&self) -> Server {
        Server::new()
            .add(service::TASK_V3, Rc::clone(&self.tasks) as _)
            .add(service::GUEST, Rc::clone(&self.guest) as _)
    }
}

fn hello(started_ms: u64) -> Notice {
    let kernel = nix::sys::utsname::uname();
    Notice::Hello(Hello {
        version: PROTOCOL,
        agent: crate::VERSION.into(),
        kernel: kernel
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default(),
        uptime_ms: crate::boot::uptime_ms(),
        started_ms,
    })
}

/// The log goes to the console.
struct Console;

impl log::Log for Console {
    fn enabled(&self, metadata: &log::Metadata) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record) {
        if self.enabled(record.metadata()) {
            crate::say(&format!("agent: {}: {}", record.level(), record.args()));
        }
    }

    fn flush(&self) {}
}

fn start_log() {
    if log::set_logger(&Console).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
}
