// SPDX-License-Identifier: Apache-2.0
//! What a container's root filesystem is made of, and who mounts it: the host, which shows the guest
//! what comes of it, or the guest, out of images that the host shows it as files.
//!
//! What is made of images alone is the guest's to mount: the host's kernel reads no filesystem that
//! somebody else has made, needs no loop device, and a file of an image is found without asking the host. Where the
//! layer that can be written to is a directory of the host's, the host mounts all of it, unless
//! the container wants that layer elsewhere.
//!
//! containerd (2.2 and later) does not mount what we say we can ([`crate::info`]): then there are
//! mounts here whose sources and options name other mounts (containerd's docs/mounts.md).

mod image;
mod part;
mod templates;

use crate::config::Writable;
use part::Part;
use protos::types::Mount;
use std::path::{Path, PathBuf};
use task::rootfs::Layer;

/// The filesystems that a guest mounts out of files, and what their types may begin with.
pub const MOUNTS: shim::Mounts = shim::Mounts {
    types: &["erofs", "ext4"],
    transforms: &["format", "mkdir"],
};
/// In the directory of a stack: its last mount, and the layer that can be written to in place of
/// another.
pub use protos::places::TOP;
const OWN: &str = "own";
/// The mount points of a stack; no content but directories.
const POINTS: &str = "mode=0755,size=256k";
/// Of directories that belong to an overlay.
const MODE: u32 = 0o755;

/// Who mounts it.
#[derive(Debug, PartialEq)]
pub enum Root {
    Host(Mounts),
    /// With `lower` it is over what the host mounts, which can't be written to.
    Guest {
        lower: Option<Vec<Mount>>,
        stack: Stack,
    },
}

/// What a host mounts.
#[derive(Debug, PartialEq)]
pub enum Mounts {
    /// One on the other, or each at its target.
    Plain(Vec<Mount>),
    Stack(Stack),
}

impl Mounts {
    /// Whether what they make changes only through whom it is shown to: an overlay is made for one
    /// container, and the directories that it is of must not change while it is mounted (Linux's
    /// Documentation/filesystems/overlayfs.rst). Who else has what is bound here is not known.
    pub fn are_alone(&self) -> bool {
        let top = match self {
            Self::Plain(mounts) => mounts.last(),
            Self::Stack(stack) => stack.parts.last().map(|part| &part.mount),
        };
        top.is_some_and(|top| top.r#type == "overlay" && top.target.is_empty())
    }
}

/// Mounts that are made one after the other, of which the last is the root filesystem.
#[derive(Debug, PartialEq)]
pub struct Stack {
    parts: Vec<Part>,
    /// The layer that can be written to, if it is not what the mounts say.
    own: Option<Own>,
}

#[derive(Debug, PartialEq)]
enum Own {
    /// Memory of the guest's.
    Memory,
    /// A file of the host's.
    File(PathBuf),
}

/// Who mounts `mounts`, for a container that wants what it writes to be `writable`, and whose root
/// filesystem may be `readonly`.
///
/// # Errors
/// If what it wants can't be, by name.
pub fn plan(mounts: Vec<Mount>, writable: Writable, readonly: bool) -> Result<Root, String> {
    let parts: Vec<Part> = mounts.iter().cloned().map(Part::of).collect();
    let Some((top, below)) = parts.split_last() else {
        return Ok(Root::Host(Mounts::Plain(mounts)));
    };
    let own = match (writable, top.writes_to()) {
        _ if readonly => None,
        (Writable::Host, _) | (_, None) => None,
        (Writable::Memory, Some(_)) => Some(Own::Memory),
        (Writable::File, Some(_)) => Some(Own::File(file_beside(top)?)),
    };
    let images = below.iter().all(Part::is_image);
    let all_images = match top.is_image() {
        true => below.is_empty(),
        false => {
            !below.is_empty() && (top.is_of_others() || own.is_some() && lower_is_of_others(top))
        }
    };
    if images && all_images {
        let stack = Stack { parts, own };
        return Ok(Root::Guest { lower: None, stack });
    }
    if let (Some(own), true) = (own, below.is_empty()) {
        let lower = Some(vec![without_writes(top)]);
        let stack = Stack {
            parts: Vec::new(),
            own: Some(own),
        };
        return Ok(Root::Guest { lower, stack });
    }
    if parts.iter().any(|part| part.transformed) {
        return Ok(Root::Host(Mounts::Stack(Stack { parts, own: None })));
    }
    Ok(Root::Host(Mounts::Plain(mounts)))
}

/// Where the file is that takes what is written, instead of an overlay's directory.
fn file_beside(top: &Part) -> Result<PathBuf, String> {
    let work = top.option("workdir").filter(|dir| !Part::is_template(dir));
    let work =
        work.ok_or("writable = \"file\": the root filesystem has no work directory to put it in")?;
    Ok(Path::new(work).join("writable.ext4"))
}

fn lower_is_of_others(top: &Part) -> bool {
    top.mount.r#type == "overlay" && top.option("lowerdir").is_some_and(Part::is_template)
}

/// What is below the layer that is written to.
fn without_writes(top: &Part) -> Mount {
    let lower = top.option("lowerdir");
    let bind = |source: &str| mount("bind", source, &["rbind", "ro"]);
    match lower {
        None => bind(&top.mount.source),
        Some(dir) if !dir.contains(':') => bind(dir),
        Some(_) => {
            let mut mount = top.mount.clone();
            mount.options.retain(|option| !is_of_the_upper(option));
            mount
        }
    }
}

fn is_of_the_upper(option: &str) -> bool {
    option.starts_with("upperdir=") || option.starts_with("workdir=")
}

impl Stack {
    /// The files of the host's that it is mounted out of, and whether they are only read.
    pub fn files(&self) -> Vec<(PathBuf, bool)> {
        let mut files = Vec::new();
        for part in self.parts.iter().filter(|part| part.is_image()) {
            let readonly = part.is_readonly();
            files.extend(part.files().map(|file| (PathBuf::from(file), readonly)));
        }
        if let Some(Own::File(file)) = &self.own {
            files.push((file.clone(), false));
        }
        files
    }

    /// The file that takes what is written; there may be none of this name yet.
    pub fn file(&self) -> Option<&Path> {
        match &self.own {
            Some(Own::File(file)) => Some(file),
            _ => None,
        }
    }

    /// How it is mounted in the directory `base`; the last is [`TOP`] in it. `shown`: by which
    /// path a file is found. `lower`: what is below the layer that can be written to, if it is
    /// mounted already. Reads files.
    ///
    /// # Errors
    /// What is no image of its kind, or names what there is not.
    pub fn layers(
        &self,
        base: &str,
        shown: impl Fn(&str) -> String,
        lower: Option<&str>,
    ) -> Result<Vec<Layer>, String> {
        let points = mount("tmpfs", "tmpfs", &[POINTS]);
        let mut layers = vec![Layer::from(points)];
        let mounts: Vec<&Mount> = self.parts.iter().map(|part| &part.mount).collect();
        for (n, part) in self.parts.iter().enumerate() {
            let is_top = n + 1 == mounts.len();
            let name = if is_top { TOP.into() } else { n.to_string() };
            let wrong = |why: String| format!("mount {n} ({}): {why}", part.mount.source);
            let layer = part.layer(base, &mounts[..n], &shown).map_err(wrong)?;
            let layer = match &self.own {
                Some(own) if is_top => {
                    layers.push(own.layer(&shown));
                    let lower = option(&layer.mount, "lowerdir")
                        .unwrap_or_default()
                        .to_owned();
                    overlay(base, &lower)
                }
                _ => layer,
            };
            layers.push(at(layer, &name));
        }
        if let (Some(own), Some(lower)) = (&self.own, lower) {
            layers.push(own.layer(&shown));
            layers.push(at(overlay(base, lower), TOP));
        }
        Ok(layers)
    }
}

impl Own {
    fn layer(&self, shown: impl Fn(&str) -> String) -> Layer {
        let made = match self {
            Self::Memory => mount("tmpfs", "tmpfs", &["mode=0755"]),
            Self::File(file) => mount("ext4", &shown(&file.to_string_lossy()), &["loop"]),
        };
        at(made.into(), OWN)
    }
}

/// An overlay with what can be written to of our own.
fn overlay(base: &str, lower: &str) -> Layer {
    let dir = |name: &str| format!("{OWN}/{name}");
    let options = [
        format!("lowerdir={lower}"),
        format!("upperdir={base}/{}", dir("upper")),
        format!("workdir={base}/{}", dir("work")),
    ];
    Layer {
        dirs: ["upper", "work"]
            .map(|name| (dir(name).into(), MODE))
            .into(),
        ..mount(
            "overlay",
            "overlay",
            &options.each_ref().map(String::as_str),
        )
        .into()
    }
}

/// `layer`, mounted at `name` in its stack's directory.
fn at(mut layer: Layer, name: &str) -> Layer {
    layer.mount.target = name.to_owned();
    layer.dirs.push((name.into(), MODE));
    layer
}

fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        r#type: kind.into(),
        source: source.into(),
        target: String::new(),
        options: options.iter().map(|&option| option.to_owned()).collect(),
    }
}

fn option<'a>(mount: &'a Mount, name: &str) -> Option<&'a str> {
    let value = |option: &'a String| option.strip_prefix(name)?.strip_prefix('=');
    mount.options.iter().find_map(value)
}

#[cfg(test)]
mod tests;
