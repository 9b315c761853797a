// SPDX-License-Identifier: Apache-2.0
//! `containerd-shim-vm-v2 check`: whether this host can run containers in VMs, with what, and how
//! long each step of one takes.
//!
//! The container is made as containerd would have it made; its program is the shim itself, which
//! is static, says its version, and waits for its end. An exec in it says so, too.

use crate::accel;
use crate::config::{Accel, Config};
use crate::image::Image;
use crate::runtime::{self, Service};
use crate::vm::Vm;
use protos::Any;
use protos::api::task::Task;
use protos::guest::Hello;
use protos::task as api;
use protos::ttrpc::Context;
use serde_json::{Value, json};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};
use task::reaper::Reaper;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

const ID: &str = "check";
const EXEC: &str = "exec";
/// What the program of the container is called with; see [`wait`].
pub const WAITS: &str = "waits";
/// How a process ends that was killed.
const KILLED: u32 = 137;

/// Runs a container and an exec in a VM, ends all, and tells about it.
///
/// # Errors
/// What is missing, or does not work.
pub fn check() -> Result<String, String> {
    task::inherited::keep_from_children().map_err(|e| format!("inherited files: {e}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(Default::default());
    let runtime = runtime.map_err(|e| format!("set up the event loop: {e}"))?;
    let bundle = PathBuf::from(format!("/run/dunnage/check-{}", std::process::id()));
    let told = runtime.block_on(async {
        let reaper = Reaper::new().map_err(|e| e.to_string())?;
        tokio::select! {
            told = run(&bundle, &reaper) => told,
            e = reaper.run(&|_, _| {}) => Err(e.to_string()),
        }
    });
    let _ = fs::remove_dir_all(&bundle);
    told
}

/// A bundle whose container says this program's version.
pub fn make(bundle: &Path) -> io::Result<()> {
    crate::place::make_run()?;
    let root = bundle.join("rootfs");
    for dir in ["dev", "proc", "sys"] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::copy(std::env::current_exe()?, root.join("shim"))?;
    let namespaces = ["pid", "ipc", "uts", "mount"].map(|name| json!({ "type": name }));
    let spec = json!({
        "ociVersion": "1.0.2",
        "process": process(WAITS),
        "root": {"path": "rootfs"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": namespaces},
    });
    fs::write(bundle.join("config.json"), spec.to_string())?;
    let mode = nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR;
    Ok(nix::unistd::mkfifo(&bundle.join("out"), mode)?)
}

fn process(word: &str) -> Value {
    json!({"args": ["/shim", word], "cwd": "/", "user": {"uid": 0, "gid": 0}})
}

/// What the container does: it says its version, and waits until it is killed.
pub fn wait() -> ! {
    let _ = writeln!(io::stdout(), "{}", env!("CARGO_PKG_VERSION"));
    loop {
        nix::unistd::pause();
    }
}

async fn run(bundle: &Path, reaper: &Rc<Reaper>) -> Result<String, String> {
    make(bundle).map_err(|e| format!("{}: {e}", bundle.display()))?;
    let config = Config::load()?;
    let image = Image::find(&config)?;
    let chosen = accel::choose(&config, &image, reaper).await;
    let out = bundle.join("out");
    let mut output = pipe::OpenOptions::new()
        .open_receiver(&out)
        .map_err(|e| format!("{}: {e}", out.display()))?;
    // Another check may run: each has a VM, and a place for it, of its own.
    let namespace = format!("check-{}", std::process::id());
    let service = runtime::service(namespace, Rc::clone(reaper), Rc::default());
    let ran = steps(&service, bundle, &out, &mut output).await;
    service.end().await;
    let (steps, hello, from_pool) = ran?;
    let (accel, why) = match chosen.accel {
        Accel::Kvm => ("kvm", chosen.why),
        Accel::Tcg | Accel::Auto => ("tcg", format!("which is slow: {}", chosen.why)),
    };
    let mut lines = vec![
        format!("accelerator   {accel}, {why}"),
        format!(
            "machine       {} MiB, {} processors{}",
            config.memory,
            config.vcpus,
            if from_pool { ", from the pool" } else { "" }
        ),
        format!(
            "kernel        {} ({})",
            hello.kernel,
            image.kernel.display()
        ),
        format!("agent         {}", hello.agent),
    ];
    for (step, took, what) in steps {
        lines.push(format!("{step:13} {:5} ms  {what}", took.as_millis()));
    }
    lines.push(String::new());
    Ok(lines.join("\n"))
}

type Steps = Vec<(&'static str, Duration, &'static str)>;

/// How long each step of a container's life takes, from Create to Delete; what the guest is, and whether
/// its VM was the pool's.
pub async fn steps(
    service: &Rc<Service>,
    bundle: &Path,
    out: &Path,
    output: &mut pipe::Receiver,
) -> Result<(Steps, Hello, bool), String> {
    let context = Context::background();
    let failed = |method| move |e: task::Error| format!("{method}: {e}");
    let create = api::CreateTaskRequest {
        id: ID.into(),
        bundle: bundle.to_string_lossy().into_owned(),
        stdout: out.to_string_lossy().into_owned(),
        ..Default::default()
    };
    let begin = Instant::now();
    let asked = service.create(create, &context);
    asked.await.map_err(failed("Create"))?;
    let created = begin.elapsed();
    let vm = service.engine().runtime.vm.borrow().clone();
    let vm = vm.ok_or("the VM is gone")?;
    let start = api::StartRequest {
        id: ID.into(),
        ..Default::default()
    };
    let asked = service.start(start, &context);
    asked.await.map_err(failed("Start"))?;
    first_output(output).await?;
    let all = begin.elapsed();
    exec(service, out, output, &context).await?;
    let execed = begin.elapsed();
    end(service, &context).await?;
    let ended = begin.elapsed();
    let hello = vm.hello.clone();
    let from_pool = vm.is_from_pool();
    let (boot, create) = match from_pool {
        true => (Vec::new(), created),
        false => (beginning(&vm), created.saturating_sub(vm.heard_after)),
    };
    let container = [
        ("create", create, "files, network, and the container"),
        ("first output", all.saturating_sub(created), "since Start"),
        ("all", all, "from Create to the first output"),
        (
            "exec",
            execed.saturating_sub(all),
            "from Exec to its deletion",
        ),
        (
            "end",
            ended.saturating_sub(execed),
            "of the container and of the VM",
        ),
    ];
    let steps = boot.into_iter().chain(container).collect();
    Ok((steps, hello, from_pool))
}

/// How the VM came to be.
fn beginning(vm: &Vm) -> Steps {
    let heard_after = vm.heard_after;
    if vm.restored {
        let what = "of a template, to its agent's answer";
        return vec![("restore", heard_after, what)];
    }
    let in_guest = Duration::from_millis(vm.hello.uptime_ms);
    let kernel = Duration::from_millis(vm.hello.started_ms);
    let qemu = heard_after.saturating_sub(in_guest);
    let agent = in_guest.saturating_sub(kernel);
    vec![
        ("qemu", qemu, "from its start to the kernel's"),
        ("kernel", kernel, "to the start of the agent"),
        ("agent", agent, "to its hello"),
    ]
}

/// Waits until the container says what it should.
async fn first_output(output: &mut pipe::Receiver) -> Result<(), String> {
    let mut first = [0; 512];
    let read = tokio::time::timeout(OUTPUT, output.read(&mut first)).await;
    let read = read.map_err(|_| format!("the container said nothing within {OUTPUT:?}"))?;
    let n = read.map_err(|e| format!("the container's output: {e}"))?;
    let said = String::from_utf8_lossy(&first[..n]);
    match said.contains(env!("CARGO_PKG_VERSION")) {
        true => Ok(()),
        false => Err(format!("the container said {said:?}")),
    }
}

/// Runs the program once more in the container.
async fn exec(
    service: &Rc<Service>,
    out: &Path,
    output: &mut pipe::Receiver,
    context: &Context,
) -> Result<(), String> {
    let failed = |e: task::Error| format!("{EXEC}: {e}");
    let exec = api::ExecProcessRequest {
        id: ID.into(),
        exec_id: EXEC.into(),
        stdout: out.to_string_lossy().into_owned(),
        spec: Some(Any {
            type_url: String::new(),
            value: process("-v").to_string().into_bytes(),
        }),
        ..Default::default()
    };
    service.exec(exec, context).await.map_err(failed)?;
    let start = api::StartRequest {
        id: ID.into(),
        exec_id: EXEC.into(),
    };
    service.start(start, context).await.map_err(failed)?;
    first_output(output).await?;
    ended(service, EXEC, 0, context).await
}

/// Kills the container, waits for its end, and deletes it.
async fn end(service: &Rc<Service>, context: &Context) -> Result<(), String> {
    let kill = api::KillRequest {
        id: ID.into(),
        signal: KILLED - 128,
        ..Default::default()
    };
    let killed = service.kill(kill, context).await;
    killed.map_err(|e| format!("Kill: {e}"))?;
    ended(service, "", KILLED, context).await
}

/// Waits until a process ends, as it should, and deletes it.
async fn ended(
    service: &Rc<Service>,
    exec: &str,
    status: u32,
    context: &Context,
) -> Result<(), String> {
    let what = if exec.is_empty() { "container" } else { exec };
    let (id, exec_id) = (ID.to_owned(), exec.to_owned());
    let wait = api::WaitRequest { id, exec_id };
    let delete = api::DeleteRequest {
        id: ID.into(),
        exec_id: exec.into(),
    };
    let ended = tokio::time::timeout(OUTPUT, service.wait(wait, context)).await;
    let ended = ended.map_err(|_| format!("the {what} did not end within {OUTPUT:?}"))?;
    match ended {
        Ok(exit) if exit.exit_status == status => {}
        exit => return Err(format!("the {what} did not end as it should: {exit:?}")),
    }
    let deleted = service.delete(delete, context).await;
    deleted.map(drop).map_err(|e| format!("Delete: {e}"))
}

/// How long a program that does nothing may take to say so, and to end.
const OUTPUT: Duration = Duration::from_secs(30);
