// SPDX-License-Identifier: Apache-2.0
//! The VM that containers share: booted for whoever is the first to want it, watched, and told of when it
//! is gone.

use crate::accel;
use crate::boot::Purpose;
use crate::config::{Config, Wanted};
use crate::events;
use crate::image::Image;
use crate::limits::Place;
use crate::network::Where;
use crate::place;
use crate::runtime::Engine;
use crate::shape::Shape;
use crate::spec::Translated;
use crate::vm::Vm;
use protos::guest::ConfigureRequest;
use protos::ttrpc::Context;
use std::rc::{Rc, Weak};
use task::aside;

/// What a VM is to be, by the container or the sandbox that it is named after.
pub struct Order {
    pub id: String,
    pub wanted: Wanted,
    pub network: Where,
    pub place: Place,
    pub guest: ConfigureRequest,
}

/// The hostname of a VM whose owner has no other.
pub fn hostname(id: &str) -> String {
    id.chars().take(63).collect()
}

/// The VM of a container; booted, if this is its first and there is no sandbox.
///
/// # Errors
/// Why there is none, or what of it is not as the container wants it.
pub async fn vm_for(
    engine: &Rc<Engine>,
    id: &str,
    spec: &Translated,
    context: &Context,
) -> Result<Rc<Vm>, String> {
    let guest = &engine.runtime;
    let _turn = guest.turn.lock().await;
    let sandbox = guest.sandbox.borrow().clone();
    if let Some(sandbox) = sandbox {
        sandbox.is_ready()?;
    }
    if let Some(vm) = &*guest.vm.borrow() {
        if vm.is_gone() {
            return Err("the VM that this container shares is gone".into());
        }
        vm.shape.admits(&spec.wanted)?;
        return Ok(Rc::clone(vm));
    }
    let order = Order {
        id: id.to_owned(),
        wanted: spec.wanted.clone(),
        network: spec.network.clone(),
        place: spec.place.clone(),
        guest: ConfigureRequest {
            hostname: hostname(id),
            sysctls: spec.sysctls.clone(),
            ..Default::default()
        },
    };
    boot(engine, order, context).await
}

/// Boots the VM, while nobody else does.
///
/// # Errors
/// Why it is not up; nothing of it is left.
pub async fn boot(engine: &Rc<Engine>, order: Order, context: &Context) -> Result<Rc<Vm>, String> {
    let purpose = purpose(engine, order, context).await?;
    let vm = Vm::boot(purpose, &engine.runtime.reaper, events::hearer(engine)).await?;
    has_vm(engine, &vm);
    Ok(vm)
}

/// What a VM is made of that is as `order` says.
///
/// # Errors
/// If what it wants can't be, or a part is missing.
pub async fn purpose<'a>(
    engine: &Engine,
    order: Order,
    context: &'a Context,
) -> Result<Purpose<'a>, String> {
    let reaper = &engine.runtime.reaper;
    let wanted = order.wanted;
    let found = aside::run(move || {
        let settings = Config::load()?;
        let config = settings.wanted(&wanted)?;
        let shape = Shape::new(&config, &wanted);
        Image::find(&config).map(|image| (settings, config, image, shape))
    });
    let (settings, config, image, shape) = found.await?;
    let accel = accel::choose(&config, &image, reaper).await.accel;
    Ok(Purpose {
        context,
        name: format!("{}/{}", engine.namespace, order.id),
        dir: place::of(&engine.namespace, &order.id),
        image,
        accel,
        shape,
        network: order.network,
        place: order.place,
        guest: ConfigureRequest {
            debug: config.debug_console,
            ..order.guest
        },
        settings,
        config,
    })
}

/// From now on there is a VM, which is watched.
pub fn has_vm(engine: &Rc<Engine>, vm: &Rc<Vm>) {
    engine.runtime.vm.replace(Some(Rc::clone(vm)));
    let watching = Rc::downgrade(engine);
    tokio::task::spawn_local(watch(watching, Rc::clone(vm)));
}

/// Tells of a VM's OOM kills, and of its end.
async fn watch(engine: Weak<Engine>, vm: Rc<Vm>) {
    let had_oom = || {
        if let Some(engine) = engine.upgrade() {
            vm_had_oom(&engine);
        }
    };
    let why = loop {
        tokio::select! {
            () = vm.pod.oom() => had_oom(),
            why = vm.gone() => break why,
        }
    };
    // TaskOOM comes before TaskExit (V10).
    if vm.pod.had_oom() {
        had_oom();
    }
    if let Some(engine) = engine.upgrade() {
        vm_is_gone(&engine, &vm, &why);
    }
}

/// The kernel has killed one of the VM's processes: that is every container's loss.
fn vm_had_oom(engine: &Engine) {
    for container in engine.runtime.all() {
        if container.created.get() && container.init.exit().is_none() {
            engine.publish_oom(&container.id);
        }
    }
}

fn vm_is_gone(engine: &Rc<Engine>, vm: &Vm, why: &str) {
    let containers = engine.runtime.all();
    // With containers that have ended, it was to end.
    let is_sudden = !vm.is_to_end.get();
    if is_sudden && (vm.doom.is_sealed() || containers.iter().any(|of| of.init.exit().is_none())) {
        let ids: Vec<&str> = containers.iter().map(|of| of.id.as_str()).collect();
        log::error!("VM of {}: {why}", ids.join(", "));
    }
    for container in containers {
        events::lost(engine, &container);
    }
    let sandbox = engine.runtime.sandbox.borrow().clone();
    // Last: who waits for it has heard of its containers.
    if let Some(sandbox) = sandbox {
        sandbox.ended(why);
    }
}
