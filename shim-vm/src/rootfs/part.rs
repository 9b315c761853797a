// SPDX-License-Identifier: Apache-2.0
//! One of the mounts that a root filesystem is made of.

use super::{MOUNTS, image, option, templates};
use protos::types::Mount;
use std::path::{Component, Path, PathBuf};
use task::rootfs::Layer;

pub(super) const MKDIR: &str = "X-containerd.mkdir.path=";
const VERITY: &str = "X-containerd.dmverity=";
/// The source is a file, and a loop device makes a disk of it.
const LOOP: &str = "loop";
/// More of erofs's files.
const DEVICE: &str = "device=";

#[derive(Debug, PartialEq)]
pub(super) struct Part {
    /// Of the system's type.
    pub mount: Mount,
    /// Its type began with what is done before it is mounted.
    pub transformed: bool,
    /// Its texts name others.
    formatted: bool,
    /// What `X-containerd.mkdir.path` says.
    dirs: Vec<String>,
    /// The file that says what the image must be.
    verity: Option<PathBuf>,
}

impl Part {
    pub fn of(mut mount: Mount) -> Self {
        let (mut transformed, mut formatted) = (false, false);
        while let Some((transform, kind)) = mount.r#type.split_once('/')
            && MOUNTS.transforms.contains(&transform)
        {
            transformed = true;
            formatted |= transform == "format";
            mount.r#type = kind.to_owned();
        }
        let (mut dirs, mut verity) = (Vec::new(), None);
        mount.options.retain(|option| {
            if let Some(dir) = option.strip_prefix(MKDIR) {
                dirs.push(dir.to_owned());
            } else if let Some(path) = option.strip_prefix(VERITY) {
                verity = Some(PathBuf::from(path));
            }
            !option.starts_with(MKDIR) && !option.starts_with(VERITY)
        });
        Self {
            mount,
            transformed,
            formatted,
            dirs,
            verity,
        }
    }

    /// It is made of a file that a guest can mount.
    pub fn is_image(&self) -> bool {
        let source = Path::new(&self.mount.source);
        MOUNTS.types.contains(&&*self.mount.r#type)
            && source.is_absolute()
            && !source.starts_with("/dev")
    }

    pub fn option(&self, name: &str) -> Option<&str> {
        option(&self.mount, name)
    }

    /// The image, and those on which it finds what it does not have itself.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        let devices = self.mount.options.iter();
        let devices = devices.filter_map(|option| option.strip_prefix(DEVICE));
        std::iter::once(&*self.mount.source).chain(devices)
    }

    /// How it is mounted in the directory `base`, after `before`.
    pub fn layer(
        &self,
        base: &str,
        before: &[&Mount],
        shown: impl Fn(&str) -> String,
    ) -> Result<Layer, String> {
        let mut layer = Layer::from(self.mount.clone());
        let mount = &mut layer.mount;
        if self.formatted {
            for text in [&mut mount.source].into_iter().chain(&mut mount.options) {
                *text = templates::fill(text, base, before)?;
            }
        }
        for dir in &self.dirs {
            let dir = templates::fill(dir, base, before)?;
            layer.dirs.push(directory(&dir, base)?);
        }
        if self.is_image() {
            image::check(&self.mount)?;
            mount.source = shown(&mount.source);
            for option in &mut mount.options {
                if let Some(device) = option.strip_prefix(DEVICE) {
                    *option = format!("{DEVICE}{}", shown(device));
                }
            }
            if !mount.options.iter().any(|option| option == LOOP) {
                mount.options.push(LOOP.into());
            }
            // The guest need not keep twice what it has read.
            if self.is_readonly() {
                mount.options.push("direct-io".into());
            }
        }
        layer.verity = self.verity.as_deref().map(image::verity).transpose()?;
        Ok(layer)
    }

    pub fn is_readonly(&self) -> bool {
        let is = |name: &str| self.mount.options.iter().rposition(|option| option == name);
        is("ro") > is("rw")
    }

    pub fn is_template(text: &str) -> bool {
        text.contains("{{")
    }

    /// The directory of the host's that takes what is written to the root filesystem.
    pub fn writes_to(&self) -> Option<&str> {
        match &*self.mount.r#type {
            "overlay" => self.option("upperdir"),
            "bind" if !self.is_readonly() => Some(&*self.mount.source),
            _ => None,
        }
        .filter(|dir| !Self::is_template(dir))
    }

    /// All that it is made of is in mounts before it.
    pub fn is_of_others(&self) -> bool {
        match &*self.mount.r#type {
            "overlay" => ["lowerdir", "upperdir", "workdir"]
                .into_iter()
                .filter_map(|name| self.option(name))
                .all(Self::is_template),
            "bind" => Self::is_template(&self.mount.source),
            _ => false,
        }
    }
}

/// A directory `path[:mode[:uid:gid]]`, which is in `base`.
pub(super) fn directory(text: &str, base: &str) -> Result<(PathBuf, u32), String> {
    let wrong = |why: &str| format!("{MKDIR}{text}: {why}");
    let mut fields = text.split(':');
    let path = fields.next().unwrap_or_default();
    let mode = fields.next().unwrap_or("700");
    let mode = u32::from_str_radix(mode, 8)
        .ok()
        .filter(|mode| *mode <= 0o777);
    let mode = mode.ok_or_else(|| wrong("no mode of a directory"))?;
    if fields.any(|owner| owner != "0") {
        return Err(wrong("an owner other than root"));
    }
    let below = Path::new(path).strip_prefix(base).ok();
    let below = below.filter(|below| {
        below
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
    });
    let below = below.ok_or_else(|| wrong("not in a mount before it"))?;
    Ok((below.to_owned(), mode))
}
