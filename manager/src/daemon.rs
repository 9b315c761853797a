// SPDX-License-Identifier: Apache-2.0
//! The daemon: opens what is there once, serves until it is told to stop, or to start anew.

use crate::api::{self, Api, Router};
use crate::bundles::Bundles;
use crate::config::{Config, Place};
use crate::intake::{EventsService, Intake};
use crate::journal::{Journal, Limits};
use crate::launch::Launcher;
use crate::ledger::{Exit, Ledger};
use crate::manager::Manager;
use crate::names::Key;
use crate::restart::Restarts;
use crate::sockets::{Kept, Sockets};
use crate::store::Store;
use crate::{incoming, lock, logger, notify, renewal, stderr};
use nix::sys::signal::Signal;
use protos::ttrpc::Server;
use std::cell::{Cell, RefCell};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use task::reaper::Reaper;
use task::signals::Signals;
use tokio::runtime::Builder;
use tokio::sync::mpsc;

/// Why the daemon ended.
enum End {
    Stop,
    /// A new image of the program takes over, in place, and these sockets with it.
    Renew(Kept),
}

/// Runs until SIGTERM or SIGINT; SIGHUP starts it anew in place.
///
/// # Errors
/// A text, if it cannot serve.
pub fn run(config: Config, file: Option<PathBuf>) -> Result<(), String> {
    task::sys::keep_heap_small();
    // The sockets first: their numbers are known only until something else is opened.
    let sockets = Sockets::inherited();
    logger::start(&config);
    task::trace::start("dunnage", crate::VERSION, &[]);
    task::sys::limits::raise_open_files();
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(Default::default());
    let runtime = runtime.map_err(|e| format!("set up the event loop: {e}"))?;
    let end = runtime.block_on(serve(Arc::new(config), file.as_deref(), sockets));
    drop(runtime);
    stderr::finish();
    let end = end?;
    if let End::Renew(sockets) = end {
        log::info!("starts anew");
        return Err(format!("start anew: {}", renewal::execute(&sockets)));
    }
    log::info!("stops; containers go on");
    Ok(())
}

async fn serve(
    config: Arc<Config>,
    file: Option<&Path>,
    mut sockets: Sockets,
) -> Result<End, String> {
    let failed = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
    nix::sys::prctl::set_child_subreaper(true).map_err(|e| format!("subreaper: {e}"))?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let reaper = Reaper::new().map_err(failed("signals"))?;
    let asked = Signals::new([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    let asked = asked.map_err(failed("signals"))?;
    stderr::begin();
    let locks = lock::take(&config, &mut sockets.files)?;
    let sockets = sockets.bind(&config)?;
    let kept = sockets.keep(locks).map_err(failed("sockets"))?;
    let (exits, ended) = mpsc::unbounded_channel();
    let manager = Rc::new(open(&config, &reaper, exits)?);

    let intake = Rc::clone(&manager.intake);
    let reap = tokio::task::spawn_local(async move { reaper.run(&*intake).await });
    // Shims may tell what they kept for us while we find them.
    let events = Rc::new(EventsService {
        intake: Rc::clone(&manager.intake),
    });
    let events = Server::new().add(protos::service::EVENTS, events);
    let events = tokio::task::spawn_local(events.serve(sockets.ttrpc, Vec::new()));
    let intake = Rc::clone(&manager.intake);
    tokio::task::spawn_local(async move { intake.run().await });
    manager.recover().await?;
    tokio::task::spawn_local(crate::restart::run(Rc::clone(&manager), ended));
    tokio::task::spawn_local(Rc::clone(&manager).resume_checks());
    crate::metrics::serve(&manager).await?;

    let (api, jobs) = Api::new();
    tokio::task::spawn_local(api::serve(Rc::clone(&manager), jobs));
    let grpc = tonic::transport::Server::builder()
        .max_concurrent_streams(incoming::CALLS)
        .serve_with_incoming(Router::new(api), incoming::accept(sockets.grpc));
    let grpc = tokio::task::spawn_local(grpc);
    log::info!("serves {}", config.grpc.address.display());
    notify::ready();
    tokio::select! {
        asked = wait_for_end(&manager, &asked, file) => match asked.map_err(failed("signals"))? {
            Signal::SIGHUP => Ok(End::Renew(kept)),
            _ => Ok(End::Stop),
        },
        _ = reap => Err("the reaper ended".into()),
        _ = events => Err(format!("{}: closed", config.ttrpc.address.display())),
        e = grpc => Err(format!("{}: {e:?}", config.grpc.address.display())),
    }
}

/// Serves until a signal asks for the end, and all is ready for it.
async fn wait_for_end(
    manager: &Manager,
    signals: &Signals,
    file: Option<&Path>,
) -> io::Result<Signal> {
    loop {
        let signal = signals.next().await?;
        if signal != Signal::SIGHUP {
            notify::stopping();
            manager.intake.settled().await;
            return Ok(signal);
        }
        match renewal::prepare(manager, file).await {
            Ok(()) => return Ok(signal),
            Err(e) => log::error!("does not start anew: {e}"),
        }
    }
}

fn open(
    config: &Arc<Config>,
    reaper: &Rc<Reaper>,
    exits: mpsc::UnboundedSender<(Key, Exit)>,
) -> Result<Manager, String> {
    let failed = |what: String| move |e: io::Error| format!("{what}: {e}");
    let (root, state) = (&config.root, &config.state);
    let uuid = uuid(&root.join("uuid")).map_err(failed("uuid".into()))?;
    let mut ledger = Ledger::default();
    let dir = config.journal_dir();
    let limits = Limits {
        records: config.journal.max_records,
        bytes: config.journal.max_size,
        age: config.journal.max_age.0,
        durable: config.journal.place == Place::Disk,
    };
    let journal = Journal::open(&dir, limits, |seq, record| ledger.apply(seq, &record));
    let journal = journal.map_err(failed(dir.display().to_string()))?;
    Ok(Manager {
        config: Arc::clone(config),
        store: Store::open(root).map_err(failed(root.display().to_string()))?,
        bundles: Bundles::open(state, root).map_err(failed(state.display().to_string()))?,
        launcher: Launcher::new(Arc::clone(config), Rc::clone(reaper)),
        intake: Rc::new(Intake::new(journal, ledger, exits)),
        tasks: Default::default(),
        health: Default::default(),
        leases: RefCell::default(),
        requests: Default::default(),
        held: Default::default(),
        uuid,
        deaths: Cell::new(0),
        restarts: Restarts::default(),
    })
}

/// Made once, with the kernel's help.
fn uuid(path: &Path) -> io::Result<String> {
    if let Ok(uuid) = task::proc::text(path)
        && !uuid.trim().is_empty()
    {
        return Ok(uuid.trim().to_owned());
    }
    let uuid = task::proc::text("/proc/sys/kernel/random/uuid")?;
    std::fs::write(path, &uuid)?;
    Ok(uuid.trim().to_owned())
}
