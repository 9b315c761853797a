// SPDX-License-Identifier: Apache-2.0
//! `logs`: what a container wrote to the files of `dunnage log`.

use super::client::Client;
use super::control;
use super::output;
use super::tail::Tail;
use crate::config::Config;
use crate::logfile::{self, Entry};
use crate::restart;
use clap::Args;
use protos::services::containers::v1::GetContainerRequest;
use std::collections::VecDeque;
use std::time::Duration;
use tonic::Code;

/// How often it is looked whether a file was replaced, and what else nobody tells.
const LOOK: Duration = Duration::from_millis(200);

/// A URI of one of the schemes that the shims know.
pub fn place(text: &str) -> Result<String, String> {
    let known = ["file:///", "binary:///", "binary-v2:///", "fifo:///"];
    let is_one = known.iter().any(|begin| text.starts_with(begin));
    is_one
        .then(|| text.to_owned())
        .ok_or_else(|| format!("none of {}", known.join(", ")))
}

/// Where the output of a container goes that nobody watches.
pub fn uri(wish: Option<&str>, config: &Config, namespace: &str, id: &str) -> String {
    if let Some(uri) = wish {
        return uri.to_owned();
    }
    logfile::uri(&config.logger, &logfile::path(config, namespace, id))
}

#[derive(Debug, Args)]
pub struct Logs {
    /// Wait for more
    #[arg(short, long)]
    pub follow: bool,
    /// Only what came after this time
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Show the times
    #[arg(short, long)]
    timestamps: bool,
    /// Only so many of the last lines, and what comes after them; or all
    #[arg(long, value_name = "NUMBER|all", default_value = "all", value_parser = number)]
    tail: Lines,
    /// The containers; the lines of several begin with whose they are
    #[arg(required = true)]
    pub ids: Vec<String>,
}

/// How many lines, if not all.
#[derive(Clone, Copy, Debug)]
struct Lines(Option<usize>);

fn number(text: &str) -> Result<Lines, String> {
    match text {
        "all" => Ok(Lines(None)),
        _ => match text.parse() {
            Ok(number) => Ok(Lines(Some(number))),
            Err(_) => Err("not a number of lines, nor all".into()),
        },
    }
}

/// Prints the log, oldest first. Who follows it is done when its container is.
pub async fn logs(
    client: &Client,
    config: &Config,
    namespace: &str,
    args: &Logs,
    id: &str,
) -> Result<(), String> {
    let uri = control::log_uri(client, id).await;
    let path = logfile::file_of(&uri).unwrap_or_else(|| logfile::path(config, namespace, id));
    let mut shown = Shown::new(args, id)?;
    let older = (1..).map(|n| logfile::rotated(&path, n));
    let older: Vec<_> = older.take_while(|file| file.exists()).collect();
    for file in older.iter().rev() {
        shown.read(&mut Tail::open(file)?)?;
    }
    let mut tail = Tail::open(&path)?;
    let mut ended = std::pin::pin!(ended(client, id));
    let mut is_over = !args.follow;
    loop {
        // What is written until then is read.
        let is_last = is_over && !(args.follow && logfile::is_held(&path));
        // Rotated: the old one is read to its end, and then the new one.
        let next = if tail.is_old() {
            Some(Tail::open(&path)?)
        } else {
            None
        };
        shown.read(&mut tail)?;
        if let Some(next) = next {
            tail = next;
            continue;
        }
        shown.all()?;
        if is_last {
            return Ok(());
        }
        tokio::select! {
            () = &mut ended, if !is_over => is_over = true,
            () = tail.changed() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
        tail.notice_cut()?;
    }
}

/// Waits until the container has ended, and will not be started again by its policy.
async fn ended(client: &Client, id: &str) {
    loop {
        let status = match control::wait(client, id).await {
            Ok(exit) => Some(Some(exit.exit_status)),
            Err(e) if e.code() == Code::NotFound => Some(None),
            // The daemon is away: it may come again, and the log goes on without it.
            Err(_) => None,
        };
        let request = client.request(GetContainerRequest { id: id.to_owned() });
        match (status, client.containers().get(request).await) {
            (Some(status), Ok(answer)) => {
                let container = answer.into_inner().container.unwrap_or_default();
                if !restart::wants_restart(&container.labels, status) {
                    return;
                }
            }
            (Some(_), Err(e)) if e.code() == Code::NotFound => return,
            _ => {}
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What is shown of a log, and how.
struct Shown {
    since: Option<(i64, i32)>,
    times: bool,
    /// What a line begins with.
    head: String,
    /// How many of the last are shown, and those so far; none once they were.
    last: Option<(usize, VecDeque<Entry>)>,
    /// Nothing is to be put in front of what is in the middle of a line.
    is_in_line: bool,
}

impl Shown {
    fn new(args: &Logs, id: &str) -> Result<Self, String> {
        let since = args.since.as_deref().map(output::parse_time).transpose()?;
        Ok(Self {
            since: since.map(|time| (time.seconds, time.nanos)),
            times: args.timestamps,
            head: match args.ids.len() {
                1 => String::new(),
                _ => format!("{id} | "),
            },
            last: args.tail.0.map(|most| (most, VecDeque::new())),
            is_in_line: false,
        })
    }

    /// Takes what there is.
    fn read(&mut self, tail: &mut Tail) -> Result<(), String> {
        while let Some(line) = tail.next()? {
            let entry = logfile::parse(line).filter(|entry| !is_before(&entry.time, self.since));
            let Some(entry) = entry else {
                continue;
            };
            let Some((most, last)) = &mut self.last else {
                self.print(entry)?;
                continue;
            };
            last.push_back(entry);
            if last.len() > *most {
                last.pop_front();
            }
        }
        Ok(())
    }

    /// Now it is known which are the last; from here on all are shown.
    fn all(&mut self) -> Result<(), String> {
        let last = self.last.take().map(|(_, last)| last);
        last.into_iter()
            .flatten()
            .try_for_each(|entry| self.print(entry))
    }

    fn print(&mut self, mut entry: Entry) -> Result<(), String> {
        let mut head = String::new();
        if !self.is_in_line {
            head.push_str(&self.head);
        }
        if self.times {
            head.push_str(&entry.time);
            head.push(' ');
        }
        self.is_in_line = !entry.text.ends_with(b"\n");
        entry.text.splice(..0, head.into_bytes());
        match entry.is_stderr {
            true => output::write(&mut std::io::stderr(), &entry.text),
            false => output::write(&mut std::io::stdout().lock(), &entry.text),
        }
    }
}

fn is_before(time: &str, since: Option<(i64, i32)>) -> bool {
    since.is_some() && output::parse_time(time).is_ok_and(|at| Some((at.seconds, at.nanos)) < since)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_compared_as_times() {
        let since = Some((9, 0));
        assert!(is_before("1970-01-01T00:00:08.9Z", since));
        assert!(!is_before("1970-01-01T00:00:09Z", since));
        assert!(!is_before("1970-01-01T00:00:09.5Z", since));
        assert!(!is_before("1970-01-01T00:00:08Z", None));
    }
}
