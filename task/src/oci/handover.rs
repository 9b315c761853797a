//! The containers of one process image, in another.

use super::cli::Cli;
use super::{Oci, Own};
use crate::bundle::Bundle;
use crate::cgroup::Cgroup;
use crate::container::Container;
use crate::error::Result;
use crate::handover::{self, Kept};
use crate::last_exit::LastExit;
use crate::process::exec::Exec;
use crate::process::{Exit, Process, ProcessId};
use crate::service::{Engine, Service};
use crate::state::State;
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;

impl Service {
    /// Describes the engine for another process image. No call may run but Wait, and
    /// [`Service::settled`] must have come true.
    ///
    /// # Errors
    /// If no fd is free.
    pub fn hand_over(&self, kept: &mut Kept) -> io::Result<handover::Engine> {
        let containers = self.containers.all();
        let containers = containers.iter().map(|container| container.hand_over(kept));
        Ok(handover::Engine {
            containers: containers.collect::<io::Result<_>>()?,
            events: self.engine.outbox.hand_over(),
        })
    }

    /// Goes on with the engine of another process image.
    ///
    /// # Errors
    /// If an fd is not what it is said to be.
    pub fn take_over(&self, engine: handover::Engine) -> Result<()> {
        self.engine.outbox.take_over(engine.events);
        for container in engine.containers {
            let container = Container::take_over(&self.engine, container)?;
            self.containers.insert(container);
        }
        Ok(())
    }
}

impl Container<Oci> {
    /// Describes the container for another process image.
    ///
    /// # Errors
    /// If no fd is free.
    pub(crate) fn hand_over(&self, kept: &mut Kept) -> io::Result<handover::Container> {
        let execs = self.execs.borrow();
        let execs = execs.iter();
        let execs = execs.map(|(id, exec)| Ok((id.clone(), exec.hand_over(kept)?)));
        Ok(handover::Container {
            execs: execs.collect::<io::Result<_>>()?,
            init: self.init.hand_over(kept)?,
            id: self.id.clone(),
            bundle: self.bundle.path().to_owned(),
            options: self.own.options.clone(),
            checkpoint: self.own.checkpoint.clone(),
            own_pid_namespace: self.own.own_pid_namespace,
            cgroup: self
                .own
                .cgroup
                .borrow()
                .as_ref()
                .map(|cgroup| cgroup.hand_over()),
            oom_told: self
                .own
                .oom
                .borrow()
                .as_ref()
                .map(|(watch, _)| watch.told()),
            init_exited: self.last_exit.init_exited(),
            untold: self.last_exit.untold().map(Exit::hand_over),
        })
    }

    /// Goes on with a container of another process image.
    ///
    /// # Errors
    /// If an fd is not what it is said to be.
    pub(crate) fn take_over(
        engine: &Rc<Engine<Oci>>,
        container: handover::Container,
    ) -> Result<Rc<Self>> {
        let (reaper, id) = (&engine.runtime.reaper, container.id);
        let bundle = Bundle::new(container.bundle);
        let options = container.options;
        let cli = Cli::new(
            Rc::clone(reaper),
            &options,
            &engine.namespace,
            bundle.clone(),
        );
        let init = Process::take_over(ProcessId::Init, container.init, reaper)?;
        let mut execs = HashMap::new();
        for (id, exec) in container.execs {
            execs.insert(id.clone(), Rc::new(Exec::take_over(id, exec, reaper)?));
        }
        let runs = |exec: &&Rc<Exec>| exec.process.state.get() == State::Running;
        let running: Vec<_> = execs.values().filter(runs).cloned().collect();
        let untold = container.untold.map(Exit::take_over);
        let last_exit = LastExit::take_over(container.init_exited, untold, running.len());
        let cgroup = container
            .cgroup
            .map(|cgroup| Rc::new(Cgroup::take_over(cgroup)));
        let own_pid_namespace = container.own_pid_namespace;
        let own = Own::new(cli, options, own_pid_namespace, container.checkpoint);
        own.cgroup.replace(cgroup.clone());
        let mut new = Self::new(id, bundle, init, own);
        new.execs = RefCell::new(execs);
        new.last_exit = last_exit;
        let new = Rc::new(new);
        if let (Some(told), Some(cgroup)) = (container.oom_told, cgroup) {
            new.watch_oom(engine, &cgroup, told);
        }
        if !container.init_exited {
            engine.track(&new, &new.init);
        }
        for exec in running {
            engine.track(&new, &exec.process);
        }
        Ok(new)
    }
}
