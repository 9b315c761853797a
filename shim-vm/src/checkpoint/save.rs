// SPDX-License-Identifier: Apache-2.0
//! Saving a VM, with its container.

use super::manifest::{FORMAT, digest};
use super::{MANIFEST, Manifest, STATE, Saving};
use crate::calls;
use crate::config::Config;
use crate::container::GuestContainer;
use crate::qemu::monitor::Monitor;
use crate::runtime::{Container, Engine, unimplemented, unknown};
use crate::vm::Vm;
use protos::guest::ForgetRequest;
use protos::runc::CheckpointOptions;
use protos::task::StateRequest;
use protos::ttrpc::Context;
use protos::{Code, Status};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use task::Result;
use task::State;
use task::aside;

/// Network devices that a guest finds again: it has no other name for the second.
const NETWORKS: usize = 1;

/// Saves the VM of `container` into the directory `image`; then both go on, or end if that is wanted.
///
/// # Errors
/// What can't be saved, by its name, or why it is not; nothing of it is left, and both go on.
pub async fn save(
    engine: &Rc<Engine>,
    container: &Rc<Container>,
    (image, options): (&Path, &CheckpointOptions),
    context: &Context,
) -> Result<()> {
    let (own, id) = (&container.own, &container.id);
    calls::alive(own)?;
    let saving = can_be(engine, own, options)?;
    let image = match options.image_path.as_str() {
        "" => image,
        path => Path::new(path),
    };
    let no_checkpoint = |why: String| {
        log::warn!("{id}: no checkpoint: {why}");
        unknown(&format!("checkpoint {}: {why}", image.display()))
    };
    // Before anything stands still: a disk may keep who makes a file waiting.
    let dir = image.to_owned();
    let files = tokio::select! {
        made = aside::run(move || Files::make(dir)) => made.map_err(no_checkpoint)?,
        why = context.cancelled() => return Err(no_checkpoint(why.message).into()),
    };
    let files = Arc::new(files);
    let saved = frozen(container, (saving, &files), options.exit, context).await;
    let is_saved = matches!(saved, Ok(Ok(())));
    files.are_kept.store(is_saved, Ordering::Relaxed);
    tokio::select! {
        () = aside::run(move || drop(files)) => {}
        _ = context.cancelled() => {}
    }
    saved?.map_err(|why| no_checkpoint(why).into())
}

/// Saves it while it is frozen; then it is as it was, or ends if that is wanted.
///
/// # Errors
/// The guest's, and within it why it was not saved.
async fn frozen(
    container: &Rc<Container>,
    (saving, files): (&Saving, &Arc<Files>),
    ends: bool,
    context: &Context,
) -> Result<std::result::Result<(), String>> {
    let (own, id) = (&container.own, &container.id);
    let is_paused = container.init.state.get() == State::Paused;
    let forget = ForgetRequest {
        unused: true,
        ..Default::default()
    };
    // A file that was removed can't be saved, also if nobody uses it.
    own.vm.ask(&forget, context).await?;
    if !is_paused {
        calls::pause(own, context).await?;
    }
    let saved = match is_read_out(own, context).await {
        Ok(()) => stand_still(own, saving, files, context).await,
        Err(e) => Err(e.to_string()),
    };
    if saved.is_ok() && ends {
        let within = Context::within(own.vm.patience);
        if let Err(e) = is_read_out(own, &within).await {
            log::debug!("{id}: {e}");
        }
        own.vm.is_to_end.set(true);
        own.vm.doom.end("it was saved, and is to end".into());
        own.vm.gone().await;
        return Ok(saved);
    }
    if !is_paused && !own.vm.is_gone() {
        let again = calls::resume(own, &Context::within(own.vm.patience)).await;
        if let Err(e) = again {
            own.vm.doom.end(format!("{id} is frozen: {e}"));
        }
    }
    Ok(saved)
}

/// What the guest had to say before this is heard: what is on its way when it stands still is in no checkpoint.
///
/// # Errors
/// The guest's.
async fn is_read_out(own: &GuestContainer, context: &Context) -> Result<()> {
    let request = StateRequest {
        id: own.name.clone(),
        ..Default::default()
    };
    let asked = calls::ask(own, &own.init, &request, context);
    asked.await.map(drop)
}

/// # Errors
/// What of it can't be saved.
fn can_be<'a>(
    engine: &Engine,
    own: &'a GuestContainer,
    options: &CheckpointOptions,
) -> Result<&'a Saving> {
    let vm = &own.vm;
    let Some(saving) = &vm.saving else {
        let file = Config::file();
        let file = file.display();
        let what =
            format!("checkpoint of a container in a VM without checkpoints = true in {file}");
        return Err(unimplemented(&what).into());
    };
    let refused = |why: String| Err(Status::new(Code::FailedPrecondition, why).into());
    let guest = &engine.runtime;
    if guest.sandbox.borrow().is_some() || guest.containers.borrow().len() > 1 {
        return refused("checkpoint of a VM of several containers, or of a pod".into());
    }
    if !options.parent_path.is_empty() {
        let parent = &options.parent_path;
        return refused(format!(
            "parent_path {parent:?}: a VM's checkpoint is whole"
        ));
    }
    let execs = own.execs.borrow();
    let mut running = execs.values().filter(|exec| exec.exit().is_none());
    if let Some(exec) = running.next() {
        let id = &exec.exec_id;
        return refused(format!(
            "checkpoint while exec {id:?} runs, whose client would be lost"
        ));
    }
    if saving.built.networks > NETWORKS {
        let devices = saving.built.networks;
        return refused(format!("checkpoint of a VM with {devices} network devices"));
    }
    if !vm.sockets.hand_over().1.is_empty() || !vm.mirrors.hand_over().is_empty() {
        let what = "sockets of the host's, or volumes that the host swaps";
        return refused(format!("checkpoint of a container with {what}"));
    }
    if vm.container_sockets.are_there() {
        let what = "with a socket that the host connects to";
        return refused(format!("checkpoint of a container {what}"));
    }
    Ok(saving)
}

/// Saves it while it stands still; it goes on, but for its container.
async fn stand_still(
    own: &GuestContainer,
    saving: &Saving,
    files: &Arc<Files>,
    context: &Context,
) -> std::result::Result<(), String> {
    let vm = &own.vm;
    let mut monitor = saving.monitor.open().await?;
    let qemu = monitor.version.clone();
    let written = async {
        monitor.stop().await?;
        write(own, saving, &mut monitor, files, (qemu, context)).await
    };
    let written = tokio::select! {
        written = written => written,
        why = vm.gone() => Err(why),
    };
    if !vm.is_gone()
        && let Err(why) = monitor.go_on().await
    {
        vm.doom.end(format!("it stands still: {why}"));
    }
    vm.is_on_time().await;
    written
}

async fn write(
    own: &GuestContainer,
    saving: &Saving,
    monitor: &mut Monitor,
    files: &Arc<Files>,
    (qemu, context): (String, &Context),
) -> std::result::Result<(), String> {
    let vm: &Vm = &own.vm;
    let cancelled = async { context.cancelled().await.message };
    let saved = monitor.save_to(files.state.as_fd(), cancelled).await;
    saved.map_err(|why| match vm.files_said() {
        said if said.is_empty() => why,
        said => format!("{why}; {said}"),
    })?;
    let session = vm.session().ok_or("its guest knows no other session")?;
    let (container, built) = (own.hand_over(), saving.built.clone());
    // Who gives up does not wait for the disk; what is written then goes when that has ended.
    let files = Arc::clone(files);
    let sealed = aside::run(move || {
        let named = |e: io::Error| e.to_string();
        let machine = built.machine(qemu)?;
        files.state.sync_all().map_err(named)?;
        let state = File::open(files.dir.join(STATE)).map_err(named)?;
        let manifest = Manifest {
            format: FORMAT,
            machine,
            bytes: state.metadata().map_err(named)?.len(),
            sha256: digest(&state).map_err(named)?,
            session,
            container,
        };
        put(&files.dir, &manifest).map_err(named)
    });
    tokio::select! {
        sealed = sealed => sealed,
        why = context.cancelled() => Err(why.message),
    }
}

fn put(dir: &Path, manifest: &Manifest) -> io::Result<()> {
    let begun = dir.join(format!("{MANIFEST}.begun"));
    let mut file = new(&begun)?;
    file.write_all(&serde_json::to_vec_pretty(manifest)?)?;
    file.rewind()?;
    file.sync_all()?;
    fs::rename(&begun, dir.join(MANIFEST))?;
    File::open(dir)?.sync_all()
}

fn new(path: &Path) -> io::Result<File> {
    let mut new = OpenOptions::new();
    new.write(true).create_new(true).mode(0o600).open(path)
}

/// What is written into. Dropped, it is removed if it is not to be kept: not on the loop.
struct Files {
    dir: PathBuf,
    are_kept: AtomicBool,
    /// It was not there before.
    is_new: bool,
    /// For writing alone, which is how QEMU wants it.
    state: File,
}

impl Files {
    /// In the directory `dir`, which may be there.
    ///
    /// # Errors
    /// If it can't be made, or there is a checkpoint.
    fn make(dir: PathBuf) -> std::result::Result<Self, String> {
        let made = DirBuilder::new().mode(0o700).create(&dir);
        let is_new = match made {
            Ok(()) => true,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
            Err(e) => return Err(e.to_string()),
        };
        let state = new(&dir.join(STATE)).map_err(|e| {
            if is_new {
                let _ = fs::remove_dir(&dir);
            }
            format!("{STATE}: {e}")
        })?;
        let are_kept = AtomicBool::new(false);
        Ok(Self {
            dir,
            are_kept,
            is_new,
            state,
        })
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        if *self.are_kept.get_mut() {
            return;
        }
        for name in [STATE, MANIFEST, &format!("{MANIFEST}.begun")] {
            let _ = fs::remove_file(self.dir.join(name));
        }
        if self.is_new {
            let _ = fs::remove_dir(&self.dir);
        }
    }
}
