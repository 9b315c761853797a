// SPDX-License-Identifier: Apache-2.0
//! `dunnage-image`: images of containers, out of registries and files, as layers for overlays.
//!
//! `dunnage` runs it; it is a program of its own so that nothing of registries and archives is ever in
//! the manager's memory.

mod chosen;
mod digest;
mod failure;
mod files;
mod install;
mod layer;
mod load;
mod manifest;
mod output;
mod reference;
mod registry;
mod removal;
mod store;
mod tarball;
mod work;

use chosen::Chosen;
use clap::{Parser, Subcommand};
use failure::{Failure, Result, refused};
use files::Files;
use output::Output;
use registry::Registries;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use store::Store;
use work::Work;

/// What nothing was done with, as docker and podman have it.
const NOT_DONE: u8 = 125;

/// Images of containers; `dunnage image` runs it.
#[derive(Debug, Parser)]
#[command(name = "dunnage-image", version)]
struct Args {
    /// The manager's root
    #[arg(long, value_name = "DIR")]
    root: PathBuf,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load what is in a file or directory
    Load {
        file: PathBuf,
        /// What the image is called
        #[arg(long)]
        name: Option<String>,
    },
    /// Get one from a registry
    Pull {
        name: String,
        /// A registry without TLS
        #[arg(long, value_name = "HOST")]
        plain_http: Vec<String>,
        /// Where a registry's images are, too
        #[arg(long, value_name = "REGISTRY=HOST", value_parser = mirror)]
        mirror: Vec<(String, String)>,
    },
    /// List them
    Ls {
        #[arg(short, long)]
        quiet: bool,
    },
    /// Remove names, and images without any
    Rm {
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Remove what nothing needs
    Prune {
        #[arg(short, long)]
        all: bool,
    },
    /// Tell what a container of an image is made of, and hold it until stdin ends
    Choose { image: String },
}

fn mirror(text: &str) -> std::result::Result<(String, String), String> {
    let (of, mirror) = text.split_once('=').ok_or("not REGISTRY=HOST")?;
    Ok((of.to_owned(), mirror.to_owned()))
}

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(e) => {
            let code = if e.use_stderr() { NOT_DONE } else { 0 };
            let _ = e.print();
            return ExitCode::from(code);
        }
    };
    let mut output = Output::new(args.json);
    match args.obey(&mut output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            output::complain(&e.to_string());
            ExitCode::from(NOT_DONE)
        }
    }
}

impl Args {
    fn obey(&self, output: &mut Output) -> Result<()> {
        let store = Store::at(&self.root);
        match &self.command {
            Command::Load { file, name } => load(&store, file, name.as_deref(), output),
            Command::Pull {
                name,
                plain_http,
                mirror,
            } => {
                let registries = Registries {
                    plain_http: plain_http.clone(),
                    mirrors: mirror.clone(),
                };
                pull(&store, name, &registries, output)
            }
            Command::Ls { quiet } => {
                let _shared = store.share()?;
                output.images(&store.read()?, *quiet);
                Ok(())
            }
            Command::Rm { images } => {
                output.removed(&removal::remove(&store, images)?);
                Ok(())
            }
            Command::Prune { all } => {
                let removed = removal::prune(&store, *all)?;
                output.removed(&removed);
                output.freed(removed.bytes);
                Ok(())
            }
            Command::Choose { image } => choose(&store, image, output),
        }
    }
}

fn load(store: &Store, file: &Path, name: Option<&str>, output: &mut Output) -> Result<()> {
    let name = name.map(|text| reference::whole(text).map_err(|e| e.of(&"--name")));
    let name = name.transpose()?;
    // Before anything is made.
    if file != Path::new("-") {
        std::fs::metadata(file).map_err(failure::io(file.display()))?;
    }
    store.prepare()?;
    let work = Work::begin(store)?;
    let loaded = load_all(store, &work, file, name, output);
    undone(store, work, loaded)
}

fn load_all(
    store: &Store,
    work: &Work,
    file: &Path,
    name: Option<String>,
    output: &mut Output,
) -> Result<()> {
    let of_file = |e: Failure| e.of(&file.display());
    let mut files = Files::open(file, &work.dir.join("archive"))?;
    let mut all = load::all(&mut files).map_err(of_file)?;
    match (name, &mut all[..]) {
        (Some(name), [one]) => one.names = vec![name],
        (Some(_), many) => {
            let why = format!("{} has {} images", file.display(), many.len());
            return Err(refused("--name", why));
        }
        _ => {}
    }
    for found in &all {
        let image = install::install(store, work, &mut files, found).map_err(of_file)?;
        output.installed(&image);
    }
    Ok(())
}

fn pull(store: &Store, text: &str, from: &Registries, output: &mut Output) -> Result<()> {
    let name = reference::parse(text)?;
    store.prepare()?;
    let work = Work::begin(store)?;
    let mut pulled = || {
        let (mut found, mut source) = from.find(&name, work.dir.join("blob"))?;
        // What is asked for by its digest has no name that could lead elsewhere later.
        found.names = match name.digest() {
            Some(_) => Vec::new(),
            None => vec![name.whole()],
        };
        let image = install::install(store, &work, &mut *source, &found);
        output.installed(&image.map_err(|e| e.of(&name))?);
        Ok(())
    };
    let pulled = pulled();
    undone(store, work, pulled)
}

/// Takes away what was made for nothing.
fn undone(store: &Store, work: Work, done: Result<()>) -> Result<()> {
    drop(work);
    if done.is_err()
        && let Err(e) = removal::sweep_layers(store)
    {
        output::complain(&e.to_string());
    }
    done
}

fn choose(store: &Store, image: &str, output: &mut Output) -> Result<()> {
    let shared = store.share()?;
    let chosen = match Chosen::find(store, &store.read()?, image) {
        Err(Failure::NoImage(_)) => None,
        chosen => Some(chosen?),
    };
    let json = serde_json::to_string(&chosen).map_err(|e| refused(image, e))?;
    output.line(&json);
    // Until whoever asked has made a container of it, or is gone.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    drop(shared);
    Ok(())
}
