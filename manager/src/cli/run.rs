// SPDX-License-Identifier: Apache-2.0
//! `run`, `create`, `start` and `attach`: containers, and what they say.

use super::bundle;
use super::chosen::{Chosen, OfImage};
use super::client::{Client, lasting};
use super::control;
use super::foreground::{foreground, go_when_ended};
use super::health::HealthFlags;
use super::keys::{self, Keys};
use super::logs;
use super::network::Net;
pub use super::refusal::{NOT_RUN, NotRun, exit_code, said};
use super::spec::{self, Root, Wishes};
use super::stdio::Raw;
use super::stop::Stopping;
use super::users::Users;
use super::watch::{End, Unheard, Watch, signals};
use crate::config::Config;
use crate::logfile;
use crate::{removal, restart};
use clap::Args;
use protos::Any;
use protos::services::containers::v1::{Container, CreateContainerRequest, container};
use protos::services::tasks::v1::*;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

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
    pub interactive: bool,
    /// The keys of its terminal that part us from it; none if empty
    #[arg(long, value_name = "KEYS", default_value = keys::USUAL, value_parser = keys::read)]
    pub detach_keys: Keys,
    /// The runtime
    #[arg(long)]
    runtime: Option<String>,
    /// What to do when it ends: no, always, on-failure[:N], on-unhealthy[:N], unless-stopped
    #[arg(long, value_parser = |text: &str| text.parse::<restart::Policy>().map(|_| text.to_owned()))]
    restart: Option<String>,
    /// Where its output goes: file:///PATH or binary:///PROGRAM?KEY=VALUE
    #[arg(long, value_name = "URI", value_parser = logs::place)]
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
    #[command(flatten)]
    net: Net,
    #[command(flatten)]
    of_image: OfImage,
    /// The image; with --rootfs or --bundle the container's name
    #[arg(value_name = "IMAGE|NAME")]
    subject: String,
    /// The command, and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl Create {
    /// The container's record, whether it has a terminal, and its image, which stays meanwhile.
    fn container(&self, namespace: &str, config: &Config) -> Result<Planned, String> {
        let (wishes, tty, mut id) = (&self.wishes, self.tty, self.subject.clone());
        let mut image = None;
        let mut spec = match (&self.rootfs, &self.bundle) {
            (Some(rootfs), _) => {
                let root = Root::Directory(rootfs);
                spec::make(wishes, namespace, &id, &root, tty, &self.command)?
            }
            (None, Some(bundle)) => {
                let mut spec = bundle::read(bundle)?;
                let users = Users::below(Path::new(spec["root"]["path"].as_str().unwrap_or("")));
                let changed = spec::change(&mut spec, wishes, tty, &self.command, &users);
                changed.map_err(|e| format!("{}: {e}", bundle.display()))?;
                spec::place(&mut spec, namespace, &id);
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
        if let Some(image) = &image {
            image.note_check(&mut labels);
        }
        self.net.change(&mut spec, &id, config, &mut labels)?;
        self.wishes.kernel.check(&spec)?;
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
pub struct Planned {
    pub container: Container,
    pub terminal: bool,
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
    let id = &planned.container.id;
    let log = logs::uri(args.log_uri.as_deref(), config, namespace, id);
    make(client, namespace, config, &planned, &log, args.interactive).await?;
    if *id != args.subject {
        super::output::line(id)?;
    }
    Ok(0)
}

/// Makes the record and the task; the FIFO of its input, if it gets any.
pub async fn make(
    client: &Client,
    namespace: &str,
    config: &Config,
    planned: &Planned,
    log: &str,
    interactive: bool,
) -> Result<String, NotRun> {
    let (mut container, terminal) = (planned.container.clone(), planned.terminal);
    let id = container.id.clone();
    container
        .labels
        .insert(restart::LOG_URI.into(), log.to_owned());
    let request = client.request(CreateContainerRequest {
        container: Some(container),
    });
    client.containers().create(request).await.map_err(said)?;
    // What another of its name may have left.
    let cleared = logfile::remove(config, namespace, &id);
    let stdin = match logfile::file_of(log) {
        Some(file) if interactive => cleared.and_then(|()| logfile::make_input(&file)),
        _ => cleared.map(|()| String::new()),
    };
    let stdin = match stdin {
        Ok(stdin) => stdin,
        Err(e) => {
            let _ = control::delete_record(client, &id).await;
            return Err(e.into());
        }
    };
    let stderr = if terminal { "" } else { log };
    let streams = [&stdin, log, stderr];
    match make_task(client, &id, terminal, streams).await {
        Ok(()) => Ok(stdin),
        Err(e) => {
            unmake(client, config, namespace, &id).await;
            Err(e)
        }
    }
}

pub async fn make_task(
    client: &Client,
    id: &str,
    terminal: bool,
    [stdin, stdout, stderr]: [&str; 3],
) -> Result<(), NotRun> {
    let request = client.request(CreateTaskRequest {
        container_id: id.to_owned(),
        stdin: stdin.to_owned(),
        stdout: stdout.to_owned(),
        stderr: stderr.to_owned(),
        terminal,
        ..Default::default()
    });
    let made = client.tasks().create(request).await;
    made.map(drop).map_err(NotRun::of_command)
}

/// Takes away the record of what has no task, and what its logger may have written before.
pub async fn unmake(client: &Client, config: &Config, namespace: &str, id: &str) {
    let _ = logfile::remove(config, namespace, id);
    let _ = control::delete_record(client, id).await;
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
    let log = logs::uri(create.log_uri.as_deref(), config, namespace, &id);
    if args.detach {
        if args.rm {
            let labels = &mut planned.container.labels;
            labels.insert(removal::LABEL.into(), "true".into());
        }
        make(
            client,
            namespace,
            config,
            &planned,
            &log,
            create.interactive,
        )
        .await?;
        if let Err(e) = start_process(client, &id, "").await {
            if delete(client, &id).await {
                unmake(client, config, namespace, &id).await;
            }
            return Err(e);
        }
        super::output::line(&id)?;
        return Ok(0);
    }
    let file = match create.log_uri.as_deref() {
        Some(uri) if logfile::file_of(uri).is_none() => {
            let why = "needs --detach: what it says is heard by dunnage's own logger only";
            return Err(format!("--log-uri {uri}: {why}").into());
        }
        _ => logfile::file_of(&log).unwrap_or_default(),
    };
    let signals = signals()?;
    let undo = async |rm: bool| {
        // A task that is still there keeps its record.
        if rm && delete(client, &id).await {
            unmake(client, config, namespace, &id).await;
        }
    };
    let by_log = (log.as_str(), file.as_path());
    let raw = Raw::of(terminal);
    let (copying, _fifos) = foreground(client, namespace, config, create, &planned, by_log).await?;
    // Its record says by now that its image is used.
    drop(planned);
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
    let end = watch.start(signals, copying, raw).await;
    if let (Ok(End::Parted), true) = (&end, args.rm) {
        go_when_ended(client, &id).await?;
    } else {
        undo(args.rm || end.is_err()).await;
    }
    Ok(end?.code())
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
