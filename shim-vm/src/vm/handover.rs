//! A VM that runs, for another process image: its processes stay children of this process, and all that
//! the two images share of it goes on where it was.

use super::Vm;
use crate::child::Child;
use crate::console::{self, Console};
use crate::link;
use crate::machine::Machine;
use crate::network::Where;
use crate::notices::Notices;
use crate::pod::{self, Pod};
use crate::qemu::{self, Qemu};
use crate::share::{self, Share};
use crate::word::Doom;
use protos::Message;
use protos::guest::{Event, Hello};
use protos::mux::{self, Link};
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use task::handover::Kept;
use task::reaper::Reaper;
use tokio::sync::watch;

/// The link's streams that are there for as long as it is.
const NOTICES: u32 = 0;
const TTRPC: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
pub struct Moved {
    machine: qemu::Moved,
    /// The file server's pid.
    files: u32,
    files_said: console::Moved,
    socket: i32,
    link: mux::Moved,
    /// What has come of a notice that is not whole.
    notices: Vec<u8>,
    /// How many calls to the guest were made.
    calls: u32,
    patience: Duration,
    share: share::Moved,
    pod: pod::Moved,
    hello: Vec<u8>,
    heard_after: Duration,
    dir: PathBuf,
    network: Where,
    joined: bool,
}

impl Vm {
    /// Describes it for another process image, which its processes stay children of.
    ///
    /// # Errors
    /// If it has ended or is to end, or no fd is free.
    pub fn hand_over(&self, kept: &mut Kept) -> io::Result<Moved> {
        if self.is_gone() || self.doom.is_told() || self.link.is_closed() {
            return Err(io::Error::other("its VM has ended, or is about to"));
        }
        Ok(Moved {
            machine: self.machine.hand_over(kept)?,
            files: self.files.pid,
            files_said: self.files_said.hand_over(kept)?,
            socket: kept.keep(&self.socket)?,
            link: self.link.hand_over(),
            notices: self.notices.begun(),
            calls: self.client.made(),
            patience: self.patience,
            share: self.share.hand_over(),
            pod: self.pod.hand_over(),
            hello: self.hello.encode_to_vec(),
            heard_after: self.heard_after,
            dir: self.dir.clone(),
            network: self.network.clone(),
            joined: self.joined.get(),
        })
    }

    /// Goes on with that of another process image; `tell` as for [`Vm::boot`].
    ///
    /// # Errors
    /// If an fd is not what it is said to be, or its directory is gone.
    pub fn take_over(
        moved: Moved,
        reaper: &Rc<Reaper>,
        tell: impl FnMut(Event) -> Result<(), String> + 'static,
    ) -> io::Result<Rc<Self>> {
        let (doom, socket) = (Doom::default(), task::sys::adopt(moved.socket)?.into());
        let link = Link::take_over(moved.link);
        link::run(&link, &socket, &doom)?;
        let stream = |number| {
            let none = || io::Error::other(format!("stream {number} of the link is gone"));
            link.again(number).ok_or_else(none)
        };
        let notices = Rc::new(Notices::new(stream(NOTICES)?, moved.notices));
        let client = link::client(&link, stream(TTRPC)?, moved.calls, &doom);
        let machine = Qemu::take_over(moved.machine, reaper)?;
        let pod = Pod::take_over(moved.pod, machine.pid());
        let (told, gone) = watch::channel(None);
        let vm = Rc::new(Self {
            machine: Rc::new(machine),
            files: Rc::new(Child::take_over(moved.files, reaper)),
            files_said: Console::take_over(moved.files_said)?,
            socket,
            link,
            notices,
            client,
            doom,
            patience: moved.patience,
            share: Share::take_over(&moved.dir, moved.share, Rc::clone(reaper))?,
            pod,
            hello: Hello::decode(moved.hello.as_slice()).map_err(io::Error::other)?,
            heard_after: moved.heard_after,
            dir: moved.dir,
            network: moved.network,
            joined: Cell::new(moved.joined),
            gone,
        });
        vm.watch_over(told, tell);
        Ok(vm)
    }

    /// Waits until no call to the guest is under way.
    pub async fn idle(&self) {
        self.client.idle().await;
    }

    pub fn is_idle(&self) -> bool {
        self.client.is_idle()
    }
}
