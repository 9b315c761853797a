//! `logs`: what a container wrote to the files of `dunnage log`.

use super::output;
use crate::config::Config;
use clap::Args;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a file is looked at for more.
const LOOK: Duration = Duration::from_millis(200);

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

/// Where the log of a container is that did not say otherwise.
pub fn path(config: &Config, namespace: &str, id: &str) -> PathBuf {
    config
        .root
        .join("logs")
        .join(namespace)
        .join(format!("{id}.json"))
}

/// The file that a log URI of ours names.
fn path_of(uri: &str) -> Option<PathBuf> {
    let (_, query) = uri.split_once("?log=")?;
    Some(PathBuf::from(query))
}

/// Prints the log, oldest first. `uri` is what the container's label says.
pub async fn logs(config: &Config, namespace: &str, uri: &str, args: &Logs) -> Result<(), String> {
    let path = path_of(uri).unwrap_or_else(|| path(config, namespace, &args.id));
    let since = args.since.as_deref().map(output::parse_time).transpose()?;
    let since = since.map(|time| (time.seconds, time.nanos));
    let mut line = String::new();
    let mut old: Vec<PathBuf> = (1..=config.logger.max_files)
        .map(|n| crate::logfile::rotated(&path, n))
        .filter(|path| path.exists())
        .collect();
    old.reverse();
    for file in old {
        let mut reader = open(&file)?;
        copy(&mut reader, &mut line, since, args.timestamps)?;
    }
    let mut reader = open(&path)?;
    loop {
        copy(&mut reader, &mut line, since, args.timestamps)?;
        if !args.follow {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
        // Rotated: the old one is read to its end, and then the new one.
        if let (Ok(new), Ok(now)) = (std::fs::metadata(&path), reader.get_ref().metadata())
            && new.ino() != now.ino()
            && let Ok(next) = open(&path)
        {
            copy(&mut reader, &mut line, since, args.timestamps)?;
            reader = next;
        }
    }
}

fn open(path: &Path) -> Result<BufReader<File>, String> {
    let file = File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(BufReader::new(file))
}

/// Prints what there is. A line that is not whole yet stays in `line`.
fn copy(
    reader: &mut BufReader<File>,
    line: &mut String,
    since: Option<(i64, i32)>,
    times: bool,
) -> Result<(), String> {
    loop {
        reader.read_line(line).map_err(|e| format!("log: {e}"))?;
        if !line.ends_with('\n') {
            return Ok(());
        }
        let entry = crate::logfile::parse(&std::mem::take(line));
        let Some(entry) = entry.filter(|entry| !is_before(&entry.time, since)) else {
            continue;
        };
        let text = match times {
            true => format!("{} {}", entry.time, entry.text),
            false => entry.text,
        };
        let written = match entry.is_stderr {
            true => std::io::stderr().write_all(text.as_bytes()),
            false => std::io::stdout().write_all(text.as_bytes()),
        };
        written.map_err(|e| format!("stdout: {e}"))?;
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
