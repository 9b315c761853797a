// SPDX-License-Identifier: Apache-2.0
//! A shim made of containerd's own Rust crates, which are nobody's here: `containerd-shim` takes the
//! command line, serves ttrpc, waits for children and publishes events.
//!
//! Only the Task service is this file's and its sibling's. A container of it is a process in the root
//! filesystem, without any isolation: enough for a pid, an exit status, output and events.

mod process;

use containerd_shim as shim;
use process::Process;
use shim::api;
use shim::event::Event;
use shim::monitor::{Subject, Topic, monitor_subscribe};
use shim::mount::{mount_rootfs, umount_recursive};
use shim::protos::protobuf::MessageField;
use shim::protos::{events::task as events, ttrpc};
use shim::publisher::RemotePublisher;
use shim::util::{
    convert_to_any, read_address, read_spec_from_file, timestamp, write_address, write_str_to_path,
};
use shim::{Context, Error, ExitSignal, Flags, StartOpts, TtrpcContext, TtrpcResult};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Where a container's first process is noted, for `delete`.
const PID_FILE: &str = "stranger.pid";
/// How long who listens to events may take.
const PUBLISH: Duration = Duration::from_secs(10);

fn main() {
    shim::run::<Stranger>("io.containerd.stranger.v1", None);
}

/// Its one container.
#[derive(Default)]
struct Task {
    id: String,
    bundle: String,
    /// The root directory of its processes.
    root: PathBuf,
    /// Of init, whose exec id is empty, and of execs.
    processes: BTreeMap<String, Process>,
}

impl Task {
    fn process(&mut self, id: &str, exec: &str) -> TtrpcResult<&mut Process> {
        let found = self.processes.get_mut(exec).filter(|_| self.id == id);
        found.ok_or_else(|| not_found(id, exec))
    }

    /// Where the mounts of its root filesystem are made.
    fn rootfs(&self) -> String {
        format!("{}/rootfs", self.bundle)
    }
}

/// What its threads share.
struct State {
    task: Mutex<Task>,
    exited: Condvar,
    publisher: RemotePublisher,
    namespace: String,
}

impl State {
    /// What was changed by a thread that panicked is still what there is.
    fn task(&self) -> MutexGuard<'_, Task> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// While the task is locked: so they come in the order in which things happened.
    fn publish(&self, event: impl Event) {
        let context = Context {
            timeout_nano: PUBLISH.as_nanos() as i64,
            ..Default::default()
        };
        let (topic, publisher) = (event.topic(), &self.publisher);
        let sent = publisher.publish(context, &topic, &self.namespace, Box::new(event));
        sent.unwrap_or_else(|e| log::warn!("{topic}: {e}"));
    }

    /// Keeps the status of a child that has ended, and tells everyone.
    fn exit(&self, pid: u32, status: u32) {
        let mut task = self.task();
        let id = task.id.clone();
        let mut all = task.processes.iter_mut();
        let Some((exec, process)) = all.find(|(_, it)| it.pid == pid && it.exit.is_none()) else {
            return;
        };
        let at = timestamp().unwrap_or_default();
        process.exit = Some((status, at.clone()));
        self.publish(events::TaskExit {
            id: if exec.is_empty() { &id } else { exec }.clone(),
            container_id: id.clone(),
            pid,
            exit_status: status,
            exited_at: MessageField::some(at),
            ..Default::default()
        });
        self.exited.notify_all();
    }
}

#[derive(Clone)]
struct Stranger {
    namespace: String,
    id: String,
    exit: Arc<ExitSignal>,
}

impl shim::Shim for Stranger {
    type T = Service;

    fn new(_: &str, flags: &Flags, _: &mut shim::Config) -> Self {
        Self {
            namespace: flags.namespace.clone(),
            id: flags.id.clone(),
            exit: Arc::default(),
        }
    }

    fn start_shim(&mut self, opts: StartOpts) -> shim::Result<String> {
        let (_, address) = shim::spawn(opts, &self.id, Vec::new())?;
        write_address(&address)?;
        Ok(address)
    }

    fn delete_shim(&mut self) -> shim::Result<api::DeleteResponse> {
        let pid = std::fs::read_to_string(PID_FILE).ok();
        let pid = pid.and_then(|pid| pid.parse().ok()).unwrap_or_default();
        process::kill(pid, libc::SIGKILL as u32).ok();
        let here = std::env::current_dir().unwrap_or_default().join("rootfs");
        umount_recursive(here.to_str(), libc::MNT_DETACH)?;
        // A shim that was killed could not do it.
        let address = read_address().unwrap_or_default();
        std::fs::remove_file(address.trim_start_matches("unix://")).ok();
        Ok(api::DeleteResponse {
            pid,
            exit_status: 128 + libc::SIGKILL as u32,
            exited_at: MessageField::some(timestamp()?),
            ..Default::default()
        })
    }

    fn wait(&mut self) {
        self.exit.wait();
    }

    fn create_task_service(&self, publisher: RemotePublisher) -> Service {
        let state = Arc::new(State {
            task: Mutex::default(),
            exited: Condvar::new(),
            publisher,
            namespace: self.namespace.clone(),
        });
        let children = monitor_subscribe(Topic::Pid).expect("the monitor of children");
        let reaped = Arc::clone(&state);
        std::thread::spawn(move || {
            for child in children.rx.iter() {
                if let Subject::Pid(pid) = child.subject {
                    reaped.exit(pid as u32, child.exit_code as u32);
                }
            }
        });
        let exit = Arc::clone(&self.exit);
        Service { state, exit }
    }
}

fn refusal(code: ttrpc::Code, text: impl ToString) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, text))
}

fn not_found(id: &str, exec: &str) -> ttrpc::Error {
    Error::NotFoundError(format!("process {id}/{exec}")).into()
}

fn other(error: impl std::fmt::Display) -> ttrpc::Error {
    Error::Other(error.to_string()).into()
}

struct Service {
    state: Arc<State>,
    exit: Arc<ExitSignal>,
}

impl shim::Task for Service {
    fn connect(
        &self,
        _: &TtrpcContext,
        _: api::ConnectRequest,
    ) -> TtrpcResult<api::ConnectResponse> {
        let task = self.state.task();
        Ok(api::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: task.processes.get("").map_or(0, |init| init.pid),
            version: "stranger".into(),
            ..Default::default()
        })
    }

    fn create(
        &self,
        _: &TtrpcContext,
        req: api::CreateTaskRequest,
    ) -> TtrpcResult<api::CreateTaskResponse> {
        let mut task = self.state.task();
        if !task.processes.is_empty() {
            return Err(refusal(ttrpc::Code::ALREADY_EXISTS, &task.id));
        }
        task.id = req.id.clone();
        task.bundle = req.bundle.clone();
        for mount in &req.rootfs {
            let (kind, source) = (Some(mount.type_()), Some(mount.source()));
            mount_rootfs(kind, source, mount.options(), task.rootfs())?;
        }
        let spec = read_spec_from_file(&req.bundle)?;
        let root = spec.root().as_ref().ok_or_else(|| other("no root"))?;
        task.root = Path::new(&req.bundle).join(root.path());
        let process = spec.process().as_ref().ok_or_else(|| other("no process"))?;
        let mut init = Process::new(process, req.stdin(), req.stdout(), req.stderr());
        init.create(&task.root).map_err(other)?;
        let pid = init.pid;
        write_str_to_path(&Path::new(&task.bundle).join(PID_FILE), &pid.to_string())?;
        task.processes.insert(String::new(), init);
        self.state.publish(events::TaskCreate {
            container_id: req.id,
            bundle: req.bundle,
            rootfs: req.rootfs,
            pid,
            ..Default::default()
        });
        Ok(api::CreateTaskResponse {
            pid,
            ..Default::default()
        })
    }

    fn start(&self, _: &TtrpcContext, req: api::StartRequest) -> TtrpcResult<api::StartResponse> {
        let mut task = self.state.task();
        let root = task.root.clone();
        let process = task.process(&req.id, &req.exec_id)?;
        if process.pid == 0 {
            process.create(&root).map_err(other)?;
        }
        process.start().map_err(other)?;
        let (container_id, pid) = (req.id, process.pid);
        match req.exec_id {
            init if init.is_empty() => self.state.publish(events::TaskStart {
                container_id,
                pid,
                ..Default::default()
            }),
            exec_id => self.state.publish(events::TaskExecStarted {
                container_id,
                exec_id,
                pid,
                ..Default::default()
            }),
        }
        Ok(api::StartResponse {
            pid,
            ..Default::default()
        })
    }

    fn exec(&self, _: &TtrpcContext, req: api::ExecProcessRequest) -> TtrpcResult<api::Empty> {
        let mut task = self.state.task();
        task.process(&req.id, "")?;
        let spec = serde_json::from_slice(&req.spec.value).map_err(other)?;
        let exec = Process::new(&spec, req.stdin(), req.stdout(), req.stderr());
        task.processes.insert(req.exec_id.clone(), exec);
        self.state.publish(events::TaskExecAdded {
            container_id: req.id,
            exec_id: req.exec_id,
            ..Default::default()
        });
        Ok(api::Empty::new())
    }

    fn state(&self, _: &TtrpcContext, req: api::StateRequest) -> TtrpcResult<api::StateResponse> {
        let mut task = self.state.task();
        let bundle = task.bundle.clone();
        let process = task.process(&req.id, &req.exec_id)?;
        let (exit_status, exited_at) = process.exit.clone().unwrap_or_default();
        Ok(api::StateResponse {
            bundle,
            pid: process.pid,
            status: process.status().into(),
            stdin: process.stdin.clone(),
            stdout: process.stdout.clone(),
            stderr: process.stderr.clone(),
            exit_status,
            exited_at: MessageField::some(exited_at),
            id: req.id,
            exec_id: req.exec_id,
            ..Default::default()
        })
    }

    fn wait(&self, _: &TtrpcContext, req: api::WaitRequest) -> TtrpcResult<api::WaitResponse> {
        let mut task = self.state.task();
        loop {
            if let Some((exit_status, at)) = task.process(&req.id, &req.exec_id)?.exit.clone() {
                return Ok(api::WaitResponse {
                    exit_status,
                    exited_at: MessageField::some(at),
                    ..Default::default()
                });
            }
            let woken = self.state.exited.wait(task);
            task = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn kill(&self, _: &TtrpcContext, req: api::KillRequest) -> TtrpcResult<api::Empty> {
        let mut task = self.state.task();
        let process = task.process(&req.id, &req.exec_id)?;
        if process.exit.is_some() {
            return Err(Error::NotFoundError("process already finished".into()).into());
        }
        process::kill(process.pid, req.signal).map_err(other)?;
        Ok(api::Empty::new())
    }

    fn pids(&self, _: &TtrpcContext, req: api::PidsRequest) -> TtrpcResult<api::PidsResponse> {
        let mut task = self.state.task();
        task.process(&req.id, "")?;
        let all = task.processes.values();
        let running = all.filter(|it| it.pid != 0 && it.exit.is_none());
        let info = |it: &Process| shim::protos::api::ProcessInfo {
            pid: it.pid,
            ..Default::default()
        };
        Ok(api::PidsResponse {
            processes: running.map(info).collect(),
            ..Default::default()
        })
    }

    fn stats(&self, _: &TtrpcContext, req: api::StatsRequest) -> TtrpcResult<api::StatsResponse> {
        self.state.task().process(&req.id, "")?;
        let stats = shim::protos::cgroups::metrics::Metrics::new();
        Ok(api::StatsResponse {
            stats: MessageField::some(convert_to_any(Box::new(stats))?),
            ..Default::default()
        })
    }

    fn delete(
        &self,
        _: &TtrpcContext,
        req: api::DeleteRequest,
    ) -> TtrpcResult<api::DeleteResponse> {
        let mut task = self.state.task();
        let process = task.process(&req.id, &req.exec_id)?;
        let pid = process.pid;
        let Some((exit_status, at)) = process.exit.clone() else {
            return Err(Error::FailedPreconditionError("it has not stopped".into()).into());
        };
        task.processes.remove(&req.exec_id);
        if req.exec_id.is_empty() {
            umount_recursive(Some(&task.rootfs()), 0)?;
            self.state.publish(events::TaskDelete {
                container_id: req.id,
                pid,
                exit_status,
                exited_at: MessageField::some(at.clone()),
                ..Default::default()
            });
        }
        Ok(api::DeleteResponse {
            pid,
            exit_status,
            exited_at: MessageField::some(at),
            ..Default::default()
        })
    }

    /// No input of its processes ever ends.
    fn close_io(&self, _: &TtrpcContext, _: api::CloseIORequest) -> TtrpcResult<api::Empty> {
        Ok(api::Empty::new())
    }

    fn shutdown(&self, _: &TtrpcContext, _: api::ShutdownRequest) -> TtrpcResult<api::Empty> {
        if self.state.task().processes.is_empty() {
            self.exit.signal();
        }
        Ok(api::Empty::new())
    }
}
