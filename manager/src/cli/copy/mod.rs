// SPDX-License-Identifier: Apache-2.0
//! `cp`: files between a container and the host, or a tar stream.
//!
//! ```text
//!  source ── archive.rs ── tar ──┬── extract.rs ── target
//!   a place: a container's root,  │                 a place
//!   or the host's                 └── stdout, or from stdin
//! ```
//! A container that runs in a VM, or whose root we may not see, is asked to do its part by its own tar.

mod archive;
mod extract;
mod inside;
mod place;

use super::client::Client;
use super::control::{container, state};
use super::show;
use clap::Args;
use extract::Target;
use place::{Kind, Place};
use protos::task_types::Status;
use serde_json::Value;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};

#[derive(Debug, Args)]
pub struct Copy {
    /// Keep owners, and bits such as setuid
    #[arg(long)]
    archive: bool,
    /// Copy what a link as the source leads to
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// ID:PATH, PATH, or - for a tar stream
    from: OsString,
    /// ID:PATH, PATH, or - for a tar stream
    to: OsString,
}

/// One side of it.
enum Side {
    Stream,
    Host(PathBuf),
    Container(String, PathBuf),
}

fn side(text: &OsString) -> Side {
    if text == "-" {
        return Side::Stream;
    }
    let path = PathBuf::from(text);
    match text.to_str().and_then(|text| text.split_once(':')) {
        Some((id, rest)) if !id.is_empty() && !id.contains('/') && !id.starts_with('.') => {
            Side::Container(id.to_owned(), Path::new("/").join(rest))
        }
        _ => Side::Host(path),
    }
}

/// Copies.
pub async fn copy(client: &Client, args: &Copy) -> Result<(), String> {
    match (side(&args.from), side(&args.to)) {
        (Side::Container(id, path), Side::Stream) => {
            let source = Source::of(&path, args.follow_link);
            match place_of(client, &id, &path).await? {
                Some(place) => source.write(&place, io::stdout())?,
                None => inside::archive(client, &id, &source, io::stdout()).await?,
            }
            Ok(())
        }
        (Side::Stream, Side::Container(id, path)) => {
            let place = place_of(client, &id, &path).await?;
            let Some(place) = place else {
                return inside::extract(client, &id, &path, io::stdin()).await;
            };
            let failed = |e: io::Error| format!("{id}:{}: {e}", path.display());
            if place.kind(&path, true).map_err(failed)? != Some(Kind::Directory) {
                return Err(format!("{id}:{}: not a directory", path.display()));
            }
            let target = Target::container(place, path.clone(), args.archive);
            target.extract(io::stdin(), None)
        }
        (Side::Container(id, from), Side::Host(to)) => {
            let source = Source::of(&from, args.follow_link);
            let host = Place::host().map_err(|e| e.to_string())?;
            let to_path = absolute(&to)?;
            let place = place_of(client, &id, &from).await?;
            let is_directory = match &place {
                Some(place) => source.is_directory(place)?,
                None => inside::is_directory(client, &id, &source.path).await?,
            };
            let (dir, name) = landing(&host, &to_path, &to, &source, is_directory)?;
            let dir = host
                .open_directory(&dir)
                .map_err(|e| format!("{}: {e}", dir.display()))?;
            let target = Target::host(dir, args.archive);
            match place {
                Some(place) => piped(move |out| source.write(&place, out), &target, &name),
                None => {
                    let (read, write) = io::pipe().map_err(|e| e.to_string())?;
                    let extracting = std::thread::spawn(move || target.extract(read, Some(&name)));
                    let archived = inside::archive(client, &id, &source, write).await;
                    let extracted = extracting
                        .join()
                        .unwrap_or_else(|_| Err("its copy ended".into()));
                    // What could not be written is why the rest could not be read.
                    extracted.and(archived)
                }
            }
        }
        (Side::Host(from), Side::Container(id, to)) => {
            let host = Place::host().map_err(|e| e.to_string())?;
            let source = Source::of(&absolute(&from)?, args.follow_link);
            let is_directory = source.is_directory(&host)?;
            let Some(place) = place_of(client, &id, &to).await? else {
                return inside::put(client, &id, &to, source, host, is_directory).await;
            };
            let (dir, name) = landing(&place, &to, &to, &source, is_directory)
                .map_err(|e| format!("{id}: {e}"))?;
            let target = Target::container(place, dir, args.archive);
            piped(move |out| source.write(&host, out), &target, &name)
        }
        (Side::Host(_), Side::Host(_)) => Err("neither side is a container's: ID:PATH".into()),
        (Side::Stream, _) | (_, Side::Stream) => {
            Err("a stream goes to a container, or comes from one: ID:PATH".into())
        }
        (Side::Container(..), Side::Container(..)) => {
            Err("from container to container: not in one go; copy to the host first".into())
        }
    }
}

/// Has one thread write what another extracts.
fn piped(
    write: impl FnOnce(io::PipeWriter) -> Result<(), String> + Send + 'static,
    target: &Target,
    name: &Path,
) -> Result<(), String> {
    let (reader, writer) = io::pipe().map_err(|e| e.to_string())?;
    let writing = std::thread::spawn(move || write(writer));
    let extracted = target.extract(reader, Some(name));
    let written = writing
        .join()
        .unwrap_or_else(|_| Err("its copy ended".into()));
    // What could not be read is why the rest could not be written.
    extracted.and(written)
}

/// What is copied.
pub struct Source {
    path: PathBuf,
    follow: bool,
    /// Not the directory itself, but what is in it.
    is_content: bool,
}

impl Source {
    fn of(path: &Path, follow: bool) -> Self {
        use std::os::unix::ffi::OsStrExt;
        let bytes = path.as_os_str().as_bytes();
        Self {
            path: path.to_owned(),
            // A slash at the end goes through a link, as everywhere.
            follow: follow || bytes.ends_with(b"/") || bytes.ends_with(b"/."),
            is_content: bytes.ends_with(b"/."),
        }
    }

    /// What it is called in a stream.
    fn name(&self) -> PathBuf {
        let name = self.path.file_name().filter(|_| !self.is_content);
        name.map_or_else(|| ".".into(), PathBuf::from)
    }

    fn is_directory(&self, place: &Place) -> Result<bool, String> {
        let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", self.path.display());
        match place
            .kind(&self.path, self.follow)
            .map_err(|e| failed(&e))?
        {
            None => Err(failed(&"no such file or directory")),
            Some(kind) => Ok(kind == Kind::Directory),
        }
    }

    fn write(&self, place: &Place, out: impl Write) -> Result<(), String> {
        let written = archive::write(place, &self.path, self.follow, &self.name(), out);
        written.map_err(|e| format!("{}: {e}", self.path.display()))
    }
}

/// Where a copy lands, as docker has it: the directory, and its name there; `.` is that itself.
fn landing(
    place: &Place,
    to: &Path,
    said: &Path,
    source: &Source,
    is_directory: bool,
) -> Result<(PathBuf, PathBuf), String> {
    use std::os::unix::ffi::OsStrExt;
    let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", to.display());
    let own_name = if source.is_content && is_directory {
        ".".into()
    } else {
        source.name()
    };
    let kind = place.kind(to, true).map_err(|e| failed(&e))?;
    let is_meant_as_directory = said.as_os_str().as_bytes().ends_with(b"/");
    match kind {
        Some(Kind::Directory) => Ok((to.to_owned(), own_name)),
        Some(_) if is_directory => Err(failed(&"is no directory, as what is copied")),
        Some(_) if is_meant_as_directory => Err(failed(&"not a directory")),
        None if is_meant_as_directory && !is_directory => Err(failed(&"no such directory")),
        Some(_) | None => {
            // Of a link, what it leads to.
            let end = place.end_of_links(to).map_err(|e| failed(&e))?;
            let parent = end.parent().unwrap_or(Path::new("/"));
            match place.kind(parent, true).map_err(|e| failed(&e))? {
                Some(Kind::Directory) => {}
                _ => return Err(format!("{}: no such directory", parent.display())),
            }
            let name = end.file_name().ok_or_else(|| failed(&"is no name"))?;
            Ok((parent.to_owned(), name.into()))
        }
    }
}

fn absolute(path: &Path) -> Result<PathBuf, String> {
    let dir = std::env::current_dir().map_err(|e| e.to_string())?;
    Ok(dir.join(path))
}

/// The container's root; none if it is to be asked from inside.
async fn place_of(client: &Client, id: &str, path: &Path) -> Result<Option<Place>, String> {
    let container = container(client, id).await?;
    let init = async || {
        let task = state(client, id).await.ok();
        task.filter(|it| it.status != Status::Stopped as i32)
            .map(|it| it.pid)
    };
    let Some(pid) = init().await else {
        let spec = container.spec.unwrap_or_default().value;
        let spec = task::json::read_first::<Value>(&spec).unwrap_or_default();
        return at_rest(&spec, path)
            .map(Some)
            .map_err(|e| format!("{id}: {e}"));
    };
    if show::is_in_vm(client, id).await? {
        return Ok(None);
    }
    match Place::of_process(pid) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(None),
        Err(e) => Err(format!("{id}: its root: {e}")),
        // Now it is known whose that is.
        Ok(place) if init().await == Some(pid) => Ok(Some(place)),
        Ok(_) => Err(format!("{id} has ended")),
    }
}

/// The root filesystem of a container that does not run.
fn at_rest(spec: &Value, path: &Path) -> Result<Place, String> {
    let root = Path::new(spec["root"]["path"].as_str().unwrap_or_default());
    if root.is_relative() {
        return Err("it does not run, and has its root filesystem only while it does".into());
    }
    let mut plain = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::ParentDir => drop(plain.pop()),
            Component::Normal(name) => plain.push(name),
            _ => {}
        }
    }
    let mounts = spec["mounts"].as_array().into_iter().flatten();
    let mut targets = mounts.filter_map(|mount| mount["destination"].as_str());
    if let Some(target) = targets.find(|target| plain.starts_with(target)) {
        return Err(format!(
            "{target} is a mount, which is there only while it runs"
        ));
    }
    Place::directory(root).map_err(|e| format!("{}: {e}", root.display()))
}
