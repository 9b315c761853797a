// SPDX-License-Identifier: Apache-2.0
//! What a container of an image is made of: its layers, its configuration, and who its users are.
//!
//! Whoever asks has it for as long as the answer is held: nothing of it is removed meanwhile.

use crate::digest::Digest;
use crate::failure::{Result, io, refused};
use crate::manifest;
use crate::reference;
use crate::store::{self, Images, Store};
use nix::fcntl::{OFlag, ResolveFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use serde::Serialize;
use serde_json::Value;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use task::below::open_below;

/// Bytes of /etc/passwd that are read, at most.
const USERS: u64 = 4 << 20;

#[derive(Serialize)]
pub struct Chosen {
    pub id: Digest,
    /// Its whole name, if it was asked for by one.
    pub name: Option<String>,
    /// Keys of its layers, the lowest first.
    pub layers: Vec<String>,
    /// What its configuration says of a container's process, as it is.
    pub config: Value,
    /// The users and groups that there are in it (passwd(5), group(5)).
    pub passwd: String,
    pub group: String,
}

impl Chosen {
    /// The image that `text` means.
    ///
    /// # Errors
    /// `NoImage`; from the file system.
    pub fn find(store: &Store, images: &Images, text: &str) -> Result<Self> {
        let (image, name) = reference::find(images, text)?;
        let path = store.config(&image.id);
        let config = fs::read(&path).map_err(io(path.display()))?;
        if Digest::of(&config) != image.id {
            return Err(refused(
                path.display(),
                "damaged: its name is not its digest",
            ));
        }
        let config: Value = manifest::parse(&image.id, &config)?;
        let mut layers: Vec<String> = Vec::new();
        for chain in &image.chains {
            let layer = store.find_layer(chain)?;
            let layer = layer.ok_or_else(|| refused(chain, "this layer is not there"))?;
            if layer.covers {
                layers.clear();
            }
            layers.push(store::key(chain).to_owned());
        }
        let root = root(store, &layers)?;
        Ok(Self {
            id: image.id.clone(),
            name,
            passwd: read(root.as_ref(), "etc/passwd")?,
            group: read(root.as_ref(), "etc/group")?,
            layers,
            config: config["config"].clone(),
        })
    }
}

/// The image's root filesystem, which only this process sees.
fn root(store: &Store, layers: &[String]) -> Result<Option<OwnedFd>> {
    let path = |key: &String| store.layer_of_key(key).join("fs");
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let point = match layers {
        [] => return Ok(None),
        [one] => path(one),
        many => {
            let none = None::<&str>;
            let failed = || io("the image's root");
            unshare(CloneFlags::CLONE_NEWNS).map_err(failed())?;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(none, "/", none, private, none).map_err(failed())?;
            // Short names, for mount(2) takes a page of them.
            let layers = store.layer_of_key("");
            std::env::set_current_dir(&layers).map_err(io(layers.display()))?;
            let lower: Vec<String> = many.iter().rev().map(|key| format!("{key}/fs")).collect();
            let data = format!("lowerdir={}", lower.join(":"));
            let point = store.tmp();
            let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            let mounted = mount(
                Some("overlay"),
                &point,
                Some("overlay"),
                flags,
                Some(&data[..]),
            );
            mounted.map_err(failed())?;
            point
        }
    };
    let root = open(&point, flags, Mode::empty());
    root.map(Some).map_err(io(point.display()))
}

/// A file of the image; nothing, if there is none.
fn read(root: Option<&OwnedFd>, name: &str) -> Result<String> {
    let Some(root) = root else {
        return Ok(String::new());
    };
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let Ok(file) = open_below(root, name, flags, ResolveFlag::RESOLVE_IN_ROOT) else {
        return Ok(String::new());
    };
    let file = File::from(file);
    if !file.metadata().is_ok_and(|about| about.is_file()) {
        return Ok(String::new());
    }
    let mut text = Vec::new();
    file.take(USERS).read_to_end(&mut text).map_err(io(name))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
