// SPDX-License-Identifier: Apache-2.0
//! What is asked of containers that are there: of one, or of each of several.

use super::client::Client;
use super::output::while_read;
use super::run::{self, NotRun};
use super::stop::{self, Ending};
use super::{checkpoint, control, copy, logs, prune, rename, show, start, top};
use crate::config::Config;
use clap::Subcommand;
use std::future::poll_fn;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::Poll;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Start containers that were created, or have ended
    Start {
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Stop containers, and start them again
    Restart {
        #[command(flatten)]
        ending: Ending,
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Send a signal
    Kill {
        /// A name as of kill(1), with or without SIG, or a number
        #[arg(short, long, default_value = "TERM", value_parser = super::signal::number)]
        signal: u32,
        /// To all their processes
        #[arg(long)]
        all: bool,
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Send their stop signal, then KILL
    Stop {
        #[command(flatten)]
        ending: Ending,
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Freeze
    Pause {
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Thaw
    Resume {
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Delete stopped containers, and their logs
    #[command(visible_alias = "rm")]
    Delete(control::Delete),
    /// Delete all containers that have ended, and their logs
    Prune {
        /// containerd's filters, such as labels.app==web (repeatable)
        #[arg(short, long)]
        filter: Vec<String>,
    },
    /// Give a container that does not run another name
    Rename { id: String, new: String },
    /// Store what a container is doing, and end it
    Checkpoint(checkpoint::Checkpoint),
    /// Have a container go on where it was stored
    Restore {
        id: String,
        /// Where `checkpoint` has stored it
        dir: PathBuf,
    },
    /// Copy files between a container and the host
    Cp(copy::Copy),
    /// Show the processes of a container as ps(1) does
    Top {
        id: String,
        /// Options of ps(1); without any, -ef
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Show what containers use, all or these
    Stats {
        /// Once
        #[arg(long)]
        no_stream: bool,
        ids: Vec<String>,
    },
    /// Show what containers wrote
    Logs(logs::Logs),
}

impl Verb {
    /// Does what it says: its exit code.
    pub async fn obey(
        &self,
        client: &Client,
        config: &Config,
        namespace: &str,
        as_json: bool,
    ) -> Result<u8, String> {
        let plain =
            async |id: &str, done: Result<(), String>| done.map_err(|why| NotRun::refused(id, why));
        Ok(match self {
            Self::Start { ids } => one_by_one(ids, async |id| start::start(client, id).await).await,
            Self::Restart { ending, ids } => {
                at_once(ids, async |id| stop::restart(client, id, ending).await).await
            }
            Self::Stop { ending, ids } => {
                let stop = async |id: &str| plain(id, stop::stop(client, id, ending).await).await;
                at_once(ids, stop).await
            }
            Self::Kill { signal, all, ids } => {
                let kill = async |id: &str| {
                    plain(id, control::kill(client, id, *signal, *all).await).await
                };
                one_by_one(ids, kill).await
            }
            Self::Pause { ids } => {
                let pause = async |id: &str| plain(id, control::pause(client, id).await).await;
                one_by_one(ids, pause).await
            }
            Self::Resume { ids } => {
                let resume = async |id: &str| plain(id, control::resume(client, id).await).await;
                one_by_one(ids, resume).await
            }
            Self::Delete(args) => {
                let delete = async |id: &str| {
                    plain(
                        id,
                        control::delete(client, config, namespace, args, id).await,
                    )
                    .await
                };
                one_by_one(&args.ids, delete).await
            }
            Self::Prune { filter } => prune::prune(client, config, namespace, filter).await?,
            Self::Rename { id, new } => {
                rename::rename(client, config, namespace, id, new).await?;
                0
            }
            Self::Checkpoint(args) => {
                checkpoint::checkpoint(client, args).await?;
                0
            }
            Self::Restore { id, dir } => {
                run::exit_code(checkpoint::restore(client, id, dir).await.map(|()| 0))
            }
            Self::Cp(args) => {
                copy::copy(client, args).await?;
                0
            }
            Self::Top { id, options } => {
                top::top(client, id, options).await?;
                0
            }
            Self::Stats { no_stream, ids } => {
                while_read(show::stats(client, *no_stream, as_json, ids)).await?
            }
            Self::Logs(args) => {
                let of_one = async |id: &str| {
                    plain(id, logs::logs(client, config, namespace, args, id).await).await
                };
                while_read(async {
                    match args.follow {
                        true => at_once(&args.ids, of_one).await,
                        false => one_by_one(&args.ids, of_one).await,
                    }
                })
                .await
            }
        })
    }
}

/// Does it to each, whatever became of those before. Each error is on a line of its own, and the exit
/// code is the first one's.
pub async fn one_by_one(ids: &[String], act: impl AsyncFn(&str) -> Result<(), NotRun>) -> u8 {
    let mut code = 0;
    for id in ids {
        let done = run::exit_code(act(id).await.map(|()| 0));
        if code == 0 {
            code = done;
        }
    }
    code
}

type Acting<'a> = Pin<Box<dyn Future<Output = u8> + 'a>>;

/// [`one_by_one`], but all at the same time: each may take long.
async fn at_once(ids: &[String], act: impl AsyncFn(&str) -> Result<(), NotRun>) -> u8 {
    let one = async |id: &str| run::exit_code(act(id).await.map(|()| 0));
    let mut acting: Vec<(Acting<'_>, Option<u8>)> = Vec::new();
    for id in ids {
        acting.push((Box::pin(one(id)), None));
    }
    poll_fn(|context| {
        let mut is_over = true;
        for (acting, code) in &mut acting {
            if code.is_none() {
                match acting.as_mut().poll(context) {
                    Poll::Ready(done) => *code = Some(done),
                    Poll::Pending => is_over = false,
                }
            }
        }
        if is_over {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    let codes = acting.iter().filter_map(|(_, code)| *code);
    codes.into_iter().find(|&code| code != 0).unwrap_or(0)
}
