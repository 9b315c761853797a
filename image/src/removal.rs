// SPDX-License-Identifier: Apache-2.0
//! What goes: names, images that nothing needs, and layers that no image and no container has.

use crate::digest::Digest;
use crate::failure::{Failure, Result, io, refused};
use crate::reference;
use crate::store::{self, Exclusive, Image, Images, Store};
use crate::work;
use protos::Message;
use protos::services::containers::v1::Container;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// What the manager has in a container's record that is made of an image.
const EXTENSION: &str = "io.dunnage.image";

/// The same, as far as it is read here.
#[derive(Debug, Deserialize)]
struct Made {
    id: Digest,
    layers: Vec<String>,
}

/// What containers use.
#[derive(Default)]
struct Used {
    /// Images, and a container of each.
    images: BTreeMap<Digest, String>,
    layers: BTreeSet<String>,
}

/// What was removed.
#[derive(Default)]
pub struct Removed {
    pub names: Vec<String>,
    pub images: Vec<Digest>,
    /// Bytes of the layers' archives.
    pub bytes: u64,
}

/// Removes names, and images without any; of a text that begins an image's id, all its names.
///
/// # Errors
/// `NoImage`; what names a container that has the image. Nothing is removed then.
pub fn remove(store: &Store, texts: &[String]) -> Result<Removed> {
    if !store.is_there() {
        let name = texts.first().cloned().unwrap_or_default();
        return Err(Failure::NoImage(name));
    }
    let owned = store.own()?;
    let mut images = store.read()?;
    let used = used(store)?;
    let mut removed = Removed::default();
    for text in texts {
        let (image, name) = reference::find(&images, text)?;
        let id = image.id.clone();
        let many = image.names.len() > 1;
        for image in images.images.iter_mut().filter(|image| image.id == id) {
            match &name {
                // A further name of it goes whoever uses the image.
                Some(name) if many => {
                    image.names.retain(|known| known != name);
                    removed.names.push(name.clone());
                }
                _ => removed.names.append(&mut image.names),
            }
        }
        let bare = |image: &Image| image.id == id && image.names.is_empty();
        if images.images.iter().any(bare) {
            if let Some(container) = used.images.get(&id) {
                return Err(refused(text, format!("container {container} uses it")));
            }
            images.images.retain(|image| image.id != id);
            removed.images.push(id);
        }
    }
    store.write(&images, &owned)?;
    removed.bytes = sweep(store, &images, &used, &owned)?;
    Ok(removed)
}

/// Removes images without a name that no container uses, or `all` that none does, and what failed
/// programs left.
///
/// # Errors
/// From the file system, and if a container's record can't be read.
pub fn prune(store: &Store, all: bool) -> Result<Removed> {
    if !store.is_there() {
        return Ok(Removed::default());
    }
    let owned = store.own()?;
    work::clean(store, &owned)?;
    let mut images = store.read()?;
    let used = used(store)?;
    let stays =
        |image: &Image| used.images.contains_key(&image.id) || !(all || image.names.is_empty());
    let (stay, go) = images.images.into_iter().partition(stays);
    images = Images { images: stay };
    let mut removed = Removed::default();
    for image in go {
        let image: Image = image;
        removed.names.extend(image.names);
        removed.images.push(image.id);
    }
    store.write(&images, &owned)?;
    removed.bytes = sweep(store, &images, &used, &owned)?;
    Ok(removed)
}

/// Removes the layers that nobody has: after a program has failed.
///
/// # Errors
/// As [`prune`].
pub fn sweep_layers(store: &Store) -> Result<()> {
    let owned = store.own()?;
    let images = store.read()?;
    sweep(store, &images, &used(store)?, &owned).map(drop)
}

/// Removes layers and configurations that nobody has; the bytes of them.
fn sweep(store: &Store, images: &Images, used: &Used, owned: &Exclusive) -> Result<u64> {
    let mut needed: BTreeSet<String> = used.layers.clone();
    let chains = images.images.iter().flat_map(|image| &image.chains);
    needed.extend(chains.map(|chain| store::key(chain).to_owned()));
    for chain in work::counted_on(store, owned)? {
        needed.insert(store::key(&Digest::parse(&chain)?).to_owned());
    }
    let mut bytes = 0;
    for key in store.layers()? {
        if needed.contains(&key) {
            continue;
        }
        let path = store.layer_of_key(&key);
        let told = fs::read(path.join("layer.json")).unwrap_or_default();
        let layer: Option<store::Layer> = serde_json::from_slice(&told).ok();
        bytes += layer.map_or(0, |layer| layer.size);
        // It is no layer any more before anything of it goes.
        let gone = store.tmp().join(format!("gone-{key}"));
        fs::rename(&path, &gone).map_err(io(path.display()))?;
        fs::remove_dir_all(&gone).map_err(io(gone.display()))?;
    }
    let known: BTreeSet<&str> = images.images.iter().map(|image| image.id.hex()).collect();
    for hex in store.configs()? {
        if !known.contains(hex.as_str()) {
            let path = store.config_of_hex(&hex);
            fs::remove_file(&path).map_err(io(path.display()))?;
        }
    }
    Ok(bytes)
}

/// What all records of containers say, of every namespace.
fn used(store: &Store) -> Result<Used> {
    let mut used = Used::default();
    for namespace in entries(&store.containers)? {
        for record in entries(&namespace)? {
            if record.extension().is_none_or(|it| it != "pb") {
                continue;
            }
            let damaged = |e: &dyn std::fmt::Display| {
                refused(
                    record.display(),
                    format!("damaged, so nothing is removed: {e}"),
                )
            };
            let bytes = match fs::read(&record) {
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                bytes => bytes.map_err(io(record.display()))?,
            };
            let container = Container::decode(bytes.as_slice()).map_err(|e| damaged(&e))?;
            if container.id.is_empty() {
                return Err(damaged(&"it is empty"));
            }
            if let Some(any) = container.extensions.get(EXTENSION) {
                let made: Made = serde_json::from_slice(&any.value).map_err(|e| damaged(&e))?;
                used.images.insert(made.id, container.id);
                used.layers.extend(made.layers);
            }
        }
    }
    Ok(used)
}

fn entries(dir: &Path) -> Result<Vec<std::path::PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        entries => entries.map_err(io(dir.display()))?,
    };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    Ok(paths.collect())
}
