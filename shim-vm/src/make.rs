// SPDX-License-Identifier: Apache-2.0
//! Making a container: its VM if it is the first in it, its files in the share,
//! its streams, and then the guest's part.

use crate::calls::alive;
use crate::checkpoint;
use crate::container::{GuestContainer, GuestProcess};
use crate::mirrors::Mirrors;
use crate::namespaces::{Anchor, Common};
use crate::ooms::Gone;
use crate::root::{self, Files};
use crate::runtime::{Container, Engine, unknown};
use crate::shared_vm::vm_for;
use crate::sockets::{Inside, Sockets};
use crate::spec::{Refusal, Translated, translate};
use crate::start::{connect, run_hooks};
use crate::unmake;
use crate::vm::Vm;
use protos::guest::PutBundleRequest;
use protos::task::{CreateTaskRequest, CreateTaskResponse};
use protos::ttrpc::Context;
use protos::{Code, Message, Status, any, runc};
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::fs;
use std::pin::pin;
use std::rc::{Rc, Weak};
use task::aside;
use task::bundle::{Bundle, write_private};
use task::oci::Options;
use task::process::Process;
use task::record;
use task::stdio::{Paths, check_lengths};
use task::{Error, ProcessId, Result};

const FAILED: &str = "OCI runtime create failed";

fn failed(why: String) -> Error {
    unknown(&format!("{FAILED}: {why}")).into()
}

/// Makes the container of `request`, whose id is taken.
///
/// # Errors
/// What failed; nothing is left of it.
pub async fn create(
    engine: &Rc<Engine>,
    request: &CreateTaskRequest,
    context: &Context,
) -> Result<Rc<Container>> {
    let (id, guest) = (&request.id, &engine.runtime);
    tokio::select! {
        biased;
        () = guest.unmade(id) => {}
        why = context.cancelled() => return Err(Error::GivenUp(why)),
    }
    guest.containers.borrow_mut().insert(id.clone(), None);
    // What it mounts outlives this process, too.
    record::now();
    let error = match make(engine, request, context).await {
        Ok(container) => return Ok(container),
        Err(error) => error,
    };
    unmake::undo(engine, id).await;
    tokio::select! {
        biased;
        why = context.cancelled() => Err(Error::GivenUp(why)),
        () = std::future::ready(()) => Err(error),
    }
}

/// # Errors
/// What failed; [`unmake`] undoes the rest.
async fn make(
    engine: &Rc<Engine>,
    request: &CreateTaskRequest,
    context: &Context,
) -> Result<Rc<Container>> {
    let paths = Paths::from(request);
    check_lengths(&request.id, &paths)?;
    if !request.checkpoint.is_empty() {
        return checkpoint::restore(engine, request, context).await;
    }
    let (id, bundle) = (&request.id, Bundle::new(&request.bundle));
    let (options, mut spec) = read(engine, request, &bundle).await?;
    let vm = vm_for(engine, id, &spec, context).await;
    let vm = vm.map_err(failed)?;
    vm.pod.set(&spec.place).await.map_err(failed)?;
    let (put, files) = share(engine, &vm, request, &mut spec, context).await?;
    let shown = shown(&put);
    let put = vm.ask(&put, context).await;
    let put = put.map_err(|status| files.name_in(status))?;

    let mut own = GuestContainer {
        id: id.clone(),
        name: id.clone(),
        streams: Paths::default(),
        shown,
        is_frozen: Cell::new(false),
        bundle: bundle.clone(),
        vm: Rc::clone(&vm),
        init: GuestProcess::new(String::new(), String::new()),
        execs: RefCell::default(),
        gone: Gone::default(),
        asked: Cell::new(0),
        engines: RefCell::new(Weak::new()),
        io_uid: options.io_uid,
        io_gid: options.io_gid,
        hooks: spec.hooks,
        created: Cell::new(false),
        forgotten: Cell::new(false),
    };
    let (io, names) = connect(engine, &own, id, &paths, context).await?;
    own.streams = names.clone();
    let own = Rc::new(own);
    let asked = CreateTaskRequest {
        id: id.clone(),
        bundle: put.bundle,
        terminal: names.terminal,
        stdin: names.stdin,
        stdout: names.stdout,
        stderr: names.stderr,
        options: Some(any::pack(&runc::Options {
            no_new_keyring: options.no_new_keyring,
            io_uid: options.io_uid,
            io_gid: options.io_gid,
            ..Default::default()
        })),
        ..Default::default()
    };
    if let Err(e) = make_in(engine, &own, &asked, context).await {
        io.close().await;
        return Err(e);
    }
    let init = Process::new(ProcessId::Init, paths, None);
    init.made(vm.pid(), io);
    Ok(Rc::new(Container::new(id.clone(), bundle, init, own)))
}

/// What of it a VM that is restored must be shown again: what is mounted, and where.
pub fn shown(put: &PutBundleRequest) -> Vec<u8> {
    let config: Value = serde_json::from_slice(&put.config).unwrap_or_default();
    let mounts = config["mounts"].as_array().into_iter().flatten();
    let place = |mount: &Value| json!([mount["destination"], mount["type"], mount["source"]]);
    let places: Value = mounts.map(place).collect();
    PutBundleRequest {
        config: places.to_string().into_bytes(),
        ..put.clone()
    }
    .encode_to_vec()
}

/// Reads what the bundle and the request's options want.
///
/// # Errors
/// What can't be read, or can't be in a VM.
pub async fn read(
    engine: &Engine,
    request: &CreateTaskRequest,
    bundle: &Bundle,
) -> Result<(Options, Translated)> {
    let (config, options) = (bundle.path().join("config.json"), request.options.clone());
    let read = aside::run(move || {
        let json = fs::read(&config).map_err(|e| format!("open {}: {e}", config.display()));
        (Options::from_any(options.as_ref()), json)
    });
    let (options, config) = read.await;
    let (options, config) = (options?, config.map_err(failed)?);
    let guest = &engine.runtime;
    let sandbox = guest.sandbox.borrow().clone();
    let common = Common {
        anchor: guest.anchor.get(),
        mounts: sandbox.map(|sandbox| sandbox.mounts()).unwrap_or_default(),
    };
    let translated = translate(&request.id, &config, &common);
    let translated = translated.map_err(|refusal| match refusal {
        refusal @ Refusal::Broken(_) => failed(refusal.to_string()),
        refusal @ Refusal::Unimplemented(_) => {
            Status::new(Code::Unimplemented, refusal.to_string()).into()
        }
    })?;
    Ok((options, translated))
}

/// Mounts the root filesystem and the volumes where the guest sees them; the bundle that it is given,
/// and the files that its root filesystem is made of.
///
/// # Errors
/// What can't be mounted.
pub async fn share(
    engine: &Engine,
    vm: &Rc<Vm>,
    request: &CreateTaskRequest,
    spec: &mut Translated,
    context: &Context,
) -> Result<(PutBundleRequest, Files)> {
    let (id, share) = (&request.id, &vm.share);
    let stage = share.stage().await.map_err(failed)?;
    let with = (&*engine.runtime.reaper, &stage);
    let shared = root::share(vm, request, spec, with, context).await;
    let (root, files) =
        shared.map_err(|e| unknown(&format!("failed to mount rootfs component: {e}")))?;
    let (mut sources, mut shared_memory, mut volumes) = (Vec::new(), Vec::new(), Vec::new());
    let mut sockets = Vec::new();
    let mut left_to_the_host = Vec::new();
    for (n, volume) in spec.volumes.iter().enumerate() {
        let source = &volume.source;
        let mut inside = Sockets::within(vm, volume, context).await;
        let is_socket = |socket: &mut Inside| socket.below.as_os_str().is_empty();
        let itself = inside.as_mut().ok();
        let itself = itself.and_then(|inside| inside.extract_if(.., is_socket).next());
        let path = if let Some(socket) = itself {
            socket.source
        } else if volume.memory {
            let (memory, path) = share.add_memory(source).await;
            shared_memory.push(memory);
            path
        } else {
            let added = share.add_volume(id, volume, &stage, context).await;
            let (path, is_dir) = added.map_err(failed)?;
            volumes.extend(is_dir.then(|| path.clone()));
            let offered = vm.container_sockets.within(vm, volume, &path, context);
            offered.await.map_err(failed)?;
            let narrow = volume.readonly && !volume.recursively;
            if narrow && share.has_mounts_in(&path).await.map_err(failed)? {
                left_to_the_host.push(n);
            }
            let mirror = Mirrors::of(vm, volume, &path, context).await;
            mirror.unwrap_or(path)
        };
        sockets.push(inside.map_err(failed)?);
        log::debug!("{id}: {} is {path}", source.display());
        sources.push(path);
    }
    left_to_the_host
        .into_iter()
        .for_each(|n| spec.is_writable(n));
    let put = PutBundleRequest {
        id: id.clone(),
        config: spec.config(&sources, &sockets),
        shared_memory,
        volumes,
        root,
    };
    Ok((put, files))
}

/// The host's hooks, and then the guest's part.
///
/// # Errors
/// A hook's, or the guest's.
async fn make_in(
    engine: &Engine,
    own: &Rc<GuestContainer>,
    request: &CreateTaskRequest,
    context: &Context,
) -> Result<()> {
    let (guest, pid) = (&engine.runtime, own.vm.pid());
    // Who `delete` says it was, if this shim does not live to.
    let file = own.bundle.pid(&ProcessId::Init);
    let written = aside::run(move || {
        let pid = pid.to_string();
        write_private(&file, pid.as_bytes()).map_err(|e| format!("write {}: {e}", file.display()))
    });
    written.await.map_err(failed)?;
    // From here on the guest may tell of it.
    let known = Some(Rc::clone(own));
    guest.containers.borrow_mut().insert(own.id.clone(), known);
    let ran = run_hooks(engine, own, &own.hooks.create, "creating", context).await;
    ran.map_err(failed)?;
    let made = create_in(own, request, context).await?;
    if guest.anchor.get().is_none() {
        let (host, inside) = (pid, made.pid);
        let anchor = Anchor {
            host,
            guest: inside,
            pids: None,
        };
        guest.anchor.set(Some(anchor));
    }
    Ok(())
}

/// Has the guest make it. What the guest has begun it ends, and so this waits for that also when
/// nobody waits for this any more: what came of it must be undone.
async fn create_in(
    container: &GuestContainer,
    request: &CreateTaskRequest,
    context: &Context,
) -> Result<CreateTaskResponse> {
    let vm = &container.vm;
    let whole = Context::background().traced(context.trace.clone());
    let made = async {
        let made = vm.ask(request, &whole).await?;
        // It is told before the answer.
        let created = container.init.until(|_| container.created.get());
        let what = format!("the creation of {}", container.id);
        vm.in_time(&what, vm.patience, created).await;
        alive(container).map(|()| made)
    };
    let mut made = pin!(made);
    let why = tokio::select! {
        made = &mut made => return made,
        why = context.cancelled() => why,
    };
    let what = format!("the answer of Create of {}", container.id);
    vm.in_time(&what, vm.patience, made).await;
    Err(Error::GivenUp(why))
}
