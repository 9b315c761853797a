// SPDX-License-Identifier: Apache-2.0
//! What the guest tells of its containers: believed where it can be true, and handed to the engine
//! where that has to know it, which is of exits and OOM kills.

use crate::container::{GuestContainer, GuestProcess, killed};
use crate::notices::News;
use crate::ooms;
use crate::promises::owes_exit;
use crate::runtime::{Container, Engine};
use crate::word;
use protos::guest;
use std::rc::Rc;
use task::ProcessId;
use task::event::Event;
use task::process::{Exit, Process};

/// What a guest may tell without being asked, such as an OOM: so often at once, and a second after
/// that.
pub const UNASKED: (u32, u32) = (1000, 100);

/// Who hears of a VM's events: the engine, for as long as it is there.
pub fn hearer(engine: &Rc<Engine>) -> impl FnMut(News) -> Result<(), String> + 'static {
    let telling = Rc::downgrade(engine);
    move |news| match (telling.upgrade(), news) {
        (Some(engine), News::Event(event)) => hear(&engine, &event),
        (Some(engine), News::Killed(killed)) => {
            ooms::hear(&engine, &killed);
            Ok(())
        }
        (None, _) => Ok(()),
    }
}

/// An event of the guest's, in its order. Each can happen once, where it can happen at all, but for
/// some that may come again, within bounds.
///
/// # Errors
/// How the guest broke its word: the event can't be.
pub fn hear(engine: &Rc<Engine>, event: &guest::Event) -> Result<(), String> {
    let event = event.event.as_ref().and_then(Event::from_any);
    let event = event.ok_or("an event that is none of the Task API's")?;
    let id = container_of(&event);
    let container = engine.runtime.named(id);
    let container = container.ok_or_else(|| format!("an event of {id:?}, which is not there"))?;
    let init = &container.init;
    let exec = |name: &str| {
        let exec = container.execs.borrow().get(name).cloned();
        exec.ok_or_else(|| format!("{id}: an event of {name:?}, which is not there"))
    };
    if !container.created.get() && !matches!(event, Event::Create(_)) {
        return Err(format!("{id}: an event before its creation"));
    }
    match &event {
        Event::Create(_) => {
            init.added.set(true);
            init.comes("a creation", &container.created)?;
        }
        Event::Start(_) => {
            init.comes("a start", &init.runs)?;
            runs(engine, &container);
        }
        Event::Exit(exit) => {
            let process = match ProcessId::in_event(&container.name, &exit.id) {
                ProcessId::Init => Rc::clone(init),
                ProcessId::Exec(name) => exec(&name)?,
            };
            if process.exit().is_some() {
                return Err(format!("{id}: a second exit of {:?}", process.exec_id));
            }
            let exit = word::exit(exit.exit_status, exit.exited_at)?;
            exited(engine, &process, exit);
            if process.is_init() {
                owes_other_exits(&container);
            }
        }
        Event::ExecAdded(added) => {
            let process = exec(&added.exec_id)?;
            process.comes("a new exec", &process.added)?;
        }
        Event::ExecStarted(started) => {
            let process = exec(&started.exec_id)?;
            process.comes("a start", &process.runs)?;
        }
        Event::Delete(_) if init.deleting.get() && !container.forgotten.replace(true) => {
            init.heard();
        }
        Event::Delete(_) => return Err(format!("{id}: a deletion that nobody asked for")),
        Event::Oom(_) | Event::Paused(_) | Event::Resumed(_) => {
            if !engine.runtime.unasked.borrow_mut().take() {
                return Err(format!("{id}: too many events"));
            }
            if let Event::Oom(_) = event {
                engine.publish_oom(&container.id);
            }
        }
    }
    Ok(())
}

/// Init runs. A start that a shim had asked for that has died is nobody's but ours to tell.
pub fn runs(engine: &Rc<Engine>, container: &GuestContainer) {
    if container.vm.is_adopted
        && let Some(known) = container.engines.borrow().upgrade()
    {
        known.runs_unasked(engine);
    }
}

/// An agent tells of init last. Who does not may not keep its exit from being told.
fn owes_other_exits(container: &GuestContainer) {
    let execs: Vec<_> = container.execs.borrow().values().cloned().collect();
    let running = execs
        .iter()
        .filter(|it| it.runs.get() && it.exit().is_none());
    running.for_each(|exec| owes_exit(container, exec));
}

/// A process has ended; the engine hears so when it knows the process.
fn exited(engine: &Rc<Engine>, process: &GuestProcess, exit: Exit) {
    process.set_exit(exit);
    let awaited = process.awaited.take();
    if let Some((container, process)) = awaited {
        engine.exited(&container, &process, exit);
    }
}

/// The engine knows the process from now on.
pub fn track(engine: &Rc<Engine>, container: &Rc<Container>, process: &Rc<Process>) {
    let own = &container.own;
    own.engines.replace(Rc::downgrade(container));
    let Ok(told) = own.process(&process.id) else {
        return;
    };
    match told.exit() {
        Some(exit) => engine.exited(container, process, exit),
        None => {
            let awaited = (Rc::clone(container), Rc::clone(process));
            told.awaited.replace(Some(awaited));
        }
    }
}

/// The container's VM is gone: so is every process that has not ended before, init last.
pub fn lost(engine: &Rc<Engine>, container: &GuestContainer) {
    if !container.created.get() {
        return; // its Create fails, and says so
    }
    let execs: Vec<_> = container.execs.borrow().values().cloned().collect();
    for process in execs.iter().chain([&container.init]) {
        if process.exit().is_none() && (process.is_init() || process.runs.get()) {
            exited(engine, process, killed());
        }
    }
    // What was not started nobody can start any more.
    let known = container.engines.borrow().upgrade();
    for exec in known.iter().flat_map(|known| known.execs()) {
        if exec.process.pid.get() == 0 {
            exec.process.never_runs();
        }
    }
}

fn container_of(event: &Event) -> &str {
    match event {
        Event::Create(e) => &e.container_id,
        Event::Start(e) => &e.container_id,
        Event::Oom(e) => &e.container_id,
        Event::Exit(e) => &e.container_id,
        Event::Delete(e) => &e.container_id,
        Event::ExecAdded(e) => &e.container_id,
        Event::ExecStarted(e) => &e.container_id,
        Event::Paused(e) => &e.container_id,
        Event::Resumed(e) => &e.container_id,
    }
}
