// SPDX-License-Identifier: Apache-2.0
//! A virtual machine, whoever runs it.

use crate::config::Accel;
use crate::image::Image;
use crate::network::Tap;
use crate::program::Program;
use crate::users::User;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use task::reaper::{ExitStatus, Reaper};

/// What a machine is made of.
pub struct Plan {
    /// What an operator sees in the list of processes.
    pub name: String,
    /// A directory of the machine's own, for sockets.
    pub dir: PathBuf,
    pub image: Image,
    /// Never [`Accel::Auto`].
    pub accel: Accel,
    /// MiB.
    pub memory: u64,
    pub vcpus: u32,
    /// The program that runs it.
    pub program: Program,
    /// A socket connected to the file server; without one there are no files of the host's.
    pub files: Option<OwnedFd>,
    pub taps: Vec<Tap>,
    /// The network namespace that the machine's process is to be in, for whoever looks for that of
    /// the container in its `/proc/PID/ns/net`; without one it has an empty one.
    pub netns: Option<OwnedFd>,
    /// Where it is asked to save itself, if it may be.
    pub monitor: Option<OwnedFd>,
    pub begins: Begins,
}

/// How a machine begins.
#[derive(Default)]
pub enum Begins {
    #[default]
    Booted,
    /// It is booted for others to be made of it: it has neither files nor networks but places for them;
    /// its monitor is where it is asked to save itself to this file, which is open for writing.
    Template(OwnedFd),
    /// It goes on as one that was saved to this file, which is open for reading.
    Restored(OwnedFd),
    /// It waits until it is asked to go on as one that was saved to this file, which had ACPI, or not.
    Saved { state: OwnedFd, acpi: bool },
}

/// How the guest finds its share.
pub const SHARE_TAG: &str = "share";

/// A virtual machine's life, in this order: `prepare` once, `boot` once; from then on `runs` and
/// `wait`, as often as anybody wants to know, and `kill`, at any time.
pub trait Machine: Sized {
    /// Sets up what the machine's process, which will be `user`'s, will find; nothing runs yet.
    ///
    /// # Errors
    /// What could not be set up.
    fn prepare(plan: Plan, user: User) -> Result<Self, String>;

    /// Makes the machine's process, and does not wait until that executes its program. The stream is
    /// the guest's serial port "agent": what is written there waits until the guest reads it.
    ///
    /// # Errors
    /// If it can't be made.
    async fn boot(&mut self, reaper: &Reaper) -> Result<UnixStream, String>;

    /// Waits until the machine's process executes its program, or has ended.
    ///
    /// # Errors
    /// If it can't.
    async fn runs(&mut self) -> Result<(), String>;

    /// The machine's process, once it is made.
    fn pid(&self) -> u32;

    /// Waits until the machine's process has ended.
    async fn wait(&self) -> ExitStatus;

    /// Ends the machine's process now; `wait` tells when it is done.
    fn kill(&self);

    /// Waits, once the machine's process has ended, until all that it said is known.
    async fn said_all(&self);

    /// The last lines of what the guest and the machine's process said, for whoever asks why.
    fn last_words(&self) -> String;
}
