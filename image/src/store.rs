// SPDX-License-Identifier: Apache-2.0
//! What is kept of images, below the manager's root.
//!
//! ```text
//! <root>/images/                0700
//!   lock                        shared by who reads what may go, one's alone who changes what is there
//!   images.json                 every image, its names and layers
//!   configs/HEX                 their configurations, by digest
//!   layers/KEY/fs               a layer, unpacked, as a lower directory of an overlay
//!   layers/KEY/layer.json       what it is
//!   tmp/PID/                    what a program is about to make, as long as it holds `lock` in there
//! <root>/containers/*/*.pb      the manager's records of containers, which say what they use
//! ```
//! A layer is found by its chain: it depends on those below it, by what directories in it are like
//! that it does not describe. KEY is the beginning of the chain's digest: an overlay of 127 layers
//! must fit into the page that mount(2) takes.

use crate::digest::Digest;
use crate::failure::{Result, io, refused};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Digits of a chain's digest that its layer is called by.
const KEY: usize = 20;

pub struct Store {
    dir: PathBuf,
    pub containers: PathBuf,
}

/// Nobody changes anything as long as it lives.
pub struct Shared {
    _lock: Option<Flock<File>>,
}

/// Nobody else changes or reads anything as long as it lives.
pub struct Exclusive {
    _lock: Flock<File>,
}

/// All images.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Images {
    pub images: Vec<Image>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Image {
    /// The digest of its configuration.
    pub id: Digest,
    /// That of its manifest, if it came with one.
    pub digest: Option<Digest>,
    /// Whole names, such as docker.io/library/alpine:latest.
    pub names: Vec<String>,
    /// The chains of its layers, the lowest first.
    pub chains: Vec<Digest>,
    /// Bytes of their archives.
    pub size: u64,
    /// When it was made, as its configuration says.
    pub created: String,
}

/// What `layer.json` says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Layer {
    pub chain: Digest,
    pub size: u64,
    /// It hides all of the layers below.
    pub covers: bool,
}

impl Store {
    /// The store below the manager's `root`; it may not be there yet.
    pub fn at(root: &Path) -> Self {
        Self {
            dir: root.join("images"),
            containers: root.join("containers"),
        }
    }

    /// Makes it ready for images.
    ///
    /// # Errors
    /// From the file system, and if overlays can't be there.
    pub fn prepare(&self) -> Result<()> {
        for dir in ["", "configs", "layers", "tmp"] {
            let dir = self.dir.join(dir);
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
            made.map_err(io(dir.display()))?;
        }
        let kind = statfs(&self.dir).map_err(io(self.dir.display()))?;
        if kind.filesystem_type() == OVERLAYFS_SUPER_MAGIC {
            let why = "it lies on an overlay, and no other can be written there: set `root` to a \
                       directory on a disk or a tmpfs";
            return Err(refused(self.dir.display(), why));
        }
        Ok(())
    }

    /// # Errors
    /// From the file system.
    pub fn share(&self) -> Result<Shared> {
        let lock = match self.lock(FlockArg::LockShared) {
            // There is nothing to be protected.
            Err(e) if is_missing(&e) => None,
            lock => Some(lock?),
        };
        Ok(Shared { _lock: lock })
    }

    /// # Errors
    /// From the file system.
    pub fn own(&self) -> Result<Exclusive> {
        let lock = self.lock(FlockArg::LockExclusive)?;
        Ok(Exclusive { _lock: lock })
    }

    fn lock(&self, how: FlockArg) -> Result<Flock<File>> {
        let path = self.dir.join("lock");
        let failed = || io(path.display());
        let mut options = File::options();
        let file = options.create(true).append(true).mode(0o600).open(&path);
        Flock::lock(file.map_err(failed())?, how).map_err(|(_, e)| failed()(e.into()))
    }

    /// # Errors
    /// From the file system, and if the list is damaged.
    pub fn read(&self) -> Result<Images> {
        let path = self.dir.join("images.json");
        match fs::read(&path) {
            Ok(json) => serde_json::from_slice(&json)
                .map_err(|e| refused(path.display(), format!("damaged: {e}"))),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Images::default()),
            Err(e) => Err(io(path.display())(e)),
        }
    }

    /// # Errors
    /// From the file system; the old list is then there.
    pub fn write(&self, images: &Images, _owned: &Exclusive) -> Result<()> {
        let json = serde_json::to_vec_pretty(images).map_err(|e| refused("images.json", e))?;
        replace(&self.dir.join("images.json"), &json)
    }

    /// Where the layer of `chain` is, or is to be.
    pub fn layer(&self, chain: &Digest) -> PathBuf {
        self.dir.join("layers").join(key(chain))
    }

    /// What is there of the layer of `chain`.
    ///
    /// # Errors
    /// From the file system, and if it is another one's.
    pub fn find_layer(&self, chain: &Digest) -> Result<Option<Layer>> {
        let path = self.layer(chain).join("layer.json");
        let json = match fs::read(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            json => json.map_err(io(path.display()))?,
        };
        let layer: Layer = serde_json::from_slice(&json)
            .map_err(|e| refused(path.display(), format!("damaged: {e}")))?;
        match layer.chain == *chain {
            true => Ok(Some(layer)),
            false => Err(refused(
                chain,
                format!("its place is that of {}", layer.chain),
            )),
        }
    }

    /// Every layer that is there, by its key.
    ///
    /// # Errors
    /// From the file system.
    pub fn layers(&self) -> Result<Vec<String>> {
        names(&self.dir.join("layers"))
    }

    pub fn layer_of_key(&self, key: &str) -> PathBuf {
        self.dir.join("layers").join(key)
    }

    pub fn config(&self, id: &Digest) -> PathBuf {
        self.dir.join("configs").join(id.hex())
    }

    /// # Errors
    /// From the file system.
    pub fn configs(&self) -> Result<Vec<String>> {
        names(&self.dir.join("configs"))
    }

    pub fn config_of_hex(&self, hex: &str) -> PathBuf {
        self.dir.join("configs").join(hex)
    }

    pub fn tmp(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    pub fn is_there(&self) -> bool {
        self.dir.exists()
    }
}

impl Images {
    /// The image of this whole name.
    pub fn named(&self, name: &str) -> Option<&Image> {
        self.images
            .iter()
            .find(|image| image.names.iter().any(|known| known == name))
    }

    /// Those whose id or digest begins like this.
    pub fn beginning(&self, hex: &str) -> Vec<&Image> {
        let begins = |digest: &Digest| digest.hex().starts_with(hex);
        let all = self.images.iter();
        all.filter(|image| begins(&image.id) || image.digest.as_ref().is_some_and(begins))
            .collect()
    }
}

pub fn key(chain: &Digest) -> &str {
    &chain.hex()[..KEY]
}

/// The chains of layers with these digests, the lowest first (OCI image spec, config.md).
pub fn chains(diffs: &[Digest]) -> Vec<Digest> {
    let mut chains: Vec<Digest> = Vec::new();
    for diff in diffs {
        chains.push(match chains.last() {
            None => diff.clone(),
            Some(below) => Digest::of(format!("{below} {diff}").as_bytes()),
        });
    }
    chains
}

/// Replaces a file in one step, which a power loss does not undo.
///
/// # Errors
/// From the file system; the old content is then there.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    let written = || {
        let mut options = File::options();
        options.create(true).write(true).truncate(true).mode(0o600);
        let mut file = options.open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    written().map_err(|e| {
        let _ = fs::remove_file(&new);
        io(path.display())(e)
    })
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io(dir.display()))?,
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.collect())
}

fn is_missing(e: &crate::failure::Failure) -> bool {
    matches!(e, crate::failure::Failure::Io { error, .. } if error.kind() == ErrorKind::NotFound)
}
