// SPDX-License-Identifier: Apache-2.0
//! The OCI runtime's command line, for one container (contract T9).

use super::Checkpoint;
use super::command::{self, Streams};
use super::failure::{Failure, LogMark};
use super::options::{DEFAULT_ROOT, Options};
use crate::aside;
use crate::bundle::Bundle;
use crate::command::Command;
use crate::process::ProcessId;
use crate::reaper::Reaper;
use crate::tally;
use crate::trace::{self, Kind, Span};
use protos::runc;
use protos::ttrpc::Context;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

/// runc, or what `binary_name` says, with the flags that every command of a container has.
#[derive(Clone)]
pub struct Cli {
    reaper: Rc<Reaper>,
    binary: String,
    root: PathBuf,
    bundle: Bundle,
    systemd_cgroup: bool,
}

/// A process's terminal, or the reason it needs none.
#[derive(Clone, Copy)]
pub struct Console<'a>(pub Option<&'a OsStr>);

impl Cli {
    /// The runtime for a container of `namespace`; it keeps its state in `<root>/<namespace>`.
    pub fn new(reaper: Rc<Reaper>, options: &Options, namespace: &str, bundle: Bundle) -> Self {
        let or =
            |value: &str, default: &str| if value.is_empty() { default } else { value }.to_owned();
        Self {
            reaper,
            binary: or(&options.binary_name, "runc"),
            root: Path::new(&or(&options.root, DEFAULT_ROOT)).join(namespace),
            bundle,
            systemd_cgroup: options.systemd_cgroup,
        }
    }

    /// Who its commands are children of.
    pub fn reaper(&self) -> &Reaper {
        &self.reaper
    }

    /// True if a signal to the pid that it writes is a signal to the container's init, as runc and
    /// crun promise; what runs a sandbox may want to be asked.
    pub fn writes_inits_pid(&self) -> bool {
        let name = Path::new(&self.binary).file_name();
        name.is_some_and(|name| name == "runc" || name == "crun")
    }

    /// The program, as its options name it.
    pub fn binary(&self) -> &str {
        &self.binary
    }

    /// `--version`: what it says of itself.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn version(&self, context: &Context) -> Result<Vec<u8>, Failure> {
        let (log, args) = (self.bundle.runtime_log(), ["--version".as_ref()]);
        self.run_logged(&log, &args, Streams::Captured, context)
            .await
    }

    /// `create`: makes the container, its init waiting for `start`.
    ///
    /// # Errors
    /// The runtime's, with what it logged.
    pub async fn create(
        &self,
        id: &str,
        options: &Options,
        console: Console<'_>,
        streams: Streams,
        context: &Context,
    ) -> Result<(), Failure> {
        let pid_file = self.bundle.pid(&ProcessId::Init);
        let mut args: Vec<&OsStr> = vec!["create".as_ref()];
        self.make(&mut args, &pid_file, options, &console);
        if options.no_new_keyring {
            args.push("--no-new-keyring".as_ref());
        }
        args.push(id.as_ref());
        self.run(&args, streams, context).await
    }

    /// What is the same however an init is made.
    fn make<'a>(
        &'a self,
        args: &mut Vec<&'a OsStr>,
        pid_file: &'a Path,
        options: &Options,
        console: &Console<'a>,
    ) {
        args.extend(["--bundle".as_ref(), self.bundle.path().as_os_str()]);
        args.extend(["--pid-file".as_ref(), pid_file.as_os_str()]);
        if let Some(socket) = console.0 {
            args.extend(["--console-socket".as_ref(), socket]);
        }
        if options.no_pivot_root {
            args.push("--no-pivot".as_ref());
        }
    }

    /// `start`: lets the init of a created container go.
    ///
    /// # Errors
    /// The runtime's, with what it logged.
    pub async fn start(&self, id: &str, context: &Context) -> Result<(), Failure> {
        self.run(&["start".as_ref(), id.as_ref()], Streams::Captured, context)
            .await
    }

    /// `exec --detach`: starts a further process, whose spec and pid are files in the bundle.
    ///
    /// # Errors
    /// The runtime's, with what it logged.
    pub async fn exec(
        &self,
        id: &str,
        exec: &str,
        console: Console<'_>,
        streams: Streams,
        context: &Context,
    ) -> Result<(), Failure> {
        let pid_file = self.bundle.pid(&ProcessId::Exec(exec.to_owned()));
        let spec = self.bundle.exec_spec(exec);
        let mut args: Vec<&OsStr> = vec!["exec".as_ref(), "--process".as_ref(), spec.as_os_str()];
        if let Some(socket) = console.0 {
            args.extend(["--console-socket".as_ref(), socket]);
        }
        args.extend([
            "--detach".as_ref(),
            "--pid-file".as_ref(),
            pid_file.as_os_str(),
            id.as_ref(),
        ]);
        // Execs run at once, so each has a log of its own; with it gone nothing is left behind.
        let log = self.bundle.exec_log(exec);
        let result = self.run_logged(&log, &args, streams, context).await;
        aside::run(move || drop(std::fs::remove_file(log))).await;
        result.map(drop)
    }

    /// `kill`: signals init, or with `all` every process of the container.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn kill(
        &self,
        id: &str,
        signal: u32,
        all: bool,
        context: &Context,
    ) -> Result<(), Failure> {
        let signal = signal.to_string();
        let mut args: Vec<&OsStr> = vec!["kill".as_ref()];
        args.extend(all.then_some(AsRef::<OsStr>::as_ref("--all")));
        args.extend([id.as_ref(), signal.as_ref()] as [&OsStr; 2]);
        self.run(&args, Streams::Captured, context).await
    }

    /// `delete`: removes a stopped container; with `force` any container.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn delete(&self, id: &str, force: bool, context: &Context) -> Result<(), Failure> {
        let mut args: Vec<&OsStr> = vec!["delete".as_ref()];
        args.extend(force.then_some(AsRef::<OsStr>::as_ref("--force")));
        args.push(id.as_ref());
        self.run(&args, Streams::Captured, context).await
    }

    /// `pause`: freezes every process of the container.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn pause(&self, id: &str, context: &Context) -> Result<(), Failure> {
        self.run(&["pause".as_ref(), id.as_ref()], Streams::Captured, context)
            .await
    }

    /// `resume`: thaws a paused container.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn resume(&self, id: &str, context: &Context) -> Result<(), Failure> {
        self.run(
            &["resume".as_ref(), id.as_ref()],
            Streams::Captured,
            context,
        )
        .await
    }

    /// `update`: sets limits, given as JSON (OCI LinuxResources).
    ///
    /// # Errors
    /// The runtime's.
    pub async fn update(
        &self,
        id: &str,
        resources: Vec<u8>,
        context: &Context,
    ) -> Result<(), Failure> {
        let args: [&OsStr; 3] = ["update".as_ref(), "--resources=-".as_ref(), id.as_ref()];
        self.run(&args, Streams::Fed(resources), context).await
    }

    /// `checkpoint`: has CRIU write the container's processes into `image` (T73).
    ///
    /// # Errors
    /// The runtime's.
    pub async fn checkpoint(
        &self,
        id: &str,
        image: &Path,
        work: &Path,
        options: &runc::CheckpointOptions,
        context: &Context,
    ) -> Result<(), Failure> {
        let mut args: Vec<&OsStr> = vec!["checkpoint".as_ref(), "--image-path".as_ref()];
        args.extend([image.as_os_str(), "--work-path".as_ref(), work.as_os_str()]);
        if !options.parent_path.is_empty() {
            args.extend(["--parent-path".as_ref(), OsStr::new(&options.parent_path)]);
        }
        let switches = [
            (options.open_tcp, "--tcp-established"),
            (options.external_unix_sockets, "--ext-unix-sk"),
            (options.terminal, "--shell-job"),
            (options.file_locks, "--file-locks"),
            (!options.exit, "--leave-running"),
        ];
        args.extend(
            switches
                .iter()
                .filter(|(on, _)| *on)
                .map(|(_, flag)| OsStr::new(flag)),
        );
        for namespace in &options.empty_namespaces {
            args.extend(["--empty-ns".as_ref(), OsStr::new(namespace)]);
        }
        if !options.cgroups_mode.is_empty() {
            let mode = OsStr::new(&options.cgroups_mode);
            args.extend(["--manage-cgroups-mode".as_ref(), mode]);
        }
        args.push(id.as_ref());
        self.run(&args, Streams::Captured, context).await
    }

    /// `restore`: makes the container out of a checkpoint's image, and lets it run (T21).
    ///
    /// # Errors
    /// The runtime's, with what it logged.
    pub async fn restore(
        &self,
        id: &str,
        options: &Options,
        checkpoint: &Checkpoint,
        console: Console<'_>,
        streams: Streams,
        context: &Context,
    ) -> Result<(), Failure> {
        let work = match options.criu_work_path.as_str() {
            "" => self.bundle.work(),
            path => PathBuf::from(path),
        };
        let pid_file = self.bundle.pid(&ProcessId::Init);
        let mut args: Vec<&OsStr> = vec!["restore".as_ref(), "--image-path".as_ref()];
        args.extend([
            checkpoint.image.as_ref(),
            "--work-path".as_ref(),
            work.as_os_str(),
        ]);
        if !checkpoint.parent.is_empty() {
            args.extend(["--parent-path".as_ref(), OsStr::new(&checkpoint.parent)]);
        }
        args.push("--detach".as_ref());
        self.make(&mut args, &pid_file, options, &console);
        args.push(id.as_ref());
        self.run(&args, streams, context).await
    }

    async fn run(
        &self,
        args: &[&OsStr],
        streams: Streams,
        context: &Context,
    ) -> Result<(), Failure> {
        self.run_logged(&self.bundle.runtime_log(), args, streams, context)
            .await
            .map(drop)
    }

    async fn run_logged(
        &self,
        log: &Path,
        args: &[&OsStr],
        streams: Streams,
        context: &Context,
    ) -> Result<Vec<u8>, Failure> {
        let action = args.first().map(|arg| arg.to_string_lossy());
        let action = action.unwrap_or_default();
        let span = Span::of(context, &format!("runtime {action}"), Kind::Client);
        span.set("process.executable.name", self.binary.as_str());
        let context = &span.context(context);
        let mut command = Command::new(&self.binary);
        trace::tell(&mut command, context);
        command
            .arg("--root")
            .arg(&self.root)
            .arg("--log")
            .arg(log)
            .args(["--log-format", "json"]);
        if self.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        // The bundle is the runtime's working directory: a console socket's path is relative to
        // it, because a unix socket's path is short and a bundle's may not be.
        command
            .args(args)
            .current_dir(self.bundle.path())
            .env_remove("NOTIFY_SOCKET");
        let log = log.to_owned();
        let mark = aside::run(move || LogMark::new(log)).await;
        let began = Instant::now();
        let done = command::run(&self.reaper, command, streams, context).await;
        tally::runtime(&action, began.elapsed(), done.is_err());
        let done = aside::run(move || {
            let done = done.map_err(|failure| failure.with_log(&mark));
            mark.keep_small();
            done
        })
        .await;
        span.done(&done);
        done
    }
}
