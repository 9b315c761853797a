// SPDX-License-Identifier: Apache-2.0
//! The part of a container whose files only its own processes see: its tar does it, in an exec.

use super::super::client::Client;
use super::super::exec::run_as_root;
use super::super::stdio::Stdio;
use super::place::Place;
use super::{Source, archive as tar};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::thread;
use tokio::sync::oneshot;

/// How much of what it complains is told.
const COMPLAINTS: u64 = 4096;

/// Writes the source as a tar stream.
pub async fn archive(
    client: &Client,
    id: &str,
    source: &Source,
    out: impl Write + Send + 'static,
) -> Result<(), String> {
    let path = source.path.display().to_string();
    let name = source.name().display().to_string();
    let dir = match source.is_content {
        true => path,
        false => parent(&source.path),
    };
    let form = if source.follow { "-chf" } else { "-cf" };
    run(
        client,
        id,
        &["tar", form, "-", "-C", &dir, "--", &name],
        None::<io::Empty>,
        out,
    )
    .await
}

/// Extracts a tar stream into a directory.
pub async fn extract(
    client: &Client,
    id: &str,
    dir: &Path,
    input: impl Read + Send + 'static,
) -> Result<(), String> {
    let dir = dir.display().to_string();
    run(
        client,
        id,
        &["tar", "-xf", "-", "-C", &dir],
        Some(input),
        io::sink(),
    )
    .await
}

pub async fn is_directory(client: &Client, id: &str, path: &Path) -> Result<bool, String> {
    let path = path.display().to_string();
    let there = run(
        client,
        id,
        &["test", "-d", &path],
        None::<io::Empty>,
        io::sink(),
    )
    .await;
    if there.is_ok() {
        return Ok(true);
    }
    let there = run(
        client,
        id,
        &["test", "-e", &path],
        None::<io::Empty>,
        io::sink(),
    )
    .await;
    there
        .map(|()| false)
        .map_err(|e| match e.contains("exit status 1") {
            true => format!("{id}:{path}: no such file or directory"),
            false => e,
        })
}

/// Copies what the host has, as docker has it.
pub async fn put(
    client: &Client,
    id: &str,
    to: &Path,
    source: Source,
    host: Place,
    is_directory: bool,
) -> Result<(), String> {
    let kind = self::is_directory(client, id, to).await;
    let (dir, name) = match kind {
        Ok(true) if source.is_content && is_directory => (to.display().to_string(), ".".into()),
        Ok(true) => (to.display().to_string(), source.name()),
        Ok(false) if is_directory => {
            return Err(format!(
                "{id}:{}: is no directory, as what is copied",
                to.display()
            ));
        }
        _ => {
            let name = to
                .file_name()
                .ok_or_else(|| format!("{}: is no name", to.display()))?;
            (parent(to), name.into())
        }
    };
    let (read, write) = io::pipe().map_err(|e| e.to_string())?;
    let writing = thread::spawn(move || {
        let written = tar::write(&host, &source.path, source.follow, &name, write);
        written.map_err(|e| format!("{}: {e}", source.path.display()))
    });
    let extracted = extract(client, id, Path::new(&dir), read).await;
    let written = writing
        .join()
        .unwrap_or_else(|_| Err("its copy ended".into()));
    extracted.and(written)
}

fn parent(path: &Path) -> String {
    let parent = path.parent().unwrap_or(Path::new("/"));
    parent.display().to_string()
}

/// Runs it in the container, with these as stdin and stdout.
async fn run(
    client: &Client,
    id: &str,
    command: &[&str],
    input: Option<impl Read + Send + 'static>,
    mut out: impl Write + Send + 'static,
) -> Result<(), String> {
    let stdio = Stdio::new(input.is_some(), false)?;
    let (path, stderr, stdin) = (
        stdio.stdout.clone(),
        stdio.stderr.clone(),
        stdio.stdin.clone(),
    );
    let copying = thread::spawn(move || {
        let mut fifo = File::open(path)?;
        let copied = io::copy(&mut fifo, &mut out).and_then(|_| out.flush());
        // Read to its end, so that the process gets to its own.
        let _ = io::copy(&mut fifo, &mut io::sink());
        copied
    });
    let complaining = thread::spawn(move || {
        let mut said = Vec::new();
        let mut fifo = File::open(stderr)?;
        Read::by_ref(&mut fifo)
            .take(COMPLAINTS)
            .read_to_end(&mut said)?;
        io::copy(&mut fifo, &mut io::sink())?;
        Ok::<_, io::Error>(said)
    });
    let input_ended = input.map(|mut input| {
        let (done, ended) = oneshot::channel();
        thread::spawn(move || {
            let fifo = OpenOptions::new().write(true).open(stdin);
            let _ = fifo.and_then(|mut fifo| io::copy(&mut input, &mut fifo));
            let _ = done.send(());
        });
        ended
    });
    let words: Vec<String> = command.iter().map(|&word| word.to_owned()).collect();
    // Without it nobody opens the other ends: then the threads end with us.
    let status = run_as_root(client, id, &words, &stdio, input_ended).await?;
    let failed = |e: io::Error| format!("{id}: {}: {e}", command[0]);
    let copied = copying.join().unwrap_or(Ok(())).map_err(failed);
    let said = complaining
        .join()
        .unwrap_or_else(|_| Ok(Vec::new()))
        .map_err(failed)?;
    if status == 0 {
        return copied;
    }
    let said = String::from_utf8_lossy(&said);
    Err(format!(
        "{id}: {}: exit status {status}: {}",
        command[0],
        said.trim()
    ))
}
