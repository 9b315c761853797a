// SPDX-License-Identifier: Apache-2.0
//! The daemon's side of its keeper: what it keeps open, and the state that it has.

use super::{FORGET, Word};
use crate::Daemon;
use crate::upgrade::Handover;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::kill;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::stat::fstat;
use nix::unistd::getppid;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::{Rc, Weak};
use task::handover::{Keeper, Kept};
use task::record::Recorder;
use tokio::sync::Notify;

/// The numbers of files that are kept begin here, as those of an upgrade.
const FIRST: i32 = 10;

/// A file, as far as it matters which one it is: its device and number, and how it is open.
type Identity = (u64, u64, i32);

/// What the keeper has of this daemon's.
pub struct Held {
    socket: OwnedFd,
    /// Set once the daemon serves.
    daemon: RefCell<Option<Weak<dyn Daemon>>>,
    /// By our number: which file it is, and the number that the keeper has it under.
    files: RefCell<HashMap<RawFd, (Identity, i32)>>,
    /// The keeper's numbers that are taken, and those of them that the state names.
    taken: RefCell<BTreeSet<i32>>,
    named: RefCell<BTreeSet<i32>>,
    /// The state that the keeper has; empty: nothing.
    state: RefCell<Vec<u8>>,
    wanted: Notify,
    /// The keeper does not listen.
    is_over: Cell<bool>,
}

impl Held {
    /// The keeper's at the other end of `socket`, which has `taken` of another image, or of a daemon
    /// that has died.
    pub fn new(socket: OwnedFd, taken: impl IntoIterator<Item = i32>) -> Rc<Self> {
        Rc::new(Self {
            socket,
            daemon: RefCell::default(),
            files: RefCell::default(),
            taken: RefCell::new(taken.into_iter().collect()),
            named: RefCell::default(),
            state: RefCell::default(),
            wanted: Notify::new(),
            is_over: Cell::new(false),
        })
    }

    /// From now on `daemon` is what is written down; whenever the loop comes to it, too.
    pub async fn serve(self: Rc<Self>, daemon: Weak<dyn Daemon>) {
        self.daemon.replace(Some(daemon));
        Rc::clone(&self).now();
        self.say(Word::Serves, std::process::id(), None);
        loop {
            self.wanted.notified().await;
            Rc::clone(&self).now();
        }
    }

    /// Its end of the socket, for another process image.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The numbers that the keeper has files under, for another process image.
    pub fn taken(&self) -> Vec<i32> {
        self.taken.borrow().iter().copied().collect()
    }

    fn say(&self, word: Word, number: u32, file: Option<BorrowedFd<'_>>) {
        if self.is_over.get() {
            return;
        }
        let bytes = word.write(number);
        let fds = file.map(|fd| [fd.as_raw_fd()]);
        let rights = fds.as_ref().map(|fds| ControlMessage::ScmRights(fds));
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let said = sendmsg::<()>(
            self.socket.as_raw_fd(),
            &[IoSlice::new(&bytes)],
            rights.as_slice(),
            flags,
            None,
        );
        if let Err(e) = said {
            // Nothing is kept rather than something that is not true any more.
            log::error!("keeper: {e}: this shim can't be brought back");
            let _ = kill(getppid(), FORGET);
            self.is_over.set(true);
        }
    }

    /// The state as it is now; `None` if there is nothing that could go on without this process.
    fn describe(self: &Rc<Self>) -> Option<Vec<u8>> {
        let daemon = self.daemon.borrow().as_ref()?.upgrade()?;
        let mut kept = Kept::by(Rc::clone(self) as Rc<dyn Keeper>);
        match daemon.record(&mut kept) {
            Ok(Some(engine)) => {
                let mut handover = Handover::new(engine, Vec::new());
                handover.kept = Some(self.taken());
                handover.write().ok()
            }
            Ok(None) => None,
            Err(e) => {
                log::debug!("nothing is kept: {e}");
                None
            }
        }
    }

    fn send_state(&self, state: &[u8]) -> io::Result<()> {
        let file = memfd_create("state", MFdFlags::MFD_CLOEXEC)?;
        let mut file = File::from(file);
        file.write_all(state)?;
        self.say(Word::State, 0, Some(file.as_fd()));
        Ok(())
    }

    /// What the state does not name any more is closed.
    fn close_others(&self) {
        let named = self.named.borrow();
        let mut taken = self.taken.borrow_mut();
        let others: Vec<i32> = taken.difference(&named).copied().collect();
        for number in others {
            taken.remove(&number);
            self.say(Word::Close, number.cast_unsigned(), None);
        }
        let mut files = self.files.borrow_mut();
        files.retain(|_, (_, number)| named.contains(number));
    }
}

impl Recorder for Held {
    fn now(self: Rc<Self>) {
        if self.daemon.borrow().is_none() || self.is_over.get() {
            return;
        }
        self.named.borrow_mut().clear();
        let state = self.describe().unwrap_or_default();
        if state.is_empty() {
            // What was named before that could not be described is of no use.
            self.named.borrow_mut().clear();
        }
        if state != *self.state.borrow() {
            if state.is_empty() {
                self.say(Word::Nothing, 0, None);
            } else if let Err(e) = self.send_state(&state) {
                log::error!("keeper: the state: {e}");
                self.say(Word::Nothing, 0, None);
            }
            self.state.replace(state);
        }
        self.close_others();
    }

    fn soon(&self) {
        self.wanted.notify_one();
    }
}

impl Keeper for Held {
    fn is_record(&self) -> bool {
        true
    }

    fn keep(&self, fd: BorrowedFd<'_>) -> io::Result<i32> {
        let stat = fstat(fd)?;
        let mode = fcntl(fd, FcntlArg::F_GETFL)? & libc::O_ACCMODE;
        let identity = (stat.st_dev, stat.st_ino, mode);
        let raw = fd.as_raw_fd();
        let known = self.files.borrow().get(&raw).copied();
        let number = match known {
            Some((same, number)) if same == identity => number,
            _ => {
                let mut taken = self.taken.borrow_mut();
                let mut free = FIRST;
                while taken.contains(&free) {
                    free += 1;
                }
                taken.insert(free);
                self.say(Word::Keep, free.cast_unsigned(), Some(fd));
                self.files.borrow_mut().insert(raw, (identity, free));
                free
            }
        };
        self.named.borrow_mut().insert(number);
        Ok(number)
    }
}
