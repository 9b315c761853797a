// SPDX-License-Identifier: Apache-2.0
//! `containerd-shim-vm-v2 spare`: one VM in store, from its boot until it is taken, or is of no use.
//!
//! What it says on stdout is for its pool: [`READY`], [`TAKEN`].

use super::hold::{HOLD, LEASH_FD};
use super::{Answer, Request, bundle_of, key, place_of};
use crate::boot::Purpose;
use crate::config::{Accel, Config, Wanted};
use crate::image::Image;
use crate::limits::Place;
use crate::network::Where;
use crate::rights;
use crate::runtime::{self, Service};
use crate::shape::Shape;
use crate::vm::Vm;
use crate::{accel, check, events, place, program, shared_vm, sys};
use command_fds::{CommandFdExt, FdMapping};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use protos::guest::ConfigureRequest;
use protos::ttrpc::Context;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::rc::Rc;
use std::time::Duration;
use task::aside;
use task::handover::{Keeper, Kept};
use task::reaper::Reaper;
use task::signals::Signals;
use tokio::io::Interest;
use tokio::net::unix::pipe;

/// What it is called as.
pub const SPARE: &str = "spare";
/// Its VM is in store; somebody has it.
pub const READY: u8 = b'r';
pub const TAKEN: u8 = b't';
/// The namespace of what is run in its VM: none of containerd's.
const NAMESPACE: &str = "/pool";
/// How long who connects may take to say what it wants, and the guest to answer what it was asked.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is looked whether somebody may still want the VM.
const LOOK: Duration = Duration::from_secs(30);

/// Boots a VM of so many MiB and processors for the pool that is process `pool`, and gives it away.
///
/// # Errors
/// Why there is none.
pub fn spare(pool: &str, memory: &str, vcpus: &str) -> Result<ExitCode, String> {
    let wrong = |what: &str, e: &dyn std::fmt::Display| format!("{SPARE}: {what}: {e}");
    let pool: i32 = pool.parse().map_err(|e| wrong("the pool", &e))?;
    let memory = memory.parse().map_err(|e| wrong("MiB", &e))?;
    let vcpus = vcpus.parse().map_err(|e| wrong("processors", &e))?;
    shim::start_log("pool");
    task::inherited::keep_from_children().map_err(|e| wrong("inherited files", &e))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(Default::default());
    let runtime = runtime.map_err(|e| wrong("the event loop", &e))?;
    let config = Config {
        memory,
        vcpus,
        ..Config::load()?
    };
    let dir = place_of(&config.pool.directory, std::process::id());
    let bundle = bundle_of(&config.pool.directory, std::process::id());
    runtime.block_on(async {
        let reaper = Reaper::new().map_err(|e| e.to_string())?;
        let signals = Signals::new([Signal::SIGTERM, Signal::SIGHUP]).map_err(|e| e.to_string())?;
        set_pdeathsig(Signal::SIGTERM).map_err(|e| e.to_string())?;
        if nix::unistd::getppid().as_raw() != pool {
            return Err("its pool is gone".into());
        }
        let done = async {
            tokio::select! {
                done = live(&dir, &bundle, config, &reaper, &signals) => done,
                e = reaper.run(&|_, _| {}) => Err(e.to_string()),
            }
        };
        let done = done.await;
        let _ = place::clear(&dir).await;
        // Its pool would do so, unless that was killed.
        let _ = aside::run(move || fs::remove_dir_all(bundle)).await;
        done
    })?;
    Ok(ExitCode::SUCCESS)
}

/// From the boot to the end of a VM that nobody takes.
///
/// # Errors
/// Why it ended.
async fn live(
    dir: &Path,
    bundle: &Path,
    config: Config,
    reaper: &Rc<Reaper>,
    signals: &Signals,
) -> Result<(), String> {
    let shape = (config.memory, config.vcpus);
    let service = runtime::service(NAMESPACE.into(), Rc::clone(reaper), Rc::default());
    let stored = async {
        let (vm, kind) = boot(&service, dir, config, reaper).await?;
        warm(&service, bundle.to_owned()).await?;
        Ok::<_, String>((vm, kind))
    };
    let (vm, kind) = tokio::select! {
        stored = stored => stored?,
        () = wanted_no_more(signals) => return Ok(()),
    };
    let socket = kind.join(std::process::id().to_string());
    // Who wants the VM waits for this process; the VM's own stay behind others until then.
    sys::set_nice(0, 0).map_err(|e| format!("priority: {e}"))?;
    let told = tokio::select! {
        told = offer(&vm, &socket) => told.map(|never| match never {}),
        why = vm.gone() => Err(why),
        () = wanted_no_more(signals) => Ok(()),
        () = goes_stale(&kind, shape, reaper, signals) => {
            log::info!("a VM is thrown away: what it was booted with has changed");
            Ok(())
        }
    };
    let _ = fs::remove_file(&socket);
    let _ = fs::remove_dir(&kind);
    vm.power_off().await;
    told
}

/// Boots it; the VM, and the directory of sockets of its kind.
async fn boot(
    service: &Service,
    dir: &Path,
    config: Config,
    reaper: &Rc<Reaper>,
) -> Result<(Rc<Vm>, PathBuf), String> {
    let (config, image, accel, kind) = kind_of(None, config, reaper).await?;
    let context = Context::background();
    let engine = service.engine();
    engine.runtime.keeps_vm.set(true);
    let purpose = Purpose {
        context: &context,
        name: format!("pool/{}", std::process::id()),
        dir: dir.to_owned(),
        image,
        accel,
        shape: Shape::new(&config, &Wanted::default()),
        network: Where::Own,
        place: Place::default(),
        guest: ConfigureRequest::default(),
        settings: config.clone(),
        config,
    };
    let vm = Vm::cold(purpose, reaper)
        .await?
        .begin(events::hearer(engine));
    shared_vm::has_vm(engine, &vm);
    Ok((vm, kind))
}

/// What a VM is booted with now that is as `config` says, and the directory of sockets of that kind;
/// `shim` as for [`key::sockets`].
async fn kind_of(
    shim: Option<PathBuf>,
    config: Config,
    reaper: &Rc<Reaper>,
) -> Result<(Config, Image, Accel, PathBuf), String> {
    let found = aside::run(move || Image::find(&config).map(|image| (config, image)));
    let (config, image) = found.await?;
    let accel = accel::choose(&config, &image, reaper).await.accel;
    let program = program::find(&config.qemu, reaper).await?;
    let looked = aside::run(move || {
        let kind = key::sockets(shim.as_deref(), &config, &image, accel, &program);
        kind.map(|kind| (config, image, accel, kind))
    });
    looked.await.map_err(|e| e.to_string())
}

/// Runs a container in it, and an exec in that, from its creation to its deletion, so that others find all
/// warm.
async fn warm(service: &Rc<Service>, bundle: PathBuf) -> Result<(), String> {
    let making = bundle.clone();
    let made = aside::run(move || check::make(&making)).await;
    let ran = async {
        made.map_err(|e| format!("{}: {e}", bundle.display()))?;
        let out = bundle.join("out");
        let mut output = pipe::OpenOptions::new()
            .open_receiver(&out)
            .map_err(|e| format!("{}: {e}", out.display()))?;
        check::steps(service, &bundle, &out, &mut output).await
    };
    let ran = ran.await;
    let removed = aside::run(move || fs::remove_dir_all(&bundle)).await;
    removed.map_err(|e| e.to_string())?;
    ran.map(drop)?;
    service.settled().await;
    Ok(())
}

/// Waits for the pool to say that it is of no use.
async fn wanted_no_more(signals: &Signals) {
    while !matches!(signals.next().await, Ok(Signal::SIGTERM) | Err(_)) {}
}

/// Waits until what a VM would be booted with is not what this one was.
async fn goes_stale(kind: &Path, shape: (u64, u32), reaper: &Rc<Reaper>, signals: &Signals) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            signal = signals.next() => {
                if !matches!(signal, Ok(Signal::SIGHUP)) {
                    return;
                }
            }
        }
        let found = async {
            let (memory, vcpus) = shape;
            let config = Config {
                memory,
                vcpus,
                ..aside::run(Config::load).await?
            };
            kind_of(super::own_program().ok(), config, reaper).await
        };
        match found.await {
            Ok((.., now)) if now == kind => {}
            Ok(_) => return,
            // An image that is being made anew is another soon.
            Err(why) => log::warn!("{why}"),
        }
    }
}

/// Waits for who wants the VM, and becomes who holds it for that.
///
/// # Errors
/// If nobody will have it.
async fn offer(vm: &Rc<Vm>, socket: &Path) -> Result<Infallible, String> {
    let failed = |e: io::Error| format!("{}: {e}", socket.display());
    if let Some(kind) = socket.parent() {
        let mut builder = fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(kind)
            .map_err(failed)?;
    }
    let listener = rights::listen(socket).map_err(failed)?;
    let listener = task::sys::watch(listener, Interest::READABLE).map_err(failed)?;
    say(READY);
    loop {
        let mut ready = listener.readable().await.map_err(failed)?;
        let Some(leash) = rights::accept(listener.as_fd()).map_err(failed)? else {
            ready.clear_ready();
            continue;
        };
        match tokio::time::timeout(PATIENCE, heard(vm, leash)).await {
            Ok(Ok((leash, request))) => return give(vm, leash, request, socket),
            Ok(Err(why)) => log::warn!("who connected gets no VM: {why}"),
            Err(_) => log::warn!("who connected said nothing"),
        }
    }
}

/// What one wants who has connected, once the guest has nothing to answer.
async fn heard(vm: &Vm, leash: OwnedFd) -> Result<(OwnedFd, Request), String> {
    let failed = |e: io::Error| e.to_string();
    let peer = getsockopt(&leash, PeerCredentials).map_err(|e| failed(e.into()))?;
    if peer.uid() != 0 {
        return Err(format!("it is user {}", peer.uid()));
    }
    let leash = task::sys::watch(leash, Interest::READABLE).map_err(failed)?;
    drop(leash.readable().await.map_err(failed)?);
    let (said, _) = rights::receive(leash.as_fd()).map_err(failed)?;
    let request = serde_json::from_slice(&said).map_err(|e| e.to_string())?;
    vm.idle().await;
    Ok((leash.into_inner(), request))
}

/// The files that somebody gets, who has named the numbers that they will have.
struct Given {
    numbers: RefCell<VecDeque<i32>>,
    files: RefCell<Vec<OwnedFd>>,
}

impl Keeper for Given {
    fn is_record(&self) -> bool {
        false
    }

    fn keep(&self, fd: BorrowedFd<'_>) -> io::Result<i32> {
        let number = self.numbers.borrow_mut().pop_front();
        let number = number.ok_or_else(|| io::Error::other("it has more files than numbers"))?;
        self.files.borrow_mut().push(fd.try_clone_to_owned()?);
        Ok(number)
    }
}

/// Gives the VM away, in one step, and goes on as who holds it: nothing that this process knows of it is
/// true any more.
///
/// # Errors
/// Why nobody has it; it is of no use then.
fn give(vm: &Vm, leash: OwnedFd, request: Request, socket: &Path) -> Result<Infallible, String> {
    let failed = |e: io::Error| format!("give the VM away: {e}");
    let given = Rc::new(Given {
        numbers: RefCell::new(request.numbers.into()),
        files: RefCell::default(),
    });
    let mut kept = Kept::by(Rc::clone(&given) as Rc<dyn Keeper>);
    let answer = Answer {
        vm: vm.hand_over(&mut kept).map_err(failed)?,
    };
    let answer = serde_json::to_vec(&answer).map_err(|e| failed(e.into()))?;
    // Before it is anybody's: the place is moved then.
    fs::remove_file(socket).map_err(failed)?;
    if let Some(kind) = socket.parent() {
        let _ = fs::remove_dir(kind);
    }
    set_pdeathsig(None).map_err(|e| failed(e.into()))?;
    fcntl(&leash, FcntlArg::F_SETFL(OFlag::empty())).map_err(|e| failed(e.into()))?;
    let files = given.files.borrow();
    let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    rights::send(leash.as_fd(), &answer, &files).map_err(failed)?;
    say(TAKEN);
    let mut holder = Command::new(super::key::OWN);
    holder
        .arg0("containerd-shim-vm-v2")
        .arg(HOLD)
        .args([vm.pid(), vm.files_pid()].map(|pid| pid.to_string()))
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let leash = FdMapping {
        parent_fd: leash,
        child_fd: LEASH_FD,
    };
    holder.fd_mappings(vec![leash]).map_err(|e| e.to_string())?;
    Err(failed(holder.exec()))
}

fn say(word: u8) {
    let mut out = io::stdout();
    let _ = out.write_all(&[word]).and_then(|()| out.flush());
}
