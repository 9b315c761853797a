// SPDX-License-Identifier: Apache-2.0
//! What makes a container's processes: the seam between the engine, which knows the contract, and
//! who runs them.
//!
//! The engine decides what may happen to a container, in which order its clients hear of it, and
//! that each exit is told once. A runtime makes processes, signals and removes them, and hands each
//! exit to [`Engine::exited`]. [`Oci`](crate::oci::Oci) does it by the command line of runc or crun;
//! in the shim for VMs a guest does it, which is asked over a link.

use crate::bundle::Bundle;
use crate::cgroup::Room;
use crate::container::Container;
use crate::error::Result;
use crate::handover::Kept;
use crate::process::Process;
use crate::process::exec::Exec;
use crate::reaper::Reaper;
use crate::service::{Engine, Service};
use crate::stdio::Io;
use protos::mux::Link;
use protos::runc::CheckpointOptions;
use protos::task::CreateTaskRequest;
use protos::task_types::ProcessInfo;
use protos::ttrpc::Context;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Each error is what the call's client is told; none of these is called for a container in a state
/// that forbids it.
pub trait Runtime: Sized + 'static {
    /// What it keeps of one container.
    type Container: 'static;
    /// As long as it lives, exits are kept of processes that the engine has not heard of yet.
    type Starting;

    /// Does what no call asks for, such as reaping, for as long as that is possible.
    fn run(engine: &Rc<Engine<Self>>) -> impl Future<Output = io::Error>;

    /// Leaves nothing that would outlive this process and is not meant to.
    fn end(_: &Rc<Engine<Self>>) -> impl Future<Output = ()> {
        std::future::ready(())
    }

    /// What it hands over beside its containers, and of each of them.
    type Moved: Serialize + DeserializeOwned;
    type MovedContainer: Serialize + DeserializeOwned;

    /// Waits until nothing goes on with it but calls, and what those that wait for the engine know of.
    fn settled(&self) -> impl Future<Output = ()> {
        std::future::ready(())
    }

    fn is_settled(&self) -> bool {
        true
    }

    /// What is served beside the Task API, by full names.
    fn services(_: &Rc<Service<Self>>) -> Vec<(&'static str, Rc<dyn protos::ttrpc::Service>)> {
        Vec::new()
    }

    /// Something is there that containers may come into yet: while it is, a Shutdown of the Task API
    /// ends nothing.
    fn is_held(&self) -> bool {
        false
    }

    /// Describes what it has beside its containers for another process image.
    ///
    /// # Errors
    /// If that can't be now, or no fd is free.
    fn hand_over(engine: &Engine<Self>, kept: &mut Kept) -> io::Result<Self::Moved>;

    /// The same of what it keeps of a container.
    fn hand_over_container(container: &Container<Self>) -> Self::MovedContainer;

    /// Goes on with what it had in another process image; its containers follow.
    ///
    /// # Errors
    /// If an fd is not what it is said to be.
    fn take_over(engine: &Rc<Engine<Self>>, moved: Self::Moved) -> Result<()>;

    /// What it keeps of a container, as before.
    ///
    /// # Errors
    /// If that can't be.
    fn take_over_container(
        engine: &Rc<Engine<Self>>,
        id: &str,
        bundle: &Bundle,
        moved: &Self::MovedContainer,
    ) -> Result<Self::Container>;

    /// A container that was taken over is whole; its processes are not tracked yet.
    fn goes_on(_: &Rc<Engine<Self>>, _: &Rc<Container<Self>>, _: &Self::MovedContainer) {}

    /// What it tells of itself to who looks at the engine, an object; it waits for nothing.
    fn look(_: &Engine<Self>) -> Value {
        Value::Null
    }

    fn reaper(&self) -> &Reaper;

    /// The link that streams of its processes are on, if they may be on one.
    fn link(_: &Engine<Self>) -> Option<Rc<Link>> {
        None
    }

    /// Makes a container whose init waits for [`Runtime::start`], or is made by it.
    ///
    /// # Errors
    /// The contract's (T11); nothing is left of the container.
    fn create(
        engine: &Rc<Engine<Self>>,
        request: &CreateTaskRequest,
        context: &Context,
    ) -> impl Future<Output = Result<Rc<Container<Self>>>>;

    /// Lets init run.
    ///
    /// # Errors
    /// Code Unknown with the reason.
    fn start(
        engine: &Rc<Engine<Self>>,
        container: &Rc<Container<Self>>,
        context: &Context,
    ) -> impl Future<Output = Result<()>>;

    /// Makes the process of an exec; its pid, as clients see it, and its streams.
    ///
    /// # Errors
    /// Code Unknown with the reason; no process of it is left that is known.
    fn exec(
        engine: &Rc<Engine<Self>>,
        container: &Rc<Container<Self>>,
        exec: &Exec,
        context: &Context,
    ) -> impl Future<Output = Result<(u32, Io)>>;

    /// An exec has failed, and none is being started: what no exec owns may go (T23).
    fn kill_strays(engine: &Rc<Engine<Self>>, container: &Container<Self>);

    /// Sends `signal` to a process that has not ended, or with `all`, if it is init, to every process
    /// of the container (T50).
    ///
    /// # Errors
    /// NotFound if it has ended meanwhile; else code Unknown with the reason.
    fn kill(
        engine: &Rc<Engine<Self>>,
        container: &Rc<Container<Self>>,
        process: &Process,
        signal: u32,
        all: bool,
        context: &Context,
    ) -> impl Future<Output = Result<()>>;

    /// Freezes every process of the container (T71).
    ///
    /// # Errors
    /// Code Unknown with the reason.
    fn pause(
        container: &Rc<Container<Self>>,
        context: &Context,
    ) -> impl Future<Output = Result<()>>;

    /// Lets them go on (T71).
    ///
    /// # Errors
    /// Code Unknown with the reason.
    fn resume(
        container: &Rc<Container<Self>>,
        context: &Context,
    ) -> impl Future<Output = Result<()>>;

    /// Sets limits (T74): an OCI LinuxResources as JSON, which is an object.
    ///
    /// # Errors
    /// Code Unknown with the reason.
    fn update(
        container: &Rc<Container<Self>>,
        resources: Value,
        context: &Context,
    ) -> impl Future<Output = Result<()>>;

    /// Writes a checkpoint into the directory `image` (T73).
    ///
    /// # Errors
    /// Code Unknown with the reason.
    fn checkpoint(
        engine: &Rc<Engine<Self>>,
        container: &Rc<Container<Self>>,
        image: &Path,
        options: &CheckpointOptions,
        context: &Context,
    ) -> impl Future<Output = Result<()>>;

    /// Removes the container, whose init it kills if that waits to be started (T60).
    ///
    /// # Errors
    /// Code Unknown with the reason; then the container is still there.
    fn remove(
        engine: &Rc<Engine<Self>>,
        container: &Rc<Container<Self>>,
        context: &Context,
    ) -> impl Future<Output = Result<()>>;

    /// Takes away what the host has for it, such as mounts, once it is removed and its exit is told
    /// (T61).
    ///
    /// # Errors
    /// Code Unknown with the reason; then the container is still there.
    fn unmount(
        engine: &Rc<Engine<Self>>,
        container: &Rc<Container<Self>>,
    ) -> impl Future<Output = Result<()>>;

    /// An exec that does not run is deleted.
    fn forget(_: &Rc<Engine<Self>>, _: &Rc<Container<Self>>, _: &Process) {}

    /// Sets the size of a process's terminal, in characters: width and height (T77).
    ///
    /// # Errors
    /// InvalidArgument for a size that none can have, else code Unknown.
    fn resize(
        container: &Rc<Container<Self>>,
        process: &Process,
        size: (u32, u32),
        context: &Context,
    ) -> impl Future<Output = Result<()>>;

    /// The processes of the container as clients see them, execs with their ids (T70).
    fn pids(container: &Container<Self>) -> Vec<ProcessInfo>;

    /// The container's figures (T79).
    ///
    /// # Errors
    /// NotFound if there are none, else code Unknown.
    fn stats(
        container: &Rc<Container<Self>>,
        context: &Context,
    ) -> impl Future<Output = Result<protos::Any>>;

    /// Something is being made; see [`Runtime::Starting`].
    fn starting(&self) -> Self::Starting;

    /// The engine knows `process` from now on: its exit goes to [`Engine::exited`], at once if it has
    /// come already.
    fn track(engine: &Rc<Engine<Self>>, container: &Rc<Container<Self>>, process: &Rc<Process>);

    /// Kills what a dead init has left (X4); `None` if nothing can be left.
    fn kill_left(container: &Rc<Container<Self>>) -> Option<impl Future<Output = ()> + 'static>;

    /// Init has ended: what is frozen goes on, for it could not be removed (T72).
    fn thaw(container: &Container<Self>);

    /// Ends the watch for OOM kills; true if one was not told yet (X6).
    fn stop_oom_watch(engine: &Engine<Self>, container: &Container<Self>) -> bool;

    /// Where the container's memory is counted, and what it has used of it, if that is here.
    fn room(_: &Container<Self>) -> Option<(PathBuf, Room)> {
        None
    }
}
