// SPDX-License-Identifier: Apache-2.0
//! A container that goes on in a VM which was saved with it.
//!
//! Create does all that may fail; the guest runs then, and its container stands still until Start.

use super::manifest::{self, digest};
use super::{MANIFEST, Manifest, STATE, Saving};
use crate::boot::Purpose;
use crate::container::GuestContainer;
use crate::make::{self, shown};
use crate::runtime::{Container, Engine, unknown};
use crate::shared_vm::{Order, has_vm, hostname, purpose};
use crate::spec::Translated;
use crate::vm::{Saved, Vm};
use crate::{calls, events};
use protos::guest::ConfigureRequest;
use protos::task::CreateTaskRequest;
use protos::ttrpc::Context;
use std::fs::File;
use std::io::Seek;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use task::State;
use task::aside;
use task::bundle::Bundle;
use task::process::Process;
use task::stdio::{self, Of, Paths};
use task::{ProcessId, Result};

type Done<T> = std::result::Result<T, String>;

/// Makes the container of `request`, whose id is taken, of its checkpoint.
///
/// # Errors
/// What does not fit, by its name, or what failed; no VM is left.
pub async fn restore(
    engine: &Rc<Engine>,
    request: &CreateTaskRequest,
    context: &Context,
) -> Result<Rc<Container>> {
    let (id, from) = (&request.id, &request.checkpoint);
    let restored = async {
        if !request.parent_checkpoint.is_empty() {
            let parent = &request.parent_checkpoint;
            return Err(format!("parent {parent:?}: a VM's checkpoint is whole"));
        }
        let (options, spec) = make::read(engine, request, &Bundle::new(&request.bundle))
            .await
            .map_err(|e| e.to_string())?;
        let owner = (options.io_uid, options.io_gid);
        go_on(engine, request, spec, owner, context).await
    };
    restored.await.map_err(|why| {
        log::warn!("{id}: not restored from {from}: {why}");
        unknown(&format!("restore {from}: {why}")).into()
    })
}

/// Init goes on.
///
/// # Errors
/// The network's, or the guest's.
pub async fn start(own: &GuestContainer, context: &Context) -> Result<()> {
    calls::alive(own)?;
    let joined = own.vm.join_network(context).await;
    joined.map_err(|why| unknown(&format!("OCI runtime restore failed: network: {why}")))?;
    calls::resume(own, context).await?;
    own.is_frozen.set(false);
    Ok(())
}

/// Reads a checkpoint, all of it: what is written of it, and its state, to be read from its beginning.
///
/// # Errors
/// If it is not whole.
fn read(dir: &Path) -> Done<(Manifest, File)> {
    let manifest = Manifest::read(&dir.join(MANIFEST))?;
    let path = dir.join(STATE);
    let named = |e: std::io::Error| format!("{}: {e}", path.display());
    let mut state = manifest::open(&path).map_err(named)?;
    let bytes = state.metadata().map_err(named)?.len();
    if bytes != manifest.bytes {
        let (path, all) = (path.display(), manifest.bytes);
        return Err(format!("{path}: it is cut: {bytes} bytes of {all}"));
    }
    if digest(&state).map_err(named)? != manifest.sha256 {
        return Err(format!("{}: it is not what was written", path.display()));
    }
    state.rewind().map_err(named)?;
    Ok((manifest, state))
}

async fn go_on(
    engine: &Rc<Engine>,
    request: &CreateTaskRequest,
    spec: Translated,
    owner: (u32, u32),
    context: &Context,
) -> Done<Rc<Container>> {
    let dir = PathBuf::from(&request.checkpoint);
    let (manifest, state) = tokio::select! {
        read = aside::run(move || read(&dir)) => read?,
        why = context.cancelled() => return Err(why.message),
    };
    let guest = &engine.runtime;
    let turn = guest.turn.lock().await;
    if guest.vm.borrow().is_some() || guest.sandbox.borrow().is_some() {
        return Err("a container goes on in a VM of its own, and in no pod".into());
    }
    let order = Order {
        id: request.id.clone(),
        wanted: spec.wanted.clone(),
        network: spec.network.clone(),
        place: spec.place.clone(),
        guest: ConfigureRequest {
            hostname: hostname(&request.id),
            ..Default::default()
        },
    };
    let mut purpose = purpose(engine, order, context).await?;
    purpose.config.checkpoints = true;
    let saved = Saved {
        state,
        networks: manifest.machine.networks,
        acpi: manifest.machine.acpi,
        session: &manifest.session,
    };
    let waiting = Vm::waiting(&purpose, saved, &guest.reaper, events::hearer(engine));
    let (vm, told) = waiting.await?;
    has_vm(engine, &vm);
    drop(turn);
    let restored = async {
        let own = container(&vm, request, &manifest, owner);
        let known = Some(Rc::clone(&own));
        guest
            .containers
            .borrow_mut()
            .insert(request.id.clone(), known);
        let made = make_in(engine, request, spec, &own, &manifest, context).await?;
        wake(&vm, &manifest, &purpose, told).await?;
        Ok(made)
    };
    let restored = tokio::select! {
        restored = restored => restored,
        why = vm.gone() => Err(why),
        why = context.cancelled() => Err(why.message),
    };
    match restored {
        Ok(made) => Ok(made),
        Err(why) => {
            vm.is_to_end.set(true);
            vm.doom.end("it is not restored".into());
            let gone = vm.gone().await;
            log::debug!("{}: {gone}", request.id);
            // QEMU's reason is in nothing but what it said.
            let said = [vm.files_said(), vm.last_words()];
            let why = std::iter::once(why).chain(said);
            Err(why
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
                .join("; "))
        }
    }
}

/// What the guest calls as it did, and the host as `request` says.
fn container(
    vm: &Rc<Vm>,
    request: &CreateTaskRequest,
    manifest: &Manifest,
    (io_uid, io_gid): (u32, u32),
) -> Rc<GuestContainer> {
    let bundle = Bundle::new(&request.bundle);
    let moved = &manifest.container;
    GuestContainer::restored(&request.id, &bundle, vm, moved, (io_uid, io_gid))
}

/// Its files in the share, and its streams.
async fn make_in(
    engine: &Rc<Engine>,
    request: &CreateTaskRequest,
    mut spec: Translated,
    own: &Rc<GuestContainer>,
    manifest: &Manifest,
    context: &Context,
) -> Done<Rc<Container>> {
    let vm = &own.vm;
    vm.pod.set(&spec.place).await?;
    vm.share.begin_at(manifest.session.volumes.0);
    let named = CreateTaskRequest {
        id: own.name.clone(),
        ..request.clone()
    };
    let shared = make::share(engine, vm, &named, &mut spec, context).await;
    let (put, _) = shared.map_err(|e| e.to_string())?;
    if shown(&put) != own.shown || vm.share.numbers() != manifest.session.volumes {
        return Err("mounts: they are not those that it was saved with".into());
    }
    let of = Of {
        namespace: &engine.namespace,
        process: &own.id,
        bundle: &own.bundle,
        io_uid: own.io_uid,
        io_gid: own.io_gid,
    };
    let paths = Paths::from(request);
    let (link, reaper) = (vm.link(), &engine.runtime.reaper);
    let io = stdio::connect_again(&paths, &own.streams, link, of, reaper, context).await;
    let io = io.map_err(|e| e.to_string())?;
    let init = Process::new(ProcessId::Init, paths, None);
    init.made(vm.pid(), io);
    init.state.set(State::Restorable);
    let (id, bundle) = (request.id.clone(), own.bundle.clone());
    Ok(Rc::new(Container::new(id, bundle, init, Rc::clone(own))))
}

/// The machine goes on, and the guest is told what has changed.
async fn wake(
    vm: &Rc<Vm>,
    manifest: &Manifest,
    purpose: &Purpose<'_>,
    told: ConfigureRequest,
) -> Done<()> {
    let Some(Saving { monitor, built }) = &vm.saving else {
        return Err("it has no monitor".into());
    };
    let mut monitor = monitor.open().await?;
    let (built, qemu) = (built.clone(), monitor.version.clone());
    let ours = aside::run(move || built.machine(qemu)).await?;
    manifest.machine.fits(&ours)?;
    monitor.restore().await?;
    monitor.go_on().await?;
    let deadline = purpose.config.deadline(purpose.accel);
    let greeted = tokio::time::timeout(deadline, vm.greeted());
    let late = |_| format!("the guest does not go on within {} s", deadline.as_secs());
    greeted.await.map_err(late)?;
    let told = ConfigureRequest {
        restored: true,
        hostname: String::new(),
        ..told
    };
    vm.becomes(told).await
}
