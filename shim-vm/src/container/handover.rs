// SPDX-License-Identifier: Apache-2.0
//! What a VM's shim knows of a container beside the engine, for another process image.

use super::{GuestContainer, GuestProcess};
use crate::hooks::Hooks;
use crate::ooms::Gone;
use crate::promises::owes_exit;
use crate::vm::Vm;
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use task::bundle::Bundle;
use task::handover;
use task::process::Exit;
use task::stdio::Paths;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Moved {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    streams: Paths,
    #[serde(default)]
    shown: Vec<u8>,
    #[serde(default)]
    is_frozen: bool,
    guest_init: Process,
    guest_execs: Vec<Process>,
    asked: u64,
    io_uid: u32,
    io_gid: u32,
    hooks: Hooks,
    created: bool,
    forgotten: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Process {
    exec_id: String,
    name: String,
    added: bool,
    runs: bool,
    killed: bool,
    deleting: bool,
    exit: Option<handover::Exit>,
}

impl GuestProcess {
    fn hand_over(&self) -> Process {
        Process {
            exec_id: self.exec_id.clone(),
            name: self.name.clone(),
            added: self.added.get(),
            runs: self.runs.get(),
            killed: self.killed.get(),
            deleting: self.deleting.get(),
            exit: self.exit().map(Exit::hand_over),
        }
    }

    fn take_over(moved: &Process) -> Rc<Self> {
        let new = Self::new(moved.exec_id.clone(), moved.name.clone());
        new.added.set(moved.added);
        new.runs.set(moved.runs);
        new.deleting.set(moved.deleting);
        new.exit.set(moved.exit.map(Exit::take_over));
        new
    }
}

impl GuestContainer {
    /// Describes it for another process image.
    pub fn hand_over(&self) -> Moved {
        let execs = self.execs.borrow();
        Moved {
            name: Some(self.name.clone()),
            streams: self.streams.clone(),
            shown: self.shown.clone(),
            is_frozen: self.is_frozen.get(),
            guest_init: self.init.hand_over(),
            guest_execs: execs.values().map(|exec| exec.hand_over()).collect(),
            asked: self.asked.get(),
            io_uid: self.io_uid,
            io_gid: self.io_gid,
            hooks: self.hooks.clone(),
            created: self.created.get(),
            forgotten: self.forgotten.get(),
        }
    }

    /// That of a VM that was saved, which stands still: the host calls it `id` from now on.
    pub fn restored(
        id: &str,
        bundle: &Bundle,
        vm: &Rc<Vm>,
        moved: &Moved,
        (io_uid, io_gid): (u32, u32),
    ) -> Rc<Self> {
        let moved = Moved {
            is_frozen: true,
            io_uid,
            io_gid,
            hooks: Hooks::default(),
            ..moved.clone()
        };
        Self::take_over(id, bundle, vm, &moved)
    }

    /// Goes on with that of another process image; the guest owes what it owed, with new patience.
    pub fn take_over(id: &str, bundle: &Bundle, vm: &Rc<Vm>, moved: &Moved) -> Rc<Self> {
        let execs = moved.guest_execs.iter();
        let execs = execs.map(|exec| (exec.name.clone(), GuestProcess::take_over(exec)));
        let init = GuestProcess::take_over(&moved.guest_init);
        let execs: BTreeMap<_, _> = execs.collect();
        for process in execs.values().chain([&init]) {
            process.may_be_gone.set(vm.is_adopted);
        }
        let new = Rc::new(Self {
            id: id.to_owned(),
            name: moved.name.clone().unwrap_or_else(|| id.to_owned()),
            streams: moved.streams.clone(),
            shown: moved.shown.clone(),
            is_frozen: Cell::new(moved.is_frozen),
            bundle: bundle.clone(),
            vm: Rc::clone(vm),
            init,
            execs: RefCell::new(execs),
            gone: Gone::default(),
            asked: Cell::new(moved.asked),
            engines: RefCell::new(Weak::new()),
            io_uid: moved.io_uid,
            io_gid: moved.io_gid,
            hooks: moved.hooks.clone(),
            created: Cell::new(moved.created),
            forgotten: Cell::new(moved.forgotten),
        });
        let processes = moved.guest_execs.iter().chain([&moved.guest_init]);
        let killed = processes.filter(|process| process.killed);
        for process in killed {
            let execs = new.execs.borrow();
            let process = execs.get(&process.name).unwrap_or(&new.init);
            owes_exit(&new, process);
        }
        new
    }
}
