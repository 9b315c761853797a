//! The agent's event loop: the link to the host, and what is served over it.

use crate::guest::Guest;
use crate::port::Port;
use crate::roots::Leaving;
use crate::tasks::Tasks;
use protos::guest::{Event, Hello, Notice, notice};
use protos::mux::{Link, Stream};
use protos::ttrpc::Server;
use protos::{Message, service};
use std::io;
use std::rc::Rc;
use task::outbox::Outbox;
use task::reaper::Reaper;
use task::stdio::Parked;
use tokio::io::AsyncWriteExt;

/// The version of what both sides speak.
const PROTOCOL: u32 = 1;
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
    // The first that is sent.
    let mut notices = link.first();
    let hello = notice::Notice::Hello(hello(started_ms));
    let said = say(&mut notices, hello).await;
    said.map_err(|e| format!("hello: {e}"))?;
    tokio::select! {
        e = link.run(port.clone(), port) => Err(format!("the host is gone: {e}")),
        ended = answer(&link, notices) => ended,
    }
}

/// Once the host knows that we are here, gets ready for what it wants, and answers.
async fn answer(link: &Rc<Link>, notices: Stream) -> Result<(), String> {
    link.sent().await;

    let failed = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
    crate::boot::finish()?;
    let reaper = Reaper::new().map_err(failed("reaper"))?;
    let outbox = Rc::new(Outbox::default());
    let parked = Rc::new(Parked::new(Rc::clone(link)));
    let clients = Rc::clone(&parked);
    let engine = task::Service::over(clients, NAMESPACE.into(), reaper, Rc::clone(&outbox));
    let leaving = Rc::<Leaving>::default();
    let tasks = Tasks::new(Rc::clone(&engine), Rc::clone(&leaving));
    let guest = Guest::new(leaving);
    let server = Server::new()
        .add(service::TASK_V3, tasks)
        .add(service::GUEST, Rc::clone(&guest) as _);
    tokio::select! {
        () = accept(link, server, &parked) => Err("the link is closed".into()),
        e = tell(notices, outbox) => Err(format!("the host is gone: {e}")),
        e = engine.run() => Err(format!("reap: {e}")),
        () = guest.powered_off() => Ok(()),
    }
}

fn hello(started_ms: u64) -> Hello {
    let kernel = nix::sys::utsname::uname();
    Hello {
        version: PROTOCOL,
        agent: crate::VERSION.into(),
        kernel: kernel
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default(),
        uptime_ms: crate::boot::uptime_ms(),
        started_ms,
    }
}

async fn say(stream: &mut Stream, notice: notice::Notice) -> io::Result<()> {
    let notice = Some(notice);
    let bytes = Notice { notice }.encode_length_delimited_to_vec();
    stream.write_all(&bytes).await
}

/// Tells the host every event; without the host there is no more to do.
async fn tell(mut stream: Stream, outbox: Rc<Outbox>) -> io::Error {
    loop {
        let (timestamp, event) = outbox.head().await;
        outbox.sent();
        let event = Event {
            timestamp: Some(timestamp),
            event: Some(event.envelope().1),
        };
        if let Err(e) = say(&mut stream, notice::Notice::Event(event)).await {
            return e;
        }
    }
}

/// The host's first stream is its ttrpc connection; the others wait for the request that names
/// them. Ends with the link.
async fn accept(link: &Rc<Link>, server: Server, parked: &Parked) {
    if let Some(first) = link.accept().await {
        server.serve_over(first);
        parked.park().await;
    }
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
