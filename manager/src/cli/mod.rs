// SPDX-License-Identifier: Apache-2.0
//! The command line: what can be asked of `dunnage`.

mod attach;
mod bundle;
mod checkpoint;
mod chosen;
pub mod client;
mod control;
mod copy;
mod doctor;
mod env_file;
mod exec;
mod foreground;
mod health;
mod image;
mod init;
mod journal;
mod kernel;
mod keys;
mod logs;
mod mounts;
mod network;
mod output;
mod process;
mod prune;
mod refusal;
mod rename;
mod run;
mod seccomp;
mod security;
mod shim_metrics;
mod shims;
mod show;
pub mod signal;
mod spec;
mod start;
mod stdio;
mod stop;
mod tail;
mod top;
mod traced;
mod users;
mod verbs;
mod watch;

use crate::config::Config;
use crate::logfile::{self, Orders};
use clap::{CommandFactory, Parser, Subcommand};
use client::Client;
use output::while_read;
use run::NotRun;
use std::path::PathBuf;
use std::process::ExitCode;

/// Containers under containerd's shims, with containerd's API and without containerd.
#[derive(Debug, Parser)]
#[command(name = "dunnage", version = crate::VERSION)]
struct Args {
    /// The daemon's socket
    #[arg(short, long, global = true, env = "CONTAINERD_ADDRESS")]
    address: Option<PathBuf>,
    /// The namespace
    #[arg(
        short,
        long,
        global = true,
        env = "CONTAINERD_NAMESPACE",
        default_value = "default"
    )]
    namespace: String,
    /// The configuration file
    #[arg(long, global = true)]
    config: Option<PathBuf>,
    /// Print JSON, one object a line
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve: start shims, broker events, keep exits
    Daemon,
    /// Read the configuration, and tell what is wrong with it
    Check,
    /// Create and start a container
    Run(Box<run::Run>),
    /// Create a container; `start` starts it
    Create(Box<run::Create>),
    #[command(flatten)]
    Verb(verbs::Verb),
    /// Change its limits
    Update {
        #[command(flatten)]
        limits: spec::Limits,
        id: String,
    },
    /// Watch a running container, and type to it
    Attach(attach::Attach),
    /// Run a command in a container
    Exec(Box<exec::Exec>),
    /// List containers
    Ls {
        /// Only their ids
        #[arg(short, long)]
        quiet: bool,
        /// containerd's filters, such as id==x (repeatable)
        #[arg(short, long)]
        filter: Vec<String>,
    },
    /// List the processes of a container
    Ps { id: String },
    /// Tell all of a container
    Inspect { id: String },
    /// Wait for containers to end and print how; also of deleted ones
    Wait {
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Show what happens, or happened
    Events(journal::Events),
    /// Show how processes ended
    Exits { id: Option<String> },
    /// Images, which containers are made of
    #[command(subcommand)]
    Image(image::Image),
    /// Namespaces
    #[command(subcommand)]
    Ns(control::Ns),
    /// Networks
    #[command(subcommand)]
    Network(network::Command),
    /// Tell of the daemon
    Info,
    /// Tell the versions
    Version,
    /// List the shims of this machine, containerd's too, or tell their metrics
    Shims(shims::Shims),
    /// Look for what hangs and why, leaked shims, orphan bundles, stale sockets and mounts
    Doctor {
        /// Clean up
        #[arg(long)]
        fix: bool,
    },
    /// Print a shell's completion
    Completion { shell: clap_complete::Shell },
    /// Print the manual page, of all or of a command
    Man { of: Vec<String> },
    /// Publish an event that comes on stdin (for shims)
    #[command(hide = true)]
    Publish {
        #[arg(long)]
        topic: String,
    },
}

/// The configuration of `dunnage [--config FILE] daemon`, which is read without the parser of
/// everything else: what that one needs would be in the daemon's memory for ever.
fn daemon(args: impl Iterator<Item = std::ffi::OsString>) -> Option<Option<PathBuf>> {
    let (mut is_daemon, mut config) = (false, None);
    let mut args = args.skip(1);
    while let Some(arg) = args.next() {
        match arg.to_str()? {
            "daemon" if !is_daemon => is_daemon = true,
            "--config" if config.is_none() => config = Some(args.next()?.into()),
            _ => return None,
        }
    }
    is_daemon.then_some(config)
}

/// Whether a command line of these words can be obeyed.
#[cfg(test)]
pub fn parses<'a>(words: impl Iterator<Item = &'a str>) -> bool {
    Args::try_parse_from(words).is_ok()
}

/// Does what the arguments say.
pub fn run() -> ExitCode {
    if let Some(config) = daemon(std::env::args_os()) {
        let served = Config::load(config.as_deref());
        return ended(served.and_then(|it| crate::daemon::run(it, config)));
    }
    if let Some(orders) = Orders::read(std::env::args_os()) {
        return ended(logfile::run(&orders));
    }
    if let Some(order) = crate::network::Order::read(std::env::args_os()) {
        return network::helped(order.and_then(|order| order.obey()));
    }
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(e) => return told(&e),
    };
    match args.obey() {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            complain(&e);
            ExitCode::FAILURE
        }
    }
}

fn ended(done: Result<(), String>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            complain(&e);
            ExitCode::FAILURE
        }
    }
}

/// Help and the version are printed; anything else is an error of usage, 125 as with docker and
/// podman: no container's exit code.
fn told(by: &clap::Error) -> ExitCode {
    let text = by.render().to_string();
    if by.use_stderr() {
        let _ = output::write(&mut std::io::stderr(), text.as_bytes());
        return ExitCode::from(run::NOT_RUN);
    }
    match output::write(&mut std::io::stdout(), text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

impl Args {
    fn obey(self) -> Result<u8, String> {
        // In memory first: neither stops well when nobody reads on.
        let mut page = Vec::new();
        match &self.command {
            Command::Completion { shell } => {
                clap_complete::generate(*shell, &mut Self::command(), "dunnage", &mut page);
            }
            Command::Man { of } => match manual(of) {
                Ok(man) => man.render(&mut page).map_err(|e| e.to_string())?,
                Err(e) => return Ok(run::exit_code(Err(e.into()))),
            },
            _ => {}
        }
        if !page.is_empty() {
            return output::write(&mut std::io::stdout(), &page).map(|()| 0);
        }
        let config = match Config::load(self.config.as_deref()) {
            Ok(config) => config,
            Err(e) if matches!(self.command, Command::Daemon | Command::Check) => return Err(e),
            Err(e) => return Ok(run::exit_code(Err(e.into()))),
        };
        match &self.command {
            Command::Daemon => crate::daemon::run(config, self.config).map(|()| 0),
            // It has been read.
            Command::Check => {
                let absent = config.absent();
                absent.iter().for_each(|shim| complain(shim));
                Ok(u8::from(!absent.is_empty()))
            }
            Command::Image(asked) => Ok(image::become_program(&config, asked, self.json)),
            _ => {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build_local(Default::default());
                let runtime = runtime.map_err(|e| e.to_string())?;
                let code = match &self.command {
                    // It needs no daemon.
                    Command::Shims(shims) => runtime.block_on(shims.obey(self.json)),
                    _ => runtime.block_on(self.ask(&config)),
                };
                // A thread may still wait for our stdin; nobody waits for it.
                runtime.shutdown_background();
                code
            }
        }
    }

    async fn ask(self, config: &Config) -> Result<u8, String> {
        let address = self
            .address
            .clone()
            .unwrap_or_else(|| config.grpc.address.clone());
        let client = Client::connect(&address, &self.namespace).await;
        if let Command::Version = self.command {
            return show::version(client, self.json).await.map(|()| 0);
        }
        let client = match client {
            Ok(client) => client,
            Err(e) => return Ok(run::exit_code(Err(e.into()))),
        };
        let (span, trace) = traced::command();
        let client = client.traced(trace);
        let code = match self.start(&client, config).await {
            Some(ran) => Ok(run::exit_code(ran)),
            None => self.manage(&client, config).await,
        };
        traced::ended(span, &code).await;
        code
    }

    /// Does what a command says that starts a process, or watches one.
    async fn start(&self, client: &Client, config: &Config) -> Option<Result<u8, NotRun>> {
        let namespace = self.namespace.as_str();
        Some(match &self.command {
            Command::Run(args) => run::run(client, namespace, config, args).await,
            Command::Create(args) => run::create(client, namespace, config, args).await,
            Command::Attach(args) => attach::attach(client, args).await,
            Command::Exec(args) => exec::exec(client, args).await,
            _ => return None,
        })
    }

    /// Does what any other command says.
    async fn manage(&self, client: &Client, config: &Config) -> Result<u8, String> {
        let namespace = self.namespace.as_str();
        let done = match &self.command {
            Command::Verb(verb) => return verb.obey(client, config, namespace, self.json).await,
            Command::Wait { ids } => while_read(journal::wait(client, namespace, ids)).await,
            Command::Doctor { fix } => {
                return doctor::doctor(client, config, *fix, self.json).await;
            }
            Command::Update { limits, id } => control::update(client, id, limits).await,
            Command::Ls { quiet, filter } => show::ls(client, *quiet, self.json, filter).await,
            Command::Ps { id } => show::ps(client, id, self.json).await,
            Command::Inspect { id } => {
                let key = crate::names::Key::new(namespace, id);
                show::inspect(client, config, &key, self.json).await
            }
            Command::Events(args) => while_read(journal::events(client, args, self.json)).await,
            Command::Exits { id } => {
                journal::exits(client, namespace, id.as_deref(), self.json).await
            }
            Command::Ns(command) => control::ns(client, command, self.json).await,
            Command::Network(network::Command::Ls) => network::ls(config, self.json),
            Command::Info => show::info(client, self.json).await,
            Command::Publish { topic } => crate::publish::publish(client, topic.clone()).await,
            Command::Run(_)
            | Command::Create(_)
            | Command::Attach(_)
            | Command::Exec(_)
            | Command::Version
            | Command::Shims(_)
            | Command::Check
            | Command::Daemon
            | Command::Image(_)
            | Command::Completion { .. }
            | Command::Man { .. } => Ok(()),
        };
        done.map(|()| 0)
    }
}

/// The manual page of the command that has this name, as `ns create`; without one, of all.
fn manual(of: &[String]) -> Result<clap_mangen::Man, String> {
    let mut all = Args::command();
    // Now each command knows its whole name, and what it has of all.
    all.build();
    let mut command = &all;
    for name in of {
        let found = command.find_subcommand(name);
        command = found.ok_or_else(|| format!("man: {name:?} is no command"))?;
    }
    Ok(clap_mangen::Man::new(command.clone()))
}

fn complain(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "dunnage: {}", task::printable(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_daemon_is_started_without_the_parser() {
        let read = |words: &str| daemon(words.split(' ').map(Into::into));
        assert_eq!(read("dunnage daemon"), Some(None));
        assert_eq!(read("dunnage --config f daemon"), Some(Some("f".into())));
        assert_eq!(read("dunnage daemon --config f"), Some(Some("f".into())));
        for others in [
            "dunnage ls",
            "dunnage daemon --help",
            "dunnage",
            "dunnage run daemon",
        ] {
            assert_eq!(read(others), None, "{others}");
        }
    }
}
