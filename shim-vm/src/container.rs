// SPDX-License-Identifier: Apache-2.0
//! What the guest has told of a container in the VM and of its processes, and what it owes: what the
//! host keeps beside the engine, whose clients it does not concern.

mod handover;

pub use handover::Moved;

use crate::hooks::Hooks;
use crate::ooms::Gone;
use crate::runtime::Container;
use crate::vm::Vm;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;
use task::bundle::Bundle;
use task::process::{Exit, Process};
use task::reaper::Reaper;
use task::stdio::Paths;
use task::{Error, ProcessId, Result};
use tokio::sync::Notify;

/// How long output may take to arrive after an exit, for Delete (contract T62).
pub const CLOSE: Duration = Duration::from_secs(10);

/// The exit of a process whose VM is gone.
pub fn killed() -> Exit {
    Exit {
        status: 137,
        at: task::event::now(),
    }
}

/// An init or exec process in the VM.
pub struct GuestProcess {
    /// What clients call it; empty for init.
    pub exec_id: String,
    /// What the guest calls it; empty for init. No two execs of a container ever have one name, so
    /// that one can be deleted while the next of its id is made.
    pub name: String,
    /// The guest has told that it is there: of an exec by an event, of init by its container's.
    pub added: Cell<bool>,
    /// It has a pid.
    pub runs: Cell<bool>,
    /// The guest was told to kill it, and owes its exit.
    pub killed: Cell<bool>,
    /// The guest was told to delete it: from then on it may say that it is not there.
    pub deleting: Cell<bool>,
    /// A shim that has died may have had it deleted: the guest need not know it.
    pub may_be_gone: Cell<bool>,
    exit: Cell<Option<Exit>>,
    /// Whose exit it is, once the engine knows the process and until it knows the exit.
    pub awaited: RefCell<Option<(Rc<Container>, Rc<Process>)>>,
    news: Notify,
}

impl GuestProcess {
    pub fn new(exec_id: String, name: String) -> Rc<Self> {
        Rc::new(Self {
            exec_id,
            name,
            added: Cell::new(false),
            runs: Cell::new(false),
            killed: Cell::new(false),
            deleting: Cell::new(false),
            may_be_gone: Cell::new(false),
            exit: Cell::new(None),
            awaited: RefCell::default(),
            news: Notify::new(),
        })
    }

    pub fn is_init(&self) -> bool {
        self.name.is_empty()
    }

    pub fn exit(&self) -> Option<Exit> {
        self.exit.get()
    }

    /// It has ended: see [`GuestProcess::exited`].
    pub fn set_exit(&self, exit: Exit) {
        self.exit.set(Some(exit));
        self.heard();
    }

    /// The guest tells that this came true of it, once.
    ///
    /// # Errors
    /// If it was so before.
    pub fn comes(&self, what: &str, fact: &Cell<bool>) -> std::result::Result<(), String> {
        if fact.replace(true) {
            return Err(format!("{what} of {:?}, which can't be", self.exec_id));
        }
        self.heard();
        Ok(())
    }

    /// The guest has told something of it.
    pub fn heard(&self) {
        self.news.notify_waiters();
    }

    /// Waits until `is` true, which comes true by what the guest tells.
    pub async fn until(&self, is: impl Fn(&Self) -> bool) {
        while !is(self) {
            self.news.notified().await;
        }
    }

    /// Waits until it has ended, whoever knows.
    pub async fn exited(&self) {
        self.until(|process| process.exit().is_some()).await;
    }
}

pub struct GuestContainer {
    pub id: String,
    /// What the guest calls it: another name, if it was restored as another.
    pub name: String,
    /// The streams of init, as the guest was told of them.
    pub streams: Paths,
    /// What of the share the guest was told of.
    pub shown: Vec<u8>,
    /// It was restored, and stands still until it is started.
    pub is_frozen: Cell<bool>,
    pub bundle: Bundle,
    pub vm: Rc<Vm>,
    pub init: Rc<GuestProcess>,
    /// By the guest's names; those that clients have deleted too, until the guest has.
    pub execs: RefCell<BTreeMap<String, Rc<GuestProcess>>>,
    /// The last execs that are not there any more.
    pub gone: Gone,
    /// How many execs the guest was asked for.
    pub asked: Cell<u64>,
    /// The engine's, once it knows it.
    pub engines: RefCell<Weak<Container>>,
    /// Owner of the pipes.
    pub io_uid: u32,
    pub io_gid: u32,
    pub hooks: Hooks,
    /// The guest has told that it has made it.
    pub created: Cell<bool>,
    /// And that it has deleted it: the last that it tells of it.
    pub forgotten: Cell<bool>,
}

impl GuestContainer {
    /// What the guest has told of a process of this container, if it was asked for one.
    ///
    /// # Errors
    /// NotFound.
    pub fn process(&self, id: &ProcessId) -> Result<Rc<GuestProcess>> {
        match id {
            ProcessId::Init => Ok(Rc::clone(&self.init)),
            ProcessId::Exec(id) => {
                let execs = self.execs.borrow();
                let mut there = execs.values();
                let exec = there.find(|exec| exec.exec_id == *id && !exec.deleting.get());
                let none = || Error::NotFound(format!("process does not exist {id}"));
                exec.cloned().ok_or_else(none)
            }
        }
    }

    /// A process, as the log names it.
    pub fn name_of(&self, process: &GuestProcess) -> String {
        match process.exec_id.as_str() {
            "" => self.id.clone(),
            exec_id => format!("{} {exec_id}", self.id),
        }
    }

    /// The hooks that run once it is gone.
    pub async fn run_poststop(&self, reaper: &Reaper) {
        let bundle = self.bundle.path();
        self.hooks.run_poststop(&self.id, bundle, reaper).await;
    }
}
