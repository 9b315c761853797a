// SPDX-License-Identifier: Apache-2.0
//! What is said of an image: which of several it is, its configuration, and its layers' blobs.

use crate::digest::Digest;
use crate::failure::{Result, refused};
use oci_client::Reference;
use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};
use serde::de::DeserializeOwned;
use std::io::Read;

/// Bytes of a manifest or a configuration, at most: registries take no more of the first (OCI
/// distribution spec, "Pushing Manifests").
pub const MOST: u64 = 4 << 20;
/// Indexes in indexes, at most.
const DEEPEST: u32 = 3;

/// A layer, where it comes from.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its name there: a blob's is its digest.
    pub place: String,
    /// What is said of the blob.
    pub blob: Option<(Digest, u64)>,
}

/// An image that can be had.
pub struct Found {
    pub names: Vec<String>,
    /// Of its manifest.
    pub digest: Option<Digest>,
    /// Its configuration as it is.
    pub config: Vec<u8>,
    pub parts: Vec<Part>,
}

/// Where content comes from.
pub trait Source {
    /// What `place` calls, of which somebody says that it has `size` bytes.
    ///
    /// # Errors
    /// If it can't be had.
    fn open(&mut self, part: &Part) -> Result<Box<dyn Read>>;

    /// The content of a descriptor that is small.
    ///
    /// # Errors
    /// If it can't be had.
    fn read(&mut self, descriptor: &Descriptor) -> Result<Vec<u8>>;
}

/// The content of `descriptor`, which is what it says.
pub fn content(source: &mut dyn Source, descriptor: &Descriptor) -> Result<(Digest, Vec<u8>)> {
    let digest = Digest::parse(descriptor.digest().as_ref())?;
    if descriptor.size() > MOST {
        let why = format!("{} bytes, {MOST} are the most", descriptor.size());
        return Err(refused(digest, why));
    }
    let bytes = source.read(descriptor)?;
    let found = Digest::of(&bytes);
    match found == digest {
        true => Ok((digest, bytes)),
        false => Err(refused(&digest, format!("damaged: its digest is {found}"))),
    }
}

/// # Errors
/// What names it, if it is not such JSON.
pub fn parse<T: DeserializeOwned>(what: impl std::fmt::Display, json: &[u8]) -> Result<T> {
    serde_json::from_slice(json).map_err(|e| refused(what, e))
}

/// The image for this machine that `descriptor` is of, or one of those that it lists.
///
/// # Errors
/// If there is none, or it is not what it should be.
pub fn resolve(source: &mut dyn Source, descriptor: &Descriptor) -> Result<Found> {
    resolve_below(source, descriptor, 0)
}

fn resolve_below(source: &mut dyn Source, descriptor: &Descriptor, depth: u32) -> Result<Found> {
    let (digest, json) = content(source, descriptor)?;
    let kind: serde_json::Value = parse(&digest, &json)?;
    if kind.get("manifests").is_some() {
        if depth == DEEPEST {
            return Err(refused(&digest, "an index in an index in an index"));
        }
        let index: ImageIndex = parse(&digest, &json)?;
        let chosen = choose(index.manifests()).map_err(|e| e.of(&digest))?;
        return resolve_below(source, chosen, depth + 1);
    }
    if kind["schemaVersion"] == 1 || kind.get("fsLayers").is_some() {
        let why = "a manifest of schema 1, which Docker has given up; push the image anew";
        return Err(refused(&digest, why));
    }
    let manifest: ImageManifest = parse(&digest, &json)?;
    let (_, config) = content(source, manifest.config())?;
    let part = |layer: &Descriptor| {
        let kind = layer.media_type().to_string();
        if !kind.contains(".tar") && !kind.contains("rootfs") || kind.contains("encrypted") {
            let why = format!("{kind:?} is no layer of a root filesystem");
            return Err(refused(layer.digest(), why));
        }
        let digest = Digest::parse(layer.digest().as_ref())?;
        Ok(Part {
            place: digest.text().to_owned(),
            blob: Some((digest, layer.size())),
        })
    };
    Ok(Found {
        names: Vec::new(),
        parts: manifest.layers().iter().map(part).collect::<Result<_>>()?,
        digest: Some(digest),
        config,
    })
}

/// The manifest for this machine.
fn choose(manifests: &[Descriptor]) -> Result<&Descriptor> {
    let ours = |it: &&Descriptor| {
        let platform = it.platform().as_ref();
        platform.is_none_or(|it| {
            let (os, arch) = (it.os().to_string(), it.architecture().to_string());
            os == "linux" && arch == architecture()
        })
    };
    manifests.iter().find(ours).ok_or_else(|| {
        let platforms = manifests.iter().filter_map(|it| it.platform().as_ref());
        let texts = platforms.map(|it| format!("{}/{}", it.os(), it.architecture()));
        let texts: Vec<_> = texts.collect();
        let ours = format!("linux/{}", architecture());
        refused(ours, format!("there are only {}", texts.join(", ")))
    })
}

/// This machine's, as Go calls it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// The layers' digests that a configuration names, the lowest first.
///
/// # Errors
/// What names it, if it is no configuration.
pub fn diffs(id: &Digest, config: &[u8]) -> Result<(ImageConfiguration, Vec<Digest>)> {
    let config: ImageConfiguration = parse(id, config)?;
    if config.os().to_string() != "linux" {
        return Err(refused(id, format!("an image for {}", config.os())));
    }
    let diffs = config
        .rootfs()
        .diff_ids()
        .iter()
        .map(|it| Digest::parse(it));
    let diffs = diffs.collect::<Result<_>>()?;
    Ok((config, diffs))
}

/// A whole name that content is said to have.
///
/// # Errors
/// What names it, if it is none.
pub fn name(text: &str) -> Result<String> {
    crate::reference::parse(text).map(|name: Reference| name.whole())
}
