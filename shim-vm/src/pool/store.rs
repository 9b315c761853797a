// SPDX-License-Identifier: Apache-2.0
//! `containerd-shim-vm-v2 pool`: keeps as many VMs in store as the operator has set, one being booted at
//! a time, and behind everything else that the machine does.

use super::spare::{READY, SPARE, TAKEN};
use super::{BUNDLE, KIND, PLACE, bundle_of, place_of};
use crate::config::Config;
use crate::{place, sys};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};
use task::Command;
use task::aside;
use task::reaper::{Child, ExitStatus, Reaper};
use task::signals::Signals;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

const USAGE: &str = "\
containerd-shim-vm-v2 pool: keeps VMs in store that shims take instead of booting one.

How many, and which, says section [pool] of /etc/dunnage/shim-vm.toml; DUNNAGE_VM_CONFIG names another
file. SIGHUP: it is read again, and VMs of another kernel, image, QEMU or shim than would be booted now
are thrown away. SIGTERM: the end, with all VMs in store. What shims have taken goes on.
";
/// What is locked by the pool that runs.
const LOCK: &str = "lock";
/// How long nothing is booted after a boot that failed: the first time, and at most.
const AGAIN: Duration = Duration::from_secs(5);
const MOST: Duration = Duration::from_secs(600);
/// How long a VM in store may take to be gone.
const DYING: Duration = Duration::from_secs(10);
/// How far behind others it boots (setpriority(2)).
const NICE: i32 = 19;

/// Keeps the pool until it is told to end.
///
/// # Errors
/// If there can be none, or there is one already.
pub fn pool(words: &[&str]) -> Result<ExitCode, String> {
    match words {
        [] => {}
        ["-h" | "-help" | "--help"] => {
            let _ = io::Write::write_all(&mut io::stdout(), USAGE.as_bytes());
            return Ok(ExitCode::SUCCESS);
        }
        [word, ..] => {
            return Err(format!(
                "pool: {word:?}: there is no such argument\n{USAGE}"
            ));
        }
    }
    shim::start_log("pool");
    task::inherited::keep_from_children().map_err(|e| format!("inherited files: {e}"))?;
    let config = Config::load()?;
    let directory = config.pool.directory.clone();
    let failed = |e: io::Error| format!("{}: {e}", directory.display());
    let _lock = lock(&directory).map_err(failed)?;
    sys::set_nice(0, NICE).map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(Default::default());
    let runtime = runtime.map_err(|e| format!("set up the event loop: {e}"))?;
    runtime.block_on(async {
        let reaper = Reaper::new().map_err(|e| e.to_string())?;
        let signals = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];
        let signals = Signals::new(signals).map_err(|e| e.to_string())?;
        clear(&directory).await;
        let (news, heard) = unbounded_channel();
        let store = Store {
            directory: directory.clone(),
            config,
            spares: BTreeMap::new(),
            failures: 0,
            not_before: Instant::now(),
            news,
            reaper: Rc::clone(&reaper),
        };
        tokio::select! {
            done = store.keep(heard, &signals) => done,
            e = reaper.run(&|_, _| {}) => Err(e.to_string()),
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

/// # Errors
/// If another pool runs, or the kernel's.
fn lock(pool: &Path) -> io::Result<Flock<File>> {
    place::make_run()?;
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(pool)?;
    let file = File::create(pool.join(LOCK))?;
    let locked = Flock::lock(file, FlockArg::LockExclusiveNonblock);
    locked.map_err(|(_, e)| match e {
        nix::Error::EWOULDBLOCK => io::Error::other("another pool runs"),
        e => e.into(),
    })
}

/// Takes away what a pool has left that was killed, with its spares.
async fn clear(pool: &Path) {
    let entries = fs::read_dir(pool).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let cleared = if name.starts_with(PLACE) {
            place::clear(&path).await.map(drop)
        } else if name.starts_with(KIND) || name.starts_with(BUNDLE) {
            fs::remove_dir_all(&path)
        } else {
            Ok(())
        };
        if let Err(e) = cleared {
            log::warn!("{}: {e}", path.display());
        }
    }
}

/// What comes of a spare.
enum News {
    Said(u8),
    Ended(ExitStatus),
}

struct Spare {
    shape: (u64, u32),
    is_ready: bool,
    /// It was told to end.
    is_surplus: bool,
}

struct Store {
    config: Config,
    /// Another one than that counts when another pool is started.
    directory: PathBuf,
    /// By their pids, until they are taken.
    spares: BTreeMap<u32, Spare>,
    failures: u32,
    not_before: Instant,
    news: UnboundedSender<(u32, News)>,
    reaper: Rc<Reaper>,
}

impl Store {
    async fn keep(
        mut self,
        mut heard: UnboundedReceiver<(u32, News)>,
        signals: &Signals,
    ) -> Result<(), String> {
        loop {
            let wait = self.refill()?;
            let later = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                news = heard.recv() => {
                    if let Some((pid, news)) = news {
                        self.hear(pid, news).await;
                    }
                }
                signal = signals.next() => match signal.map_err(|e| e.to_string())? {
                    Signal::SIGHUP => self.reload().await,
                    _ => return self.end(heard).await,
                },
                () = later => {}
            }
        }
    }

    /// Boots one, if one is missing and none is being booted; how long to wait before that.
    fn refill(&mut self) -> Result<Option<Duration>, String> {
        let overhead = self.config.overhead_memory;
        let (memory, vcpus) = (self.config.memory, self.config.vcpus);
        let mut missing = self.config.pool.wanted(memory, vcpus, overhead);
        for (&pid, spare) in &mut self.spares {
            match missing.iter().position(|shape| *shape == spare.shape) {
                Some(at) => drop(missing.remove(at)),
                None if spare.is_surplus => {}
                None => {
                    spare.is_surplus = true;
                    let _ = task::sys::kill(pid, Signal::SIGTERM as u32);
                }
            }
        }
        let is_booting = self.spares.values().any(|spare| !spare.is_ready);
        let Some(&shape) = missing.first().filter(|_| !is_booting) else {
            return Ok(None);
        };
        let wait = self.not_before.saturating_duration_since(Instant::now());
        if !wait.is_zero() {
            return Ok(Some(wait));
        }
        self.start(shape)
            .map_err(|e| format!("start a spare: {e}"))?;
        Ok(None)
    }

    fn start(&mut self, shape: (u64, u32)) -> io::Result<()> {
        let (reader, writer) = io::pipe()?;
        let mut command = Command::new(super::own_program()?);
        command
            .arg0("containerd-shim-vm-v2")
            .arg(SPARE)
            .arg(std::process::id().to_string())
            .args([shape.0.to_string(), shape.1.to_string()])
            .null([libc::STDIN_FILENO])
            .stdout(writer);
        let (child, _) = self.reaper.spawn(&command)?;
        drop(command);
        let said = pipe::Receiver::from_owned_fd(reader.into())?;
        let spare = Spare {
            shape,
            is_ready: false,
            is_surplus: false,
        };
        self.spares.insert(child.pid, spare);
        tokio::task::spawn_local(listen(child, said, self.news.clone()));
        Ok(())
    }

    async fn hear(&mut self, pid: u32, news: News) {
        let Some(spare) = self.spares.get_mut(&pid) else {
            return;
        };
        let (memory, vcpus) = spare.shape;
        match news {
            News::Said(READY) => {
                spare.is_ready = true;
                self.failures = 0;
                let ready = self.spares.values().filter(|spare| spare.is_ready).count();
                log::info!("a VM of {memory} MiB and {vcpus} processors is in store: {ready} are");
            }
            News::Said(TAKEN) => {
                self.spares.remove(&pid);
                let left = self.spares.len();
                log::info!("a VM of {memory} MiB and {vcpus} processors is taken: {left} are left");
            }
            News::Said(_) => {}
            News::Ended(status) => {
                if !spare.is_ready && !spare.is_surplus {
                    let wait = AGAIN * 2_u32.saturating_pow(self.failures);
                    self.not_before = Instant::now() + wait.min(MOST);
                    self.failures = (self.failures + 1).min(16);
                    log::error!(
                        "a VM of {memory} MiB and {vcpus} processors did not come up: {status}"
                    );
                }
                self.spares.remove(&pid);
                self.clear_after(pid).await;
            }
        }
    }

    async fn clear_after(&self, pid: u32) {
        let place = place_of(&self.directory, pid);
        if let Err(e) = place::clear(&place).await {
            log::warn!("{}: {e}", place.display());
        }
        let _ = fs::remove_dir_all(bundle_of(&self.directory, pid));
        let entries = fs::read_dir(&self.directory).into_iter().flatten();
        let kinds = entries.flatten();
        let kinds = kinds.filter(|it| it.file_name().to_string_lossy().starts_with(KIND));
        for kind in kinds.map(|entry| entry.path()) {
            // Whoever has others there, or is none, stays.
            let _ = fs::remove_file(kind.join(pid.to_string()));
            let _ = fs::remove_dir(kind);
        }
    }

    async fn reload(&mut self) {
        match aside::run(Config::load).await {
            Ok(config) => {
                self.config = config;
                self.not_before = Instant::now();
            }
            Err(why) => log::error!("the settings stay as they were: {why}"),
        }
        for &pid in self.spares.keys() {
            let _ = task::sys::kill(pid, Signal::SIGHUP as u32);
        }
    }

    /// Ends all that nobody has taken.
    async fn end(mut self, mut heard: UnboundedReceiver<(u32, News)>) -> Result<(), String> {
        let signal = |pid: &u32, signal: Signal| {
            let _ = task::sys::kill(*pid, signal as u32);
        };
        self.spares
            .keys()
            .for_each(|pid| signal(pid, Signal::SIGTERM));
        let mut deadline = Box::pin(tokio::time::sleep(DYING));
        while !self.spares.is_empty() {
            tokio::select! {
                news = heard.recv() => {
                    if let Some((pid, news)) = news {
                        self.hear(pid, news).await;
                    }
                }
                () = &mut deadline => {
                    self.spares.keys().for_each(|pid| signal(pid, Signal::SIGKILL));
                    deadline.as_mut().reset(tokio::time::Instant::now() + DYING);
                }
            }
        }
        Ok(())
    }
}

/// Tells what a spare says, and its end.
async fn listen(mut child: Child, mut said: pipe::Receiver, news: UnboundedSender<(u32, News)>) {
    let pid = child.pid;
    while let Ok(word) = said.read_u8().await {
        let _ = news.send((pid, News::Said(word)));
    }
    let status = child.exit().await;
    let _ = news.send((pid, News::Ended(status)));
}
