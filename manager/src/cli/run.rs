//! `run`, `create`, `start` and `attach`: containers, and what they say.

use super::client::{Client, lasting};
use super::control;
use super::health::HealthFlags;
use super::spec::{self, Wishes};
use super::stdio::Stdio;
use super::stop::Stopping;
use super::watch::{Unheard, Watch, signals};
use crate::config::Config;
use crate::{logfile, removal, restart};
use clap::Args;
use protos::Any;
use protos::services::containers::v1::{
    Container, CreateContainerRequest, DeleteContainerRequest, container,
};
use protos::services::tasks::v1::*;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Exit codes, as podman's and docker's: nothing was run; the command can't be; there is none.
pub const NOT_RUN: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// And of all else that failed.
const FAILED: u8 = 1;
/// What ctr and containerd call the type of a spec.
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    create: Create,
    /// Do not wait for its end
    #[arg(short, long)]
    detach: bool,
    /// Remove the container when it has ended
    #[arg(long)]
    rm: bool,
}

#[derive(Debug, Args)]
pub struct Create {
    /// The root filesystem, a directory
    #[arg(long, conflicts_with = "bundle", required_unless_present = "bundle")]
    rootfs: Option<PathBuf>,
    /// An OCI bundle: a directory with config.json
    #[arg(long, short)]
    bundle: Option<PathBuf>,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Pass our stdin on
    #[arg(short, long)]
    interactive: bool,
    /// The runtime
    #[arg(long)]
    runtime: Option<String>,
    /// What to do when it ends: no, always, on-failure[:N], on-unhealthy[:N], unless-stopped
    #[arg(long, value_parser = |text: &str| text.parse::<restart::Policy>().map(|_| text.to_owned()))]
    restart: Option<String>,
    /// Where its output goes: file:///PATH or binary:///PROGRAM?KEY=VALUE
    #[arg(long, value_name = "URI", value_parser = log_place)]
    log_uri: Option<String>,
    /// A label, KEY=VALUE (repeatable)
    #[arg(short, long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    #[command(flatten)]
    stopping: Stopping,
    #[command(flatten)]
    health: HealthFlags,
    #[command(flatten)]
    wishes: Wishes,
    /// Its name
    id: String,
    /// The command, and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// A refusal's text.
pub fn said(e: tonic::Status) -> String {
    e.message().to_owned()
}

/// Why nothing runs, and the exit code that tells of it.
pub struct NotRun {
    why: String,
    code: u8,
}

impl From<String> for NotRun {
    fn from(why: String) -> Self {
        Self { why, code: NOT_RUN }
    }
}

impl NotRun {
    /// What was asked of this container, and was not done.
    pub fn refused(id: &str, why: String) -> Self {
        let why = match why.contains(id) {
            true => why,
            false => format!("{id}: {why}"),
        };
        Self { why, code: FAILED }
    }

    pub fn why(self) -> String {
        self.why
    }

    /// What the OCI runtime says of a command: runc's words are `exec: "NAME": …`, crun's speak of an
    /// executable. The same errno of a mount is no word about the command.
    pub fn of_command(refusal: tonic::Status) -> Self {
        let why = said(refusal);
        let of_command = why.rsplit_once("exec: \"").map(|(_, said)| said);
        let of_command = of_command.or_else(|| why.split_once("executable").map(|(_, said)| said));
        let words = of_command.unwrap_or_default().to_lowercase();
        let says = |phrases: &[&str]| phrases.iter().any(|&phrase| words.contains(phrase));
        let code = if says(&["permission denied", "is a directory", "exec format error"]) {
            NOT_EXECUTABLE
        } else if says(&["not found", "no such file"]) {
            NOT_FOUND
        } else {
            NOT_RUN
        };
        Self { why, code }
    }
}

impl Create {
    /// The container's record, and whether it has a terminal.
    fn container(&self, namespace: &str, default: &str) -> Result<(Container, bool), String> {
        let spec = match (&self.rootfs, &self.bundle) {
            (Some(rootfs), _) => {
                let command = &self.command;
                spec::make(&self.wishes, namespace, &self.id, rootfs, self.tty, command)?
            }
            (None, Some(bundle)) => {
                let mut spec = read_bundle(bundle)?;
                let changed = spec::change(&mut spec, &self.wishes, self.tty, &self.command);
                changed.map_err(|e| format!("{}: {e}", bundle.display()))?;
                spec
            }
            (None, None) => return Err("--rootfs or --bundle is needed".into()),
        };
        let mut labels = HashMap::new();
        for label in &self.labels {
            let (key, value) = label.split_once('=').unwrap_or((label, ""));
            labels.insert(key.to_owned(), value.to_owned());
        }
        if let Some(policy) = self.restart.as_deref().filter(|policy| *policy != "no") {
            labels.insert(restart::STATUS.into(), "running".into());
            labels.insert(restart::POLICY.into(), policy.into());
        }
        self.stopping.note(&mut labels);
        self.health.note(&mut labels)?;
        let runtime = self.runtime.as_deref().unwrap_or(default).to_owned();
        let container = Container {
            labels,
            ..record(&self.id, runtime, spec.to_string().into_bytes())
        };
        let terminal = restart::has_terminal(&container);
        Ok((container, terminal))
    }
}

/// A container's record.
pub fn record(id: &str, runtime: String, spec: Vec<u8>) -> Container {
    Container {
        id: id.to_owned(),
        runtime: Some(container::Runtime {
            name: runtime,
            options: None,
        }),
        spec: Some(Any {
            type_url: SPEC_TYPE.into(),
            value: spec,
        }),
        ..Default::default()
    }
}

/// A spec whose root filesystem is found from anywhere.
fn read_bundle(bundle: &Path) -> Result<serde_json::Value, String> {
    let path = bundle.join("config.json");
    let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let json = std::fs::read(&path).map_err(|e| failed(&e))?;
    let mut spec: serde_json::Value = task::json::read_first(&json).map_err(|e| failed(&e))?;
    let bundle = bundle.canonicalize().map_err(|e| failed(&e))?;
    if let Some(root) = spec["root"]["path"].as_str() {
        spec["root"]["path"] = bundle.join(root).display().to_string().into();
    }
    Ok(spec)
}

/// `create`: the container's record, and its task, ready to be started.
pub async fn create(
    client: &Client,
    namespace: &str,
    config: &Config,
    args: &Create,
) -> Result<u8, NotRun> {
    let log = log_uri(args.log_uri.as_deref(), config, namespace, &args.id);
    let container = args.container(namespace, &config.runtime.default)?;
    make(client, namespace, config, container, Some(&log), None).await?;
    Ok(0)
}

async fn make(
    client: &Client,
    namespace: &str,
    config: &Config,
    (mut container, terminal): (Container, bool),
    log: Option<&str>,
    stdio: Option<&Stdio>,
) -> Result<(), NotRun> {
    let id = container.id.clone();
    if let Some(log) = log {
        container
            .labels
            .insert(restart::LOG_URI.into(), log.to_owned());
    }
    let request = client.request(CreateContainerRequest {
        container: Some(container),
    });
    client.containers().create(request).await.map_err(said)?;
    // What another of its name may have left.
    if let Err(e) = logfile::remove(config, namespace, &id) {
        remove(client, &id).await;
        return Err(e.into());
    }
    let (stdin, stdout, stderr) = match (stdio, log) {
        (Some(stdio), _) => (
            stdio.stdin.clone(),
            stdio.stdout.clone(),
            stdio.stderr.clone(),
        ),
        (None, Some(log)) if !terminal => (String::new(), log.to_owned(), log.to_owned()),
        (None, Some(log)) => (String::new(), log.to_owned(), String::new()),
        (None, None) => Default::default(),
    };
    let request = client.request(CreateTaskRequest {
        container_id: id.clone(),
        stdin,
        stdout,
        stderr,
        terminal,
        ..Default::default()
    });
    if let Err(e) = client.tasks().create(request).await {
        // Its logger may have been there before it.
        let _ = logfile::remove(config, namespace, &id);
        remove(client, &id).await;
        return Err(NotRun::of_command(e));
    }
    Ok(())
}

async fn remove(client: &Client, id: &str) {
    let request = client.request(DeleteContainerRequest { id: id.to_owned() });
    let _ = client.containers().delete(request).await;
}

/// A URI of one of the schemes that the shims know.
fn log_place(text: &str) -> Result<String, String> {
    let known = ["file:///", "binary:///", "binary-v2:///", "fifo:///"];
    let is_one = known.iter().any(|begin| text.starts_with(begin));
    is_one
        .then(|| text.to_owned())
        .ok_or_else(|| format!("none of {}", known.join(", ")))
}

/// Where the output of a container goes that nobody watches.
fn log_uri(wish: Option<&str>, config: &Config, namespace: &str, id: &str) -> String {
    if let Some(uri) = wish {
        return uri.to_owned();
    }
    logfile::uri(&config.logger, &logfile::path(config, namespace, id))
}

/// The exit code of what runs something: its own, and 125 to 127 if it did not run.
pub fn exit_code(ran: Result<u8, NotRun>) -> u8 {
    ran.unwrap_or_else(|e| {
        super::complain(&e.why);
        e.code
    })
}

/// `run`: its exit code.
pub async fn run(
    client: &Client,
    namespace: &str,
    config: &Config,
    args: &Run,
) -> Result<u8, NotRun> {
    let create = &args.create;
    let has_policy = create.restart.as_deref().is_some_and(|it| it != "no");
    if has_policy && args.rm {
        return Err("--restart and --rm exclude each other".to_owned().into());
    }
    if has_policy && !args.detach {
        return Err("--restart needs --detach".to_owned().into());
    }
    let (mut container, terminal) = create.container(namespace, &config.runtime.default)?;
    if args.detach {
        if args.rm {
            container
                .labels
                .insert(removal::LABEL.into(), "true".into());
        }
        let log = log_uri(create.log_uri.as_deref(), config, namespace, &create.id);
        let container = (container, terminal);
        make(client, namespace, config, container, Some(&log), None).await?;
        if let Err(e) = start_process(client, &create.id, "").await {
            if delete(client, &create.id).await {
                let _ = logfile::remove(config, namespace, &create.id);
                remove(client, &create.id).await;
            }
            return Err(e);
        }
        super::output::line(&create.id)?;
        return Ok(0);
    }
    let stdio = Stdio::new(create.interactive, terminal)?;
    let signals = signals()?;
    // Before the shim opens its ends: it waits for ours.
    let copying = stdio.copy();
    let container = (container, terminal);
    make(client, namespace, config, container, None, Some(&stdio)).await?;
    let watch = Watch {
        client,
        id: &create.id,
        exec: "",
        terminal,
        unheard: if args.rm {
            Unheard::Ends
        } else {
            Unheard::Stays
        },
    };
    let code = watch.start(signals, copying).await;
    // A task that is still there keeps its record.
    if delete(client, &create.id).await && (args.rm || code.is_err()) {
        remove(client, &create.id).await;
    }
    code
}

/// Deletes the task. True if there is none now.
pub async fn delete(client: &Client, id: &str) -> bool {
    let deleted = lasting(async || {
        let request = client.request(DeleteTaskRequest {
            container_id: id.to_owned(),
        });
        client.tasks().delete(request).await
    });
    deleted
        .await
        .map_or_else(|e| e.code() == tonic::Code::NotFound, |_| true)
}

pub async fn start_process(client: &Client, id: &str, exec: &str) -> Result<(), NotRun> {
    let request = client.request(StartRequest {
        container_id: id.to_owned(),
        exec_id: exec.to_owned(),
    });
    let started = client.tasks().start(request).await;
    started.map(drop).map_err(NotRun::of_command)
}

/// `attach`: to FIFOs that nobody else reads.
pub async fn attach(client: &Client, id: &str) -> Result<u8, NotRun> {
    let state = control::state(client, id).await.map_err(said)?;
    if state.stdout.contains("://") {
        return Err(format!("{id} writes to a log: see `dunnage logs -f {id}`").into());
    }
    let stdio = Stdio::of(state.stdin, state.stdout, state.stderr);
    let watch = Watch {
        client,
        id,
        exec: "",
        terminal: state.terminal,
        unheard: Unheard::Stays,
    };
    Ok(watch.attach(signals()?, stdio.copy()).await?)
}
