// SPDX-License-Identifier: Apache-2.0
//! Images out of files: an OCI layout, as a directory or an archive, or what `docker save` writes.

use crate::digest::Digest;
use crate::failure::{Failure, Result, refused};
use crate::files::Files;
use crate::manifest::{self, Found, MOST, Part, Source};
use crate::store::Image;
use oci_spec::image::{Descriptor, ImageIndex};
use serde::Deserialize;
use std::collections::HashMap;
use std::io::Read;

/// What an index calls an image by, containerd's and OCI's own.
const NAMES: [&str; 2] = [
    "io.containerd.image.name",
    "org.opencontainers.image.ref.name",
];

/// An entry of the `manifest.json` that `docker save` writes.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// All images that are there.
///
/// # Errors
/// What names the file in it that is not as it should be.
pub fn all(files: &mut Files) -> Result<Vec<Found>> {
    // Docker's newer archives are both; this one has the digests.
    if files.content("oci-layout", MOST)?.is_some() {
        return layout(files);
    }
    match files.content("manifest.json", MOST)? {
        Some(json) => {
            let all: Vec<Saved> = manifest::parse("manifest.json", &json)?;
            all.iter().map(|one| saved(files, one)).collect()
        }
        None => {
            let why = "neither an OCI layout nor what `docker save` writes: it has no oci-layout \
                       and no manifest.json";
            Err(refused("image", why))
        }
    }
}

fn layout(files: &mut Files) -> Result<Vec<Found>> {
    let json = files.content("index.json", MOST)?;
    let json = json.ok_or_else(|| refused("index.json", "it is not there"))?;
    let index: ImageIndex = manifest::parse("index.json", &json)?;
    let mut found: Vec<Found> = Vec::new();
    for descriptor in index.manifests() {
        let name = match name_of(descriptor) {
            Some(text) => Some(manifest::name(&text)?),
            None => None,
        };
        let image = manifest::resolve(files, descriptor);
        let mut image = match image {
            // One of many without a name is for some machine.
            Err(Failure::Refused { .. }) if name.is_none() && !is_for_us(descriptor) => continue,
            image => image?,
        };
        match found.iter_mut().find(|it| it.digest == image.digest) {
            Some(known) => known.names.extend(name),
            None => {
                image.names.extend(name);
                found.push(image);
            }
        }
    }
    if found.is_empty() {
        return Err(refused("index.json", "it names no image for this machine"));
    }
    Ok(found)
}

fn is_for_us(descriptor: &Descriptor) -> bool {
    descriptor.platform().is_none()
}

fn name_of(descriptor: &Descriptor) -> Option<String> {
    let all: &HashMap<String, String> = descriptor.annotations().as_ref()?;
    NAMES.iter().find_map(|key| all.get(*key)).cloned()
}

fn saved(files: &Files, saved: &Saved) -> Result<Found> {
    let config = files.content(&saved.config, MOST)?;
    let config = config.ok_or_else(|| refused(&saved.config, "it is not there"))?;
    let id = Digest::of(&config);
    // The name says what it is, in either of Docker's ways.
    let told = saved.config.trim_end_matches(".json");
    let told = told.rsplit('/').next().unwrap_or(told);
    if told != id.hex() {
        return Err(refused(
            &saved.config,
            format!("damaged: its digest is {id}"),
        ));
    }
    let names = saved.repo_tags.iter().flatten();
    let part = |place: &String| Part {
        place: place.clone(),
        blob: None,
    };
    Ok(Found {
        names: names
            .map(|text| manifest::name(text))
            .collect::<Result<_>>()?,
        digest: None,
        config,
        parts: saved.layers.iter().map(part).collect(),
    })
}

impl Source for Files {
    fn open(&mut self, part: &Part) -> Result<Box<dyn Read>> {
        let name = match &part.blob {
            Some((digest, _)) => blob(digest),
            None => part.place.clone(),
        };
        let found = self.find(&name)?;
        let (file, size) = found.ok_or_else(|| refused(&name, "it is not there"))?;
        match &part.blob {
            Some((_, told)) if *told != size => {
                Err(refused(&name, format!("it has {size} bytes, not {told}")))
            }
            _ => Ok(file),
        }
    }

    fn read(&mut self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let name = blob(&Digest::parse(descriptor.digest().as_ref())?);
        let read = self.content(&name, MOST)?;
        read.ok_or_else(|| refused(&name, "it is not there"))
    }
}

fn blob(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// How an image is called in a line.
pub fn shown(image: &Image) -> String {
    match &image.names[..] {
        [] => image.id.to_string(),
        names => names.join(", "),
    }
}
