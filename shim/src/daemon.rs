// SPDX-License-Identifier: Apache-2.0
//! What a shim's daemon serves: the Task API, and what surrounds it in the process.

use protos::ttrpc::Service;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use task::handover::{Engine, Kept};
use task::look::Look;
use task::runtime::Runtime;

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// The Task service of one kind of shim; its events go to the outbox it was made with.
pub trait Daemon: Service {
    /// What it serves beside the Task API, by full names.
    fn services(self: Rc<Self>) -> Vec<(&'static str, Rc<dyn Service>)>;

    /// Reaps children and does what no call asks for, for ever.
    fn run(&self) -> Boxed<'_, io::Error>;

    /// Waits for a Shutdown that finds no container left (contract T80).
    fn shut_down(&self) -> Boxed<'_, ()>;

    /// Leaves nothing that would outlive the daemon and is not meant to.
    fn end(&self) -> Boxed<'_, ()>;

    /// Waits until nothing goes on but calls.
    fn settled(&self) -> Boxed<'_, ()>;

    /// What goes on now; it waits for nothing.
    fn look(&self) -> Look;

    /// Describes the state for another process image.
    ///
    /// # Errors
    /// If it can't be handed over.
    fn hand_over(&self, kept: &mut Kept) -> io::Result<Engine>;

    /// Describes the state for who brings this daemon back if it is killed, while all goes on; `None`
    /// if nothing would be left to go on with.
    ///
    /// # Errors
    /// As for [`Daemon::hand_over`].
    fn record(&self, kept: &mut Kept) -> io::Result<Option<Engine>>;

    /// Goes on with the state of another process image.
    ///
    /// # Errors
    /// If it makes no sense.
    fn take_over(&self, engine: Engine) -> task::Result<()>;
}

impl<R: Runtime> Daemon for task::Service<R> {
    fn services(self: Rc<Self>) -> Vec<(&'static str, Rc<dyn Service>)> {
        R::services(&self)
    }

    fn run(&self) -> Boxed<'_, io::Error> {
        Box::pin(self.run())
    }

    fn shut_down(&self) -> Boxed<'_, ()> {
        Box::pin(self.shut_down())
    }

    fn end(&self) -> Boxed<'_, ()> {
        Box::pin(self.end())
    }

    fn settled(&self) -> Boxed<'_, ()> {
        Box::pin(self.settled())
    }

    fn look(&self) -> Look {
        self.look()
    }

    fn hand_over(&self, kept: &mut Kept) -> io::Result<Engine> {
        self.hand_over(kept)
    }

    fn record(&self, kept: &mut Kept) -> io::Result<Option<Engine>> {
        match self.is_needed() {
            true => self.hand_over(kept).map(Some),
            false => Ok(None),
        }
    }

    fn take_over(&self, engine: Engine) -> task::Result<()> {
        self.take_over(engine)
    }
}
