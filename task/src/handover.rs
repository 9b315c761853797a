// SPDX-License-Identifier: Apache-2.0
//! What of the engine goes into another process image, when a shim replaces its own binary.
//!
//! Everything is described as plain data; open files are named by the numbers of duplicates that
//! survive execve(2). The description is taken in one synchronous step while no operation runs,
//! so it is whole: the engine that is built from it goes on where this one stopped.

use crate::error::{Error, Result};
use crate::reaper::Reaper;
use crate::state::State;
use crate::stdio::Paths;
use crate::sys;
use nix::fcntl::{FcntlArg, fcntl};
use protos::mux::Link;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

/// Duplicates get numbers from here on: below are the standard streams, and those that the next
/// image finds by number.
const FIRST: i32 = 10;

/// Another process that keeps files open, and that the next image will be a child of; or that goes on
/// itself with what is described.
pub trait Keeper {
    /// Keeps what `fd` is open for, and gives the number under which the next image will have it.
    ///
    /// # Errors
    /// If it can't be reached.
    fn keep(&self, fd: BorrowedFd<'_>) -> io::Result<i32>;

    /// True if what is described goes on in this process meanwhile.
    fn is_record(&self) -> bool;
}

/// The duplicates; dropping them closes them.
#[derive(Default)]
pub struct Kept {
    own: Vec<OwnedFd>,
    keeper: Option<Rc<dyn Keeper>>,
}

impl Kept {
    /// What another process keeps, or has from now on, and this one has no duplicates of.
    pub fn by(keeper: Rc<dyn Keeper>) -> Self {
        Self {
            own: Vec::new(),
            keeper: Some(keeper),
        }
    }

    /// True if what is described goes on here meanwhile: see [`crate::record`].
    pub fn is_record(&self) -> bool {
        self.keeper
            .as_ref()
            .is_some_and(|keeper| keeper.is_record())
    }

    /// Keeps what `fd` is open for, and tells the number under which it survives execve(2).
    ///
    /// # Errors
    /// From fcntl(2): no number is free; or the keeper's.
    pub fn keep(&mut self, fd: impl AsFd) -> io::Result<i32> {
        if let Some(keeper) = &self.keeper {
            return keeper.keep(fd.as_fd());
        }
        let number = fcntl(fd.as_fd(), FcntlArg::F_DUPFD(FIRST))?;
        let fd = sys::adopt(number)?;
        fcntl(&fd, FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))?;
        self.own.push(fd);
        Ok(number)
    }

    /// Leaves what is kept open: from now on it belongs to those that know the numbers.
    pub fn forget(self) {
        for fd in self.own {
            let _ = fd.into_raw_fd();
        }
    }
}

/// What streams and processes are taken over with.
pub struct Means<'a> {
    pub reaper: &'a Reaper,
    /// The link that streams are on, if they may be on one.
    pub link: Option<&'a Rc<Link>>,
}

/// What a runtime hands over, as JSON.
///
/// # Errors
/// If there is no JSON for it.
pub fn written<T: Serialize>(moved: &T) -> io::Result<Value> {
    Ok(serde_json::to_value(moved)?)
}

/// What a runtime handed over.
///
/// # Errors
/// If this build does not understand it.
pub fn read<T: DeserializeOwned>(moved: &Value) -> Result<T> {
    let read = T::deserialize(moved);
    read.map_err(|e| Error::InvalidArgument(format!("what the runtime handed over: {e}")))
}

/// The engine.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Engine {
    pub containers: Vec<Container>,
    pub events: Vec<Event>,
    /// What the runtime has beside its containers.
    #[serde(default)]
    pub runtime: Value,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Event {
    /// Seconds since 1970, and nanoseconds.
    pub at: (i64, i32),
    pub type_url: String,
    pub value: Vec<u8>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Container {
    pub id: String,
    pub bundle: PathBuf,
    pub init: Process,
    pub execs: BTreeMap<String, Exec>,
    pub init_exited: bool,
    /// Init's exit, while it waits for execs.
    #[serde(rename = "untold")]
    pub unpublished: Option<Exit>,
    /// What the runtime keeps of it.
    #[serde(flatten)]
    pub own: Map<String, Value>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Process {
    pub paths: Paths,
    pub state: State,
    pub pid: u32,
    pub exit: Option<Exit>,
    pub never: bool,
    /// CloseIO was called, perhaps before there was a stdin to close.
    #[serde(default)]
    pub stdin_closed: bool,
    pub io: Option<Io>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Exec {
    pub process: Process,
    pub spec: Vec<u8>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Cgroup {
    /// Each controller's directory.
    V1(Vec<(String, PathBuf)>),
    V2 {
        root: PathBuf,
        dir: PathBuf,
    },
}

/// Status, seconds, nanoseconds.
pub type Exit = (u32, i64, i32);

#[derive(Debug, Serialize, Deserialize)]
pub struct Io {
    pub stdin: Option<i32>,
    pub input: Vec<Copy>,
    pub output: Vec<Copy>,
    pub console: Option<Console>,
    /// The logger's pid.
    pub logger: Option<u32>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Console {
    pub master: i32,
    pub peer: Option<i32>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Copy {
    pub source: Source,
    pub sink: Sink,
    /// Read and not yet written.
    pub pending: Vec<u8>,
    pub broken: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Source {
    Pipe(i32),
    Console,
    /// By its number on the link.
    Stream(u32),
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Sink {
    Pipe {
        writer: i32,
        reader: Option<i32>,
    },
    Console,
    File(i32),
    /// By its number on the link.
    Stream(u32),
}
