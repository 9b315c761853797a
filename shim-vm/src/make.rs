//! Making a container, and unmaking it: its VM if it is the first in it, its files in the share,
//! its streams, and then the guest's part.

use crate::accel;
use crate::boot::Purpose;
use crate::config::Config;
use crate::container::{CLOSE, Container, Process};
use crate::image::Image;
use crate::place;
use crate::service::{Service, unimplemented, unknown};
use crate::spec::{Anchor, Refusal, Translated, translate};
use crate::vm::Vm;
use protos::events::TaskOom;
use protos::guest::{ConfigureRequest, PutBundleRequest};
use protos::task::{CreateTaskRequest, CreateTaskResponse, DeleteRequest};
use protos::ttrpc::Context;
use protos::{Code, Status, any, runc};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::pin::pin;
use std::rc::Rc;
use task::aside;
use task::bundle::{Bundle, write_private};
use task::event::Event;
use task::oci::Options;
use task::stdio::{Ends, Paths};
use tokio::sync::Mutex;

const FAILED: &str = "OCI runtime create failed";

impl Service {
    /// Makes the container of `request`, whose id is taken.
    ///
    /// # Errors
    /// What failed; [`Service::unmake`] undoes the rest.
    pub(crate) async fn make(
        self: &Rc<Self>,
        request: CreateTaskRequest,
        context: &Context,
    ) -> Result<Rc<Container>, Status> {
        let failed = |why: String| unknown(&format!("{FAILED}: {why}"));
        if !request.checkpoint.is_empty() {
            return Err(unimplemented("restore of a container in a VM"));
        }
        let id = request.id.clone();
        let bundle = Bundle::new(&request.bundle);
        let (config, options) = (bundle.path().join("config.json"), request.options.clone());
        let read = aside::run(move || {
            let json = fs::read(&config).map_err(|e| format!("open {}: {e}", config.display()));
            (Options::from_any(options.as_ref()), json)
        });
        let (options, config) = read.await;
        let (options, config) = (options?, config.map_err(failed)?);
        let mut translated =
            translate(&id, &config, self.anchor.get()).map_err(|refusal| match refusal {
                refusal @ Refusal::Broken(_) => failed(refusal.to_string()),
                refusal @ Refusal::Unimplemented(_) => {
                    Status::new(Code::Unimplemented, refusal.to_string())
                }
            })?;
        let vm = self.vm_for(&id, &translated, context).await;
        let vm = vm.map_err(failed)?;
        vm.pod.set(&translated.place).await.map_err(failed)?;

        let root = bundle.path().join(&translated.root);
        let (share, points) = (&vm.share, translated.points.take());
        let shared = share
            .add_rootfs(&id, request.rootfs.clone(), &root, points, context)
            .await;
        shared.map_err(|e| unknown(&format!("failed to mount rootfs component: {e}")))?;
        let (mut sources, mut shared_memory, mut volumes) = (Vec::new(), Vec::new(), Vec::new());
        for volume in &translated.volumes {
            let source = &volume.source;
            let path = if volume.memory {
                let (memory, path) = share.add_memory(source).await;
                shared_memory.push(memory);
                path
            } else {
                let added = share.add_volume(&id, volume, context).await;
                let (path, is_dir) = added.map_err(failed)?;
                volumes.extend(is_dir.then(|| path.clone()));
                path
            };
            log::debug!("{id}: {} is {path}", source.display());
            sources.push(path);
        }
        let put = PutBundleRequest {
            id: id.clone(),
            config: translated.config(&sources),
            shared_memory,
            volumes,
        };
        let put = vm.ask(&put, context).await?;

        let paths = Paths {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let (ends, names) = Ends::open(vm.link(), &paths);
        let init = Process::new(String::new(), paths, ends);
        let container = Rc::new(Container {
            id: id.clone(),
            bundle,
            rootfs: request.rootfs,
            vm: Rc::clone(&vm),
            init: Rc::clone(&init),
            execs: RefCell::new(BTreeMap::new()),
            io_uid: options.io_uid,
            io_gid: options.io_gid,
            hooks: translated.hooks,
            created: Cell::new(false),
            recording: Mutex::default(),
            forgotten: Cell::new(false),
        });
        if let Some(ends) = init.ends.take() {
            self.connect(&container, &init, ends, context).await?;
        }
        // Who `delete` says it was, if this shim does not live to.
        let (file, pid) = (
            container.bundle.pid(&task::ProcessId::Init),
            vm.pid().to_string(),
        );
        let written = aside::run(move || {
            write_private(&file, pid.as_bytes())
                .map_err(|e| format!("write {}: {e}", file.display()))
        });
        written.await.map_err(failed)?;
        // From here on the guest may tell of it.
        self.containers
            .borrow_mut()
            .insert(id.clone(), Some(Rc::clone(&container)));
        self.run_hooks(&container, &container.hooks.create, "creating", context)
            .await
            .map_err(failed)?;
        let asked = CreateTaskRequest {
            id,
            bundle: put.bundle,
            terminal: request.terminal,
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
        let made = self.create_in(&container, &asked, context).await?;
        if self.anchor.get().is_none() {
            let (host, guest) = (vm.pid(), made.pid);
            self.anchor.set(Some(Anchor { host, guest }));
        }
        Ok(container)
    }

    /// Has the guest make it. What the guest has begun it ends, and so this waits for that also when
    /// nobody waits for this any more: what came of it must be undone.
    async fn create_in(
        &self,
        container: &Container,
        request: &CreateTaskRequest,
        context: &Context,
    ) -> Result<CreateTaskResponse, Status> {
        let (vm, whole) = (&container.vm, Context::background());
        let made = async {
            let made = vm.ask(request, &whole).await?;
            // It is told before the answer.
            let created = container.init.until(|_| container.created.get());
            let what = format!("the creation of {}", container.id);
            vm.in_time(&what, vm.patience, created).await;
            self.alive(container).map(|()| made)
        };
        let mut made = pin!(made);
        let why = tokio::select! {
            made = &mut made => return made,
            why = context.cancelled() => why,
        };
        let what = format!("the answer of Create of {}", container.id);
        vm.in_time(&what, vm.patience, made).await;
        Err(why)
    }

    /// The VM; booted, if this is its first container.
    async fn vm_for(
        self: &Rc<Self>,
        id: &str,
        spec: &Translated,
        context: &Context,
    ) -> Result<Rc<Vm>, String> {
        let _turn = self.turn.lock().await;
        if let Some(vm) = &*self.vm.borrow() {
            if vm.is_gone() {
                return Err("the VM that this container shares is gone".into());
            }
            return Ok(Rc::clone(vm));
        }
        let wanted = spec.wanted.clone();
        let found = aside::run(move || {
            let config = Config::load()?.wanted(&wanted)?;
            Image::find(&config).map(|image| (config, image))
        });
        let (config, image) = found.await?;
        let accel = accel::choose(&config, &image, &self.reaper).await;
        let purpose = Purpose {
            context,
            name: format!("{}/{id}", self.namespace),
            dir: place::of(&self.namespace, id),
            image,
            accel,
            network: spec.network.clone(),
            place: spec.place.clone(),
            guest: ConfigureRequest {
                hostname: id.chars().take(63).collect(),
                sysctls: spec.sysctls.clone(),
                debug: config.debug_console,
                ..Default::default()
            },
            config,
        };
        let telling = Rc::downgrade(self);
        let tell = move |event| match telling.upgrade() {
            Some(service) => service.told(&event),
            None => Ok(()),
        };
        let vm = Vm::boot(purpose, &self.reaper, tell).await?;
        self.vm.replace(Some(Rc::clone(&vm)));
        let (watching, watched) = (Rc::downgrade(self), Rc::clone(&vm));
        tokio::task::spawn_local(async move {
            let tell = || {
                if let Some(service) = watching.upgrade() {
                    service.vm_had_oom();
                }
            };
            let why = loop {
                tokio::select! {
                    () = watched.pod.oom() => tell(),
                    why = watched.gone() => break why,
                }
            };
            // TaskOOM comes before TaskExit (V10).
            if watched.pod.had_oom() {
                tell();
            }
            if let Some(service) = watching.upgrade() {
                service.vm_is_gone(&watched, &why);
            }
        });
        Ok(vm)
    }

    /// The kernel has killed one of the VM's processes: that is every container's loss.
    fn vm_had_oom(&self) {
        for container in self.all() {
            if container.created.get() && container.init.exit().is_none() {
                let container_id = container.id.clone();
                self.publish(Event::Oom(TaskOom { container_id }));
            }
        }
    }

    fn all(&self) -> Vec<Rc<Container>> {
        let containers = self.containers.borrow();
        containers.values().flatten().cloned().collect()
    }

    fn vm_is_gone(self: &Rc<Self>, vm: &Vm, why: &str) {
        let containers = self.all();
        // With containers that have ended, it was to end.
        if vm.doom.is_told() || containers.iter().any(|of| of.init.exit().is_none()) {
            let ids: Vec<&str> = containers.iter().map(|of| of.id.as_str()).collect();
            log::error!("VM of {}: {why}", ids.join(", "));
        }
        for container in containers {
            self.lost(&container);
        }
    }

    /// Takes the host's part of a container away, and with the last one the VM. `undo`: the guest may
    /// have its part still.
    pub(crate) async fn unmake(self: &Rc<Self>, id: &str, undo: bool) {
        let container = self.known(id);
        if let Some(container) = &container {
            container.init.close().await;
        }
        let vm = self.vm.borrow().clone();
        if let Some(vm) = &vm {
            let _turn = self.turn.lock().await;
            let others = self.containers.borrow().len() > 1;
            if others {
                if let Some(container) = container.filter(|of| undo && of.created.get()) {
                    self.undo_create(&container).await;
                }
                if let Err(why) = vm.pod.remove(id).await {
                    log::warn!("{id}: limits of the VM: {why}");
                }
            } else {
                vm.power_off().await;
                self.vm.replace(None);
                self.anchor.set(None);
            }
            vm.share.remove(id).await;
        }
        self.forget(id);
    }

    /// The guest has made a container that nobody waits for.
    async fn undo_create(&self, container: &Container) {
        let vm = &container.vm;
        let request = DeleteRequest {
            id: container.id.clone(),
            ..Default::default()
        };
        container.init.deleting.set(true);
        let deleted = async {
            let whole = Context::background();
            let deleted = vm.ask(&request, &whole);
            deleted.await?;
            container.init.until(|_| container.forgotten.get()).await;
            Ok::<_, Status>(())
        };
        let what = format!("the end of {}, which was not made", container.id);
        let deleted = vm.in_time(&what, vm.patience + CLOSE, deleted).await;
        if let Some(Err(status)) = deleted {
            vm.doom.end(format!("{what}: {status}"));
        }
    }

    /// Leaves no VM behind.
    pub async fn end(&self) {
        let vm = self.vm.borrow_mut().take();
        if let Some(vm) = vm {
            vm.power_off().await;
        }
    }
}
