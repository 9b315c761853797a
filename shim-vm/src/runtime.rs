// SPDX-License-Identifier: Apache-2.0
//! Containers in one VM, as a runtime of the engine: each call is asked of the guest, and what the
//! guest tells comes back in its order (`events.rs`).
//!
//! The engine knows of a container what its clients may know; what the guest has promised of it and
//! owes is in `container.rs`. State, Wait, an exec that is added and one that is deleted are answered
//! without the guest.

use crate::container::{self, GuestContainer};
use crate::debug::Debug;
use crate::events::UNASKED;
use crate::namespaces::Anchor;
use crate::ooms::KILLS;
use crate::sandbox::{self, Sandbox, Sandboxes};
use crate::vm::{self, Vm};
use crate::word::Allowance;
use crate::{adopt, calls, checkpoint, events, make, promises, shared_vm, start, unmake};
use protos::mux::Link;
use protos::runc::CheckpointOptions;
use protos::task::CreateTaskRequest;
use protos::task_types::ProcessInfo;
use protos::ttrpc::Context;
use protos::{Any, Code, Status, any, runc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::future::Ready;
use std::io;
use std::path::Path;
use std::rc::Rc;
use task::Result;
use task::bundle::Bundle;
use task::handover::Kept;
use task::outbox::Outbox;
use task::process::Process;
use task::process::exec::Exec;
use task::reaper::Reaper;
use task::runtime::Runtime;
use task::stdio::Io;
use tokio::sync::{Mutex, watch};

pub type Engine = task::service::Engine<Guest>;
pub type Container = task::container::Container<Guest>;
pub type Service = task::Service<Guest>;

/// One VM, booted for its first container and ended with its last, or as its sandbox says, and who is
/// in it.
pub struct Guest {
    pub reaper: Rc<Reaper>,
    /// `None` until the guest may tell of the container.
    pub containers: RefCell<HashMap<String, Option<Rc<GuestContainer>>>>,
    pub vm: RefCell<Option<Rc<Vm>>>,
    /// What the guest may tell unasked.
    pub unasked: RefCell<Allowance>,
    /// And of kills.
    pub kills: RefCell<Allowance>,
    pub anchor: Cell<Option<Anchor>>,
    /// The pod's, if it is there without a container.
    pub sandbox: RefCell<Option<Rc<Sandbox>>>,
    /// The VM stays when the last container goes, for others to come.
    pub keeps_vm: Cell<bool>,
    /// Held while the VM is booted or ended.
    pub turn: Mutex<()>,
    /// Containers that a shim was making that has died, as long as something is left of them.
    pub unmaking: watch::Sender<BTreeSet<String>>,
}

/// What it hands over beside its containers.
#[derive(Debug, Serialize, Deserialize)]
pub struct Moved {
    vm: Option<vm::Moved>,
    anchor: Option<Anchor>,
    #[serde(default)]
    sandbox: Option<sandbox::Moved>,
    /// Containers that are made.
    #[serde(default)]
    containers: Vec<String>,
    /// Containers that are being made, and what is known of those that the guest was asked for.
    #[serde(default)]
    making: Vec<adopt::Making>,
}

/// A service without containers and without a VM. The events of its tasks go to `outbox`.
pub fn service(namespace: String, reaper: Rc<Reaper>, outbox: Rc<Outbox>) -> Rc<Service> {
    let guest = Guest {
        reaper,
        containers: RefCell::default(),
        vm: RefCell::default(),
        unasked: RefCell::new(Allowance::new(UNASKED.0, UNASKED.1)),
        kills: RefCell::new(Allowance::new(KILLS.0, KILLS.1)),
        anchor: Cell::new(None),
        sandbox: RefCell::default(),
        keeps_vm: Cell::new(false),
        turn: Mutex::new(()),
        unmaking: watch::Sender::default(),
    };
    task::Service::with(guest, None, namespace, outbox)
}

impl Guest {
    /// The container, also one that the guest is making.
    pub fn known(&self, id: &str) -> Option<Rc<GuestContainer>> {
        self.containers.borrow().get(id).cloned().flatten()
    }

    /// The container that the guest calls so.
    pub fn named(&self, name: &str) -> Option<Rc<GuestContainer>> {
        let containers = self.containers.borrow();
        let mut all = containers.values().flatten();
        all.find(|own| own.name == name).cloned()
    }

    /// Waits until nothing is left of a container of this name that a dead shim was making.
    pub async fn unmade(&self, id: &str) {
        let mut unmaking = self.unmaking.subscribe();
        // Who sends is there for as long as this is.
        let _ = unmaking.wait_for(|ids| !ids.contains(id)).await;
    }

    /// Every container that the guest may tell of.
    pub fn all(&self) -> Vec<Rc<GuestContainer>> {
        let containers = self.containers.borrow();
        containers.values().flatten().cloned().collect()
    }
}

pub fn unknown(text: &str) -> Status {
    Status::new(Code::Unknown, text)
}

pub fn unimplemented(what: &str) -> Status {
    Status::new(Code::Unimplemented, format!("{what}: not implemented"))
}

impl Runtime for Guest {
    type Container = Rc<GuestContainer>;
    type Starting = ();
    type Moved = Moved;
    type MovedContainer = container::Moved;

    async fn run(engine: &Rc<Engine>) -> io::Error {
        let orphan = |pid, status| log::debug!("orphan {pid} ended: {status}");
        engine.runtime.reaper.run(&orphan).await
    }

    async fn end(engine: &Rc<Engine>) {
        let vm = engine.runtime.vm.borrow_mut().take();
        if let Some(vm) = vm {
            vm.power_off().await;
        }
    }

    async fn settled(&self) {
        let vm = self.vm.borrow().clone();
        if let Some(vm) = vm {
            vm.idle().await;
        }
    }

    fn is_settled(&self) -> bool {
        self.vm.borrow().as_ref().is_none_or(|vm| vm.is_idle())
    }

    fn services(service: &Rc<Service>) -> Vec<(&'static str, Rc<dyn protos::ttrpc::Service>)> {
        let sandboxes = Rc::new(Sandboxes::new(Rc::clone(service)));
        let debug = Rc::new(Debug::new(Rc::clone(service)));
        vec![
            (protos::service::SANDBOX, sandboxes),
            (protos::service::DEBUG, debug),
        ]
    }

    fn is_held(&self) -> bool {
        self.sandbox.borrow().is_some() || self.keeps_vm.get()
    }

    fn hand_over(engine: &Engine, kept: &mut Kept) -> io::Result<Moved> {
        let guest = &engine.runtime;
        let vm = guest.vm.borrow().clone();
        // Of a sandbox that has ended nothing goes on, once nobody is in it.
        let is_over = guest.is_held() && guest.containers.borrow().is_empty();
        let vm = vm.filter(|vm| !(is_over && vm.is_gone()));
        if kept.is_record() && vm.is_none() {
            return Err(io::Error::other("there is no VM"));
        }
        Ok(Moved {
            vm: vm.as_ref().map(|vm| vm.hand_over(kept)).transpose()?,
            anchor: guest.anchor.get(),
            sandbox: guest.sandbox.borrow().as_ref().map(|it| it.hand_over()),
            containers: adopt::made(guest),
            making: adopt::being_made(guest),
        })
    }

    fn hand_over_container(container: &Container) -> container::Moved {
        container.own.hand_over()
    }

    fn take_over(engine: &Rc<Engine>, moved: Moved) -> Result<()> {
        let guest = &engine.runtime;
        guest.anchor.set(moved.anchor);
        let sandbox = moved.sandbox.map(Sandbox::take_over).transpose()?;
        guest.sandbox.replace(sandbox);
        let Some(vm) = moved.vm else { return Ok(()) };
        let vm = Vm::take_over(vm, &guest.reaper, events::hearer(engine));
        let vm = vm.map_err(|e| unknown(&format!("take over the VM: {e}")))?;
        shared_vm::has_vm(engine, &vm);
        if vm.is_adopted {
            let cleared = vm.share.clear_others(&moved.containers);
            cleared.map_err(|e| unknown(&format!("the share of the VM: {e}")))?;
        }
        adopt::unmake(engine, &vm, moved.making);
        Ok(())
    }

    fn goes_on(engine: &Rc<Engine>, container: &Rc<Container>, _: &container::Moved) {
        if container.own.vm.is_adopted {
            adopt::go_on(engine, container);
        }
    }

    fn take_over_container(
        engine: &Rc<Engine>,
        id: &str,
        bundle: &Bundle,
        moved: &container::Moved,
    ) -> Result<Rc<GuestContainer>> {
        let vm = engine.runtime.vm.borrow().clone();
        let vm =
            vm.ok_or_else(|| unknown(&format!("container {id} was handed over without a VM")))?;
        let own = GuestContainer::take_over(id, bundle, &vm, moved);
        let mut containers = engine.runtime.containers.borrow_mut();
        containers.insert(id.to_owned(), Some(Rc::clone(&own)));
        Ok(own)
    }

    fn look(engine: &Engine) -> Value {
        let runtime = &engine.runtime;
        // It is being booted, or ended.
        let is_changing = runtime.turn.try_lock().is_err();
        let vm = runtime.vm.borrow().as_ref().map(|vm| vm.look());
        json!({"vm": vm, "vm_changes": is_changing})
    }

    fn reaper(&self) -> &Reaper {
        &self.reaper
    }

    fn link(engine: &Engine) -> Option<Rc<Link>> {
        let vm = engine.runtime.vm.borrow();
        vm.as_ref().map(|vm| Rc::clone(vm.link()))
    }

    async fn create(
        engine: &Rc<Engine>,
        request: &CreateTaskRequest,
        context: &Context,
    ) -> Result<Rc<Container>> {
        make::create(engine, request, context).await
    }

    async fn start(
        engine: &Rc<Engine>,
        container: &Rc<Container>,
        context: &Context,
    ) -> Result<()> {
        if container.own.is_frozen.get() {
            return checkpoint::start(&container.own, context).await;
        }
        start::init(engine, &container.own, context).await?;
        if let Some(wish) = container.own.vm.wish.take() {
            wish.fulfil(&engine.runtime.reaper);
        }
        Ok(())
    }

    async fn exec(
        engine: &Rc<Engine>,
        container: &Rc<Container>,
        exec: &Exec,
        context: &Context,
    ) -> Result<(u32, Io)> {
        start::exec(engine, &container.own, exec, context).await
    }

    /// An exec that has failed left nothing on the host; in the guest its engine sees to that.
    fn kill_strays(_: &Rc<Engine>, _: &Container) {}

    async fn kill(
        _: &Rc<Engine>,
        container: &Rc<Container>,
        process: &Process,
        signal: u32,
        all: bool,
        context: &Context,
    ) -> Result<()> {
        let process = container.own.process(&process.id)?;
        promises::kill(&container.own, &process, signal, all, context).await
    }

    async fn pause(container: &Rc<Container>, context: &Context) -> Result<()> {
        calls::pause(&container.own, context).await
    }

    async fn resume(container: &Rc<Container>, context: &Context) -> Result<()> {
        calls::resume(&container.own, context).await
    }

    async fn update(container: &Rc<Container>, resources: Value, context: &Context) -> Result<()> {
        calls::update(&container.own, resources, context).await
    }

    async fn checkpoint(
        engine: &Rc<Engine>,
        container: &Rc<Container>,
        image: &Path,
        options: &CheckpointOptions,
        context: &Context,
    ) -> Result<()> {
        checkpoint::save(engine, container, (image, options), context).await
    }

    async fn remove(engine: &Rc<Engine>, container: &Rc<Container>, _: &Context) -> Result<()> {
        promises::remove(engine, &container.own).await
    }

    async fn unmount(engine: &Rc<Engine>, container: &Rc<Container>) -> Result<()> {
        unmake::unmake(engine, &container.id, false).await;
        container.own.run_poststop(&engine.runtime.reaper).await;
        Ok(())
    }

    /// The guest's part of it goes when that is done with its output; nobody waits for that.
    fn forget(engine: &Rc<Engine>, container: &Rc<Container>, exec: &Process) {
        let container = Rc::clone(&container.own);
        if let Ok(exec) = container.process(&exec.id) {
            engine.in_background(async move { promises::forget(&container, &exec).await });
        }
    }

    async fn resize(
        container: &Rc<Container>,
        process: &Process,
        size: (u32, u32),
        context: &Context,
    ) -> Result<()> {
        // Before there is a process there is no terminal.
        match container.own.process(&process.id) {
            Ok(process) => calls::resize(&container.own, &process, size, context).await,
            Err(_) => Ok(()),
        }
    }

    /// Each process in the VM is, to the host, the VM's.
    fn pids(container: &Container) -> Vec<ProcessInfo> {
        let own = &container.own;
        let pid = own.vm.pid();
        let execs = own.execs.borrow();
        let running = execs
            .values()
            .filter(|exec| exec.runs.get() && exec.exit().is_none());
        let execs = running.map(|exec| {
            let exec_id = exec.exec_id.clone();
            let info = Some(any::pack(&runc::ProcessDetails { exec_id }));
            ProcessInfo { pid, info }
        });
        std::iter::once(ProcessInfo { pid, info: None })
            .chain(execs)
            .collect()
    }

    async fn stats(container: &Rc<Container>, context: &Context) -> Result<Any> {
        calls::stats(&container.own, context).await
    }

    fn starting(&self) {}

    fn track(engine: &Rc<Engine>, container: &Rc<Container>, process: &Rc<Process>) {
        events::track(engine, container, process);
    }

    /// What is left in the guest is its engine's to kill.
    fn kill_left(_: &Rc<Container>) -> Option<impl Future<Output = ()> + 'static> {
        None::<Ready<()>>
    }

    fn thaw(_: &Container) {}

    /// OOM is told by the guest, and of the VM by who watches it, before it is gone.
    fn stop_oom_watch(_: &Engine, _: &Container) -> bool {
        false
    }
}
