// SPDX-License-Identifier: Apache-2.0
//! Starting a process: its streams, the network that came after its VM, and hooks.

use crate::calls::{alive, ask, while_it_lives};
use crate::container::{GuestContainer, GuestProcess};
use crate::hooks::{self, About, Hook};
use crate::runtime::{Engine, unknown};
use protos::Any;
use protos::task::{ExecProcessRequest, StartRequest};
use protos::ttrpc::Context;
use std::rc::Rc;
use task::Result;
use task::process::exec::Exec;
use task::stdio::{self, Io, Of, Paths};

const FAILED: &str = "OCI runtime start failed";

/// Lets init run.
///
/// # Errors
/// The network's, or the guest's.
pub async fn init(engine: &Engine, container: &GuestContainer, context: &Context) -> Result<()> {
    alive(container)?;
    let joined = async {
        let joined = container.vm.join_network(context).await;
        joined.map_err(|why| unknown(&format!("{FAILED}: network: {why}")))
    };
    while_it_lives(container, "Configure", joined).await?;
    start(container, &container.init, context).await?;
    let hooks = &container.hooks.poststart;
    let ran = run_hooks(engine, container, hooks, "running", context).await;
    if let Err(why) = ran {
        log::warn!("{}: poststart: {why}", container.id);
    }
    Ok(())
}

/// Has the guest make the process of an exec; the VM's pid, and its streams.
///
/// # Errors
/// That a stream can't be opened, or the guest's.
pub async fn exec(
    engine: &Engine,
    container: &GuestContainer,
    exec: &Exec,
    context: &Context,
) -> Result<(u32, Io)> {
    alive(container)?;
    let (vm, paths) = (&container.vm, &exec.process.paths);
    let (io, names) = connect(engine, container, exec.id(), paths, context).await?;
    let number = container.asked.get() + 1;
    container.asked.set(number);
    let process = GuestProcess::new(exec.id().to_owned(), format!("e{number}"));
    let request = ExecProcessRequest {
        id: container.name.clone(),
        exec_id: process.name.clone(),
        terminal: paths.terminal,
        stdin: names.stdin,
        stdout: names.stdout,
        stderr: names.stderr,
        spec: Some(Any {
            type_url: String::new(),
            value: exec.take_spec(),
        }),
    };
    // Before the guest tells of it. If it does not come to be, it is there until it is deleted: of a
    // caller that gave up nobody knows what the guest does.
    let known = (process.name.clone(), Rc::clone(&process));
    container.execs.borrow_mut().extend([known]);
    ask(container, &container.init, &request, context).await?;
    // It is told before the answer.
    let added = process.until(|process| process.added.get());
    let what = format!("the new exec {} of {}", process.exec_id, container.id);
    vm.in_time(&what, vm.patience, added).await;
    start(container, &process, context).await?;
    Ok((vm.pid(), io))
}

async fn start(
    container: &GuestContainer,
    process: &Rc<GuestProcess>,
    context: &Context,
) -> Result<()> {
    let request = StartRequest {
        id: container.name.clone(),
        exec_id: process.name.clone(),
    };
    ask(container, process, &request, context).await?;
    // It is told before the answer.
    let vm = &container.vm;
    let runs = process.until(|process| process.runs.get());
    let what = format!("the start of {}", container.name_of(process));
    vm.in_time(&what, vm.patience, runs).await;
    alive(container)
}

/// Connects what a process's client named to streams of the link, and names these.
///
/// # Errors
/// Code Unknown, naming the path or scheme.
pub async fn connect(
    engine: &Engine,
    container: &GuestContainer,
    name: &str,
    paths: &Paths,
    context: &Context,
) -> Result<(Io, Paths)> {
    let of = Of {
        namespace: &engine.namespace,
        process: name,
        bundle: &container.bundle,
        io_uid: container.io_uid,
        io_gid: container.io_gid,
    };
    let (link, reaper) = (container.vm.link(), &engine.runtime.reaper);
    stdio::connect(paths, link, of, reaper, context).await
}

/// Runs some of a container's hooks, while its VM is there.
///
/// # Errors
/// What one of them says.
pub async fn run_hooks(
    engine: &Engine,
    container: &GuestContainer,
    hooks: &[Hook],
    status: &str,
    context: &Context,
) -> std::result::Result<(), String> {
    let about = About {
        id: &container.id,
        bundle: container.bundle.path(),
        pid: container.vm.pid(),
        status,
    };
    hooks::run(hooks, &about, &engine.runtime.reaper, context).await
}
