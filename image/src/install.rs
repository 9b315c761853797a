// SPDX-License-Identifier: Apache-2.0
//! An image gets into the store: its layers one after the other, and itself when all are there.
//!
//! ```text
//!  count on its layers ─> each that is not there: unpack in our place, verify, rename ─> list it
//! ```
//! A program that is killed on the way leaves whole layers, with which the next one goes on, and a
//! place that the next one removes. One that fails takes away what it made.

use crate::digest::Digest;
use crate::failure::{Result, io, refused};
use crate::layer::{self, Expected};
use crate::manifest::{self, Found, Part, Source};
use crate::store::{self, Image, Layer, Store};
use crate::work::Work;
use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;

/// Installs `found`, whose content comes from `source`.
///
/// # Errors
/// Whatever is wrong with it. Its layers may be there then.
pub fn install(
    store: &Store,
    work: &Work,
    source: &mut dyn Source,
    found: &Found,
) -> Result<Image> {
    let id = Digest::of(&found.config);
    let (config, diffs) = manifest::diffs(&id, &found.config)?;
    if diffs.len() != found.parts.len() {
        let why = format!(
            "{} layers, and diff_ids of {}",
            found.parts.len(),
            diffs.len()
        );
        return Err(refused(&id, why));
    }
    let chains = store::chains(&diffs);
    work.count_on(store, &chains)?;
    let mut size = 0;
    for (at, (part, diff)) in found.parts.iter().zip(&diffs).enumerate() {
        let known = store.find_layer(&chains[at])?;
        let layer = match known {
            Some(layer) => layer,
            None => add_layer(store, work, source, part, diff, &chains[..=at])
                .map_err(|e| e.of(&format!("layer {} of {}", at + 1, diffs.len())))?,
        };
        size += layer.size;
    }
    let image = Image {
        id,
        digest: found.digest.clone(),
        names: found.names.clone(),
        chains,
        size,
        created: config.created().clone().unwrap_or_default(),
    };
    list(store, image, &found.config)
}

/// Unpacks and verifies the last of `chains`, above the others.
fn add_layer(
    store: &Store,
    work: &Work,
    source: &mut dyn Source,
    part: &Part,
    diff: &Digest,
    chains: &[Digest],
) -> Result<Layer> {
    let Some((chain, below)) = chains.split_last() else {
        return Err(refused(diff, "no chain"));
    };
    let new = work.dir.join("layer");
    let failed = || io(new.display());
    let _ = fs::remove_dir_all(&new);
    let mut builder = DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(new.join("fs"));
    made.map_err(failed())?;
    let blob = source.open(part)?;
    let expected = Expected {
        blob: part.blob.as_ref().map(|(digest, size)| (digest, *size)),
        diff,
    };
    let below: Vec<_> = below.iter().map(|it| store.layer(it).join("fs")).collect();
    let unpacked = layer::unpack(blob, &expected, &new.join("fs"), &below)?;
    let layer = Layer {
        chain: chain.clone(),
        size: unpacked.size,
        covers: unpacked.covers,
    };
    let json = serde_json::to_vec(&layer).map_err(|e| refused(diff, e))?;
    store::replace(&new.join("layer.json"), &json)?;
    // What has its name is whole, also after a power loss.
    let dir = File::open(&new).map_err(failed())?;
    nix::unistd::syncfs(&dir).map_err(io(new.display()))?;
    match fs::rename(&new, store.layer(chain)) {
        // Somebody else was faster, with the same.
        Err(e)
            if matches!(
                e.kind(),
                ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists
            ) =>
        {
            fs::remove_dir_all(&new).map_err(failed())?;
        }
        renamed => renamed.map_err(failed())?,
    }
    Ok(layer)
}

/// Writes down an image whose layers are there. Its names are no other's from now on.
fn list(store: &Store, image: Image, config: &[u8]) -> Result<Image> {
    let owned = store.own()?;
    let mut images = store.read()?;
    for chain in &image.chains {
        if store.find_layer(chain)?.is_none() {
            return Err(refused(chain, "this layer was removed meanwhile"));
        }
    }
    let path = store.config(&image.id);
    store::replace(&path, config)?;
    for other in &mut images.images {
        other.names.retain(|name| !image.names.contains(name));
    }
    let known = images.images.iter_mut().find(|it| it.id == image.id);
    let listed = match known {
        Some(known) => {
            known.names.extend(image.names);
            known.digest = image.digest.or(known.digest.take());
            known.clone()
        }
        None => {
            images.images.push(image.clone());
            image
        }
    };
    store.write(&images, &owned)?;
    Ok(listed)
}
