//! `logs`: what a container wrote to the files of `dunnage log`.

use super::output;
use crate::config::Config;
use clap::Args;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
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
    let since = since.map(|time| output::time(Some(time)));
    let mut old: Vec<PathBuf> = (1..=config.logger.max_files)
        .map(|n| crate::logfile::rotated(&path, n))
        .filter(|path| path.exists())
        .collect();
    old.reverse();
    for file in old {
        let mut reader = open(&file)?;
        copy(&mut reader, since.as_deref(), args.timestamps)?;
    }
    let mut reader = open(&path)?;
    loop {
        copy(&mut reader, since.as_deref(), args.timestamps)?;
        if !args.follow {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
        // Rotated: what is left of the old one has just been read.
        if let (Ok(new), Ok(now)) = (std::fs::metadata(&path), reader.get_ref().metadata())
            && std::os::unix::fs::MetadataExt::ino(&new)
                != std::os::unix::fs::MetadataExt::ino(&now)
        {
            copy(&mut reader, since.as_deref(), args.timestamps)?;
            reader = open(&path)?;
        }
    }
}

fn open(path: &Path) -> Result<BufReader<File>, String> {
    let file = File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(BufReader::new(file))
}

fn copy(reader: &mut BufReader<File>, since: Option<&str>, times: bool) -> Result<(), String> {
    let mut line = String::new();
    loop {
        line.clear();
        match reader.read_line(&mut line) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(e) => return Err(format!("log: {e}")),
        }
        let Some(entry) = crate::logfile::parse(&line) else {
            continue;
        };
        if since.is_some_and(|since| entry.time.as_str() < since) {
            continue;
        }
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
