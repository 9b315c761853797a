//! `logs`: what a container wrote to the files of `dunnage log`.

use super::client::Client;
use super::control;
use super::output;
use super::tail::Tail;
use crate::config::Config;
use crate::{logfile, restart};
use clap::Args;
use protos::services::containers::v1::GetContainerRequest;
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
    follow: bool,
    /// Only what came after this time
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Show the times
    #[arg(short, long)]
    timestamps: bool,
    /// The container
    pub id: String,
}

/// Prints the log, oldest first. Who follows it is done when its container is.
pub async fn logs(
    client: &Client,
    config: &Config,
    namespace: &str,
    args: &Logs,
) -> Result<(), String> {
    let uri = control::log_uri(client, &args.id).await;
    let path = logfile::file_of(&uri).unwrap_or_else(|| logfile::path(config, namespace, &args.id));
    let since = args.since.as_deref().map(output::parse_time).transpose()?;
    let since = since.map(|time| (time.seconds, time.nanos));
    let older = (1..).map(|n| logfile::rotated(&path, n));
    let older: Vec<_> = older.take_while(|file| file.exists()).collect();
    for file in older.iter().rev() {
        print(&mut Tail::open(file)?, since, args.timestamps)?;
    }
    let mut tail = Tail::open(&path)?;
    let mut ended = std::pin::pin!(ended(client, &args.id));
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
        print(&mut tail, since, args.timestamps)?;
        if let Some(next) = next {
            tail = next;
            continue;
        }
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

/// Prints what there is.
fn print(tail: &mut Tail, since: Option<(i64, i32)>, times: bool) -> Result<(), String> {
    while let Some(line) = tail.next()? {
        let entry = logfile::parse(line).filter(|entry| !is_before(&entry.time, since));
        let Some(mut entry) = entry else {
            continue;
        };
        if times {
            let time = format!("{} ", entry.time);
            entry.text.splice(..0, time.into_bytes());
        }
        match entry.is_stderr {
            true => output::write(&mut std::io::stderr(), &entry.text)?,
            false => output::write(&mut std::io::stdout().lock(), &entry.text)?,
        }
    }
    Ok(())
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
