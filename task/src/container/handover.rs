// SPDX-License-Identifier: Apache-2.0
//! The containers of one process image, in another.

use super::Container;
use crate::bundle::Bundle;
use crate::error::Result;
use crate::handover::{self, Kept, Means};
use crate::last_exit::LastExit;
use crate::process::exec::Exec;
use crate::process::{Exit, Process, ProcessId};
use crate::runtime::Runtime;
use crate::service::{Engine, Service};
use crate::state::State;
use serde_json::Value;
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;

impl<R: Runtime> Service<R> {
    /// Waits until nothing goes on but calls.
    pub async fn settled(&self) {
        // What the one waits for may set another off; the last look at all is in one step.
        let Engine {
            runtime, outbox, ..
        } = &*self.engine;
        while !(self.engine.is_settled() && runtime.is_settled() && outbox.is_settled()) {
            self.engine.settled().await;
            runtime.settled().await;
            outbox.settled().await;
        }
    }

    /// True if there is a container that is made, or may come.
    pub fn is_needed(&self) -> bool {
        !self.containers.all().is_empty() || self.engine.runtime.is_held()
    }

    /// Describes the engine for another process image. What was described while calls other than Wait
    /// run, or before [`Service::settled`], is good to look at only.
    ///
    /// # Errors
    /// If no fd is free, or the runtime can't be handed over now.
    pub fn hand_over(&self, kept: &mut Kept) -> io::Result<handover::Engine> {
        let containers = self.containers.all();
        let containers = containers.iter().map(|container| container.hand_over(kept));
        Ok(handover::Engine {
            containers: containers.collect::<io::Result<_>>()?,
            events: self.engine.outbox.hand_over(),
            runtime: handover::written(&R::hand_over(&self.engine, kept)?)?,
        })
    }

    /// Goes on with the engine of another process image.
    ///
    /// # Errors
    /// If an fd is not what it is said to be.
    pub fn take_over(&self, engine: handover::Engine) -> Result<()> {
        self.engine.outbox.take_over(engine.events);
        R::take_over(&self.engine, handover::read(&engine.runtime)?)?;
        for container in engine.containers {
            let container = Container::take_over(&self.engine, container)?;
            self.containers.insert(container);
        }
        Ok(())
    }

    /// Whether this build can go on with `engine`, as far as that can be seen.
    ///
    /// # Errors
    /// What it does not understand.
    pub fn understands(engine: &handover::Engine) -> Result<()> {
        handover::read::<R::Moved>(&engine.runtime)?;
        for container in &engine.containers {
            handover::read::<R::MovedContainer>(&Value::Object(container.own.clone()))?;
        }
        Ok(())
    }
}

impl<R: Runtime> Container<R> {
    fn hand_over(&self, kept: &mut Kept) -> io::Result<handover::Container> {
        let is_record = kept.is_record();
        let execs = self.execs.borrow();
        let execs = execs.iter();
        let execs = execs.map(|(id, exec)| Ok((id.clone(), exec.hand_over(kept)?)));
        // Of what is not told yet nothing is said: it is told again, from its beginning.
        let last = &self.last_exit;
        let (init_exited, unpublished) = match is_record {
            true => (self.init.exit().is_some(), None),
            false => (last.init_exited(), last.unpublished().map(Exit::hand_over)),
        };
        Ok(handover::Container {
            execs: execs.collect::<io::Result<_>>()?,
            init: self.init.hand_over(kept)?,
            id: self.id.clone(),
            bundle: self.bundle.path().to_owned(),
            init_exited,
            unpublished,
            own: match handover::written(&R::hand_over_container(self))? {
                Value::Object(own) => own,
                _ => serde_json::Map::new(),
            },
        })
    }

    /// # Errors
    /// If an fd is not what it is said to be.
    fn take_over(engine: &Rc<Engine<R>>, container: handover::Container) -> Result<Rc<Self>> {
        let (id, bundle) = (container.id, Bundle::new(container.bundle));
        let moved: R::MovedContainer = handover::read(&Value::Object(container.own))?;
        let own = R::take_over_container(engine, &id, &bundle, &moved)?;
        let link = R::link(engine);
        let means = Means {
            reaper: engine.runtime.reaper(),
            link: link.as_ref(),
        };
        let init = Process::take_over(ProcessId::Init, container.init, &means)?;
        let mut execs = HashMap::new();
        for (id, exec) in container.execs {
            execs.insert(id.clone(), Rc::new(Exec::take_over(id, exec, &means)?));
        }
        let runs = |exec: &&Rc<Exec>| exec.process.state.get() == State::Running;
        let running: Vec<_> = execs.values().filter(runs).cloned().collect();
        let unpublished = container.unpublished.map(Exit::take_over);
        let mut new = Self::new(id, bundle, init, own);
        new.execs = RefCell::new(execs);
        new.last_exit = LastExit::take_over(container.init_exited, unpublished, running.len());
        let new = Rc::new(new);
        R::goes_on(engine, &new, &moved);
        if !container.init_exited {
            R::track(engine, &new, &new.init);
        }
        for exec in running {
            R::track(engine, &new, &exec.process);
        }
        Ok(new)
    }
}
