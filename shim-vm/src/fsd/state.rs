// SPDX-License-Identifier: Apache-2.0
//! What a file server knows when its VM is saved, for another that goes on with it: which files, by their
//! names in the share, and which of them are open.
//!
//! virtiofsd writes its part in a form of its own, which is read here for what it would leave to chance: a
//! file that has no name any more can't be found again, a file that was opened to be emptied may not be
//! emptied again, and one that is not what it was is none that a guest may go on with. What is in a volume
//! that is a directory may change at any time, and is left out of that.

use super::tree;
use crate::share::{OF_VOLUME, VOLUMES};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::io;
use virtiofsd::fuse::Attr;

/// Of flags of open(2), those that count when a file is made or opened first.
const ONCE: i32 = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_APPEND | libc::O_NOCTTY;

/// All of it.
#[derive(Serialize, Deserialize)]
pub struct State {
    pub tree: tree::Saved,
    seen: Vec<Seen>,
    pub served: Vec<u8>,
}

/// A file as it was.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Seen {
    inode: u64,
    name: String,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, u32),
}

/// virtiofsd's (passthrough/device_state/serialized.rs), as postcard has it.
#[derive(Serialize, Deserialize)]
enum Served {
    First(Known),
    Second(Known, BTreeMap<u64, String>),
}

#[derive(Serialize, Deserialize)]
struct Known {
    files: Vec<File>,
    next_file: u64,
    open: Vec<Open>,
    next_open: u64,
    negotiated: [bool; 4],
}

#[derive(Serialize, Deserialize)]
struct File {
    id: u64,
    times: u64,
    place: Place,
    handle: Option<()>,
}

#[derive(Serialize, Deserialize)]
enum Place {
    Root,
    In { parent: u64, name: String },
    Gone,
    At { name: String },
}

#[derive(Serialize, Deserialize)]
struct Open {
    id: u64,
    file: u64,
    source: How,
}

#[derive(Serialize, Deserialize)]
enum How {
    Again { flags: i32 },
}

fn wrong(why: String) -> io::Error {
    io::Error::other(why)
}

impl State {
    /// What virtiofsd has `served`, with `tree`; `look` tells what a file is now.
    ///
    /// # Errors
    /// If it has a file that can't be found again.
    pub fn of(
        tree: tree::Saved,
        served: &[u8],
        look: impl Fn(u64) -> io::Result<Attr>,
    ) -> io::Result<Self> {
        let read = postcard::from_bytes(served);
        let mut served: Served = read.map_err(|e| wrong(format!("what it serves: {e}")))?;
        let known = served.known();
        for open in &mut known.open {
            let How::Again { flags } = &mut open.source;
            *flags &= !ONCE;
        }
        let gone = known.files.iter();
        let gone = gone.filter(|file| matches!(file.place, Place::Gone));
        match gone.count() {
            0 => {}
            count => {
                let why = "removed, and open in the guest: only files that have a name are saved";
                return Err(wrong(format!("{count} files are {why}")));
            }
        }
        let names = known.names();
        let mut seen = Vec::new();
        for (&inode, name) in &names {
            let file = look(inode)?;
            if is_verified(name, &file) {
                seen.push(Seen::of(inode, name.clone(), &file));
            }
        }
        let served = postcard::to_stdvec(&served).map_err(|e| wrong(e.to_string()))?;
        Ok(Self { tree, seen, served })
    }

    /// The files that are open, one as often as it is.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn open(&self) -> io::Result<Vec<u64>> {
        let read = postcard::from_bytes(&self.served);
        let mut served: Served = read.map_err(|e| wrong(format!("what it serves: {e}")))?;
        Ok(served.known().open.iter().map(|open| open.file).collect())
    }

    /// Whether all are what they were.
    ///
    /// # Errors
    /// Which is not.
    pub fn verify(&self, look: impl Fn(u64) -> io::Result<Attr>) -> io::Result<()> {
        for was in &self.seen {
            let now = look(was.inode).map_err(|e| wrong(format!("file {:?}: {e}", was.name)))?;
            if Seen::of(was.inode, was.name.clone(), &now) != *was {
                let why = format!("file {:?} is not what it was when it was saved", was.name);
                return Err(wrong(why));
            }
        }
        Ok(())
    }
}

impl Served {
    fn known(&mut self) -> &mut Known {
        match self {
            Self::First(known) | Self::Second(known, _) => known,
        }
    }
}

impl Known {
    /// The names in the share of all but the share itself.
    fn names(&self) -> HashMap<u64, String> {
        let mut names = HashMap::new();
        let places = self.files.iter().map(|file| (file.id, &file.place));
        let places: HashMap<u64, &Place> = places.collect();
        for &id in places.keys() {
            let (mut parts, mut at) = (Vec::new(), id);
            // None is its own parent, however long the way is.
            while let Some(Place::In { parent, name }) = places.get(&at)
                && parts.len() < places.len()
            {
                parts.push(name.as_str());
                at = *parent;
            }
            if let Some(Place::At { name }) = places.get(&at) {
                parts.push(name);
            }
            if !parts.is_empty() {
                parts.reverse();
                names.insert(id, parts.join("/"));
            }
        }
        names
    }
}

impl Seen {
    fn of(inode: u64, name: String, file: &Attr) -> Self {
        Self {
            inode,
            name,
            size: file.size,
            modified: (file.mtime as i64, file.mtimensec),
        }
    }
}

/// Directories change with what is made in them, and devices have no content.
fn is_verified(name: &str, file: &Attr) -> bool {
    let parts = name.split('/').count();
    // What is in the share itself is the shim's, and made anew.
    let is_own = parts < 2;
    let is_in_volume = name.starts_with(VOLUMES) && parts > OF_VOLUME;
    file.mode & libc::S_IFMT == libc::S_IFREG && !is_own && !is_in_volume
}
