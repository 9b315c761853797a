//! `run`, `create` and `start`: containers, and what they say.

use super::bundle;
use super::chosen::{Chosen, OfImage};
use super::client::{Client, lasting};
use super::control;
use super::spec::{self, Root, Wishes};
use super::stdio::Stdio;
use super::users::Users;
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
    /// The root filesystem, a directory, in place of an image
    #[arg(long, conflicts_with = "bundle")]
    rootfs: Option<PathBuf>,
    /// An OCI bundle, in place of an image: a directory with config.json
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
    /// What to do when it ends: no, always, on-failure[:N], unless-stopped
    #[arg(long, value_parser = |text: &str| text.parse::<restart::Policy>().map(|_| text.to_owned()))]
    restart: Option<String>,
    /// Where its output goes: file:///PATH or binary:///PROGRAM?KEY=VALUE
    #[arg(long, value_name = "URI", value_parser = log_place)]
    log_uri: Option<String>,
    /// A label, KEY=VALUE (repeatable)
    #[arg(short, long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    #[command(flatten)]
    wishes: Wishes,
    #[command(flatten)]
    of_image: OfImage,
    /// The image; with --rootfs or --bundle the container's name
    #[arg(value_name = "IMAGE|NAME")]
    subject: String,
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
    /// The container's record, whether it has a terminal, and its image, which stays meanwhile.
    fn container(&self, namespace: &str, config: &Config) -> Result<Planned, String> {
        let (wishes, tty, mut id) = (&self.wishes, self.tty, self.subject.clone());
        let mut image = None;
        let spec = match (&self.rootfs, &self.bundle) {
            (Some(rootfs), _) => {
                let root = Root::Directory(rootfs);
                spec::make(wishes, namespace, &id, &root, tty, &self.command)?
            }
            (None, Some(bundle)) => {
                let mut spec = bundle::read(bundle)?;
                let users = Users::below(Path::new(spec["root"]["path"].as_str().unwrap_or("")));
                let changed = spec::change(&mut spec, wishes, tty, &self.command, &users);
                changed.map_err(|e| format!("{}: {e}", bundle.display()))?;
                spec
            }
            (None, None) => {
                let image = &*image.insert(self.of_image.choose(config, &self.subject)?);
                id = match &self.of_image.name {
                    Some(name) => name.clone(),
                    None => image.new_name()?,
                };
                let command = image.command(&self.command)?;
                spec::make(wishes, namespace, &id, &Root::Image(image), tty, &command)?
            }
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
        let runtime = self.runtime.as_ref().unwrap_or(&config.runtime.default);
        let mut container = Container {
            labels,
            ..record(&id, runtime.clone(), spec.to_string().into_bytes())
        };
        if let Some(image) = &image {
            image.note(&mut container)?;
        }
        let terminal = restart::has_terminal(&container);
        Ok(Planned {
            container,
            terminal,
            _image: image,
        })
    }
}

/// A container that is to be made.
struct Planned {
    container: Container,
    terminal: bool,
    _image: Option<Chosen>,
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

/// `create`: the container's record, and its task, ready to be started.
pub async fn create(
    client: &Client,
    namespace: &str,
    config: &Config,
    args: &Create,
) -> Result<u8, NotRun> {
    let planned = args.container(namespace, config)?;
    let id = planned.container.id.clone();
    let log = log_uri(args.log_uri.as_deref(), config, namespace, &id);
    make(client, namespace, config, planned, Some(&log), None).await?;
    if id != args.subject {
        super::output::line(&id)?;
    }
    Ok(0)
}

async fn make(
    client: &Client,
    namespace: &str,
    config: &Config,
    planned: Planned,
    log: Option<&str>,
    stdio: Option<&Stdio>,
) -> Result<(), NotRun> {
    let (mut container, terminal) = (planned.container, planned.terminal);
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
    let mut planned = create.container(namespace, config)?;
    let (id, terminal) = (planned.container.id.clone(), planned.terminal);
    if args.detach {
        if args.rm {
            let labels = &mut planned.container.labels;
            labels.insert(removal::LABEL.into(), "true".into());
        }
        let log = log_uri(create.log_uri.as_deref(), config, namespace, &id);
        make(client, namespace, config, planned, Some(&log), None).await?;
        if let Err(e) = start_process(client, &id, "").await {
            if delete(client, &id).await {
                let _ = logfile::remove(config, namespace, &id);
                remove(client, &id).await;
            }
            return Err(e);
        }
        super::output::line(&id)?;
        return Ok(0);
    }
    let stdio = Stdio::new(create.interactive, terminal)?;
    let signals = signals()?;
    // Before the shim opens its ends: it waits for ours.
    let copying = stdio.copy();
    make(client, namespace, config, planned, None, Some(&stdio)).await?;
    let watch = Watch {
        client,
        id: &id,
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
    if delete(client, &id).await && (args.rm || code.is_err()) {
        remove(client, &id).await;
    }
    code
}

/// Deletes the task. True if there is none now.
async fn delete(client: &Client, id: &str) -> bool {
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

/// `start`: of a created task, or of a container without one.
pub async fn start(client: &Client, id: &str) -> Result<u8, NotRun> {
    let container = control::container(client, id).await?;
    let state = control::state(client, id).await.ok();
    let status = state.map(|state| state.status);
    control::note_stopped(client, &container, false).await?;
    if status == Some(protos::task_types::Status::Stopped as i32) {
        delete(client, id).await;
    }
    if status != Some(protos::task_types::Status::Created as i32) {
        let log = container
            .labels
            .get(restart::LOG_URI)
            .cloned()
            .unwrap_or_default();
        let terminal = restart::has_terminal(&container);
        let request = client.request(CreateTaskRequest {
            container_id: id.to_owned(),
            stderr: if terminal { String::new() } else { log.clone() },
            stdout: log,
            terminal,
            ..Default::default()
        });
        let created = client.tasks().create(request).await;
        created.map_err(NotRun::of_command)?;
    }
    start_process(client, id, "").await?;
    Ok(0)
}
