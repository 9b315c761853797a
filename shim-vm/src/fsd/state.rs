// SPDX-License-Identifier: Apache-2.0
//! What a file server knows when its VM is saved, for another that goes on with it: which files, by their
//! names in the share, and which of them are open.
//!
//! virtiofsd writes its part in a form of its own, which is read here for what it would leave to chance: a
//! file that has no name any more can't be found again, a file that was opened to be emptied may not be
//! emptied again, and one that is not what it was is none that a guest may go on with. What is in a volume
//! that is a directory may change at any time, and is left out of that. A guest makes the names, and as many
//! and as deep as it likes: they are put together for messages alone.

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

/// Where the files are that a guest knows.
struct Places<'a>(HashMap<u64, &'a Place>);

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
        let mut served = Served::read(served)?;
        let known = served.known_mut();
        for open in &mut known.open {
            let How::Again { flags } = &mut open.source;
            *flags &= !ONCE;
        }
        known.are_named(&look)?;
        let places = known.places();
        let mut seen = Vec::new();
        for file in &known.files {
            let now = look(file.id);
            let now = now.map_err(|e| wrong(format!("file {:?}: {e}", places.name(file.id))))?;
            if places.is_verified(file.id, &now) {
                seen.push(Seen::of(file.id, &now));
            }
        }
        let served = postcard::to_stdvec(&served).map_err(|e| wrong(e.to_string()))?;
        Ok(Self { tree, seen, served })
    }

    /// Whether it is what [`State::of`] makes: each name is one in a directory that is known, and to open a
    /// file changes nothing of it.
    ///
    /// # Errors
    /// What is not.
    pub fn check(&self) -> io::Result<()> {
        let served = Served::read(&self.served)?;
        if let Served::Second(_, mounts) = &served
            && !mounts.is_empty()
        {
            return Err(wrong("it has files by their handles".into()));
        }
        let known = served.known();
        for File { id, place, .. } in &known.files {
            match place {
                Place::Root => {}
                Place::In { name, .. } if is_a_name(name) => {}
                Place::In { name, .. } | Place::At { name } => {
                    return Err(wrong(format!("{name:?} is no name in a directory")));
                }
                Place::Gone => return Err(wrong(format!("file {id} has no name"))),
            }
        }
        let once = known.open.iter().find(|open| {
            let How::Again { flags } = open.source;
            flags & ONCE != 0
        });
        match once {
            None => Ok(()),
            Some(open) => Err(wrong(format!("file {} is to be made anew", open.file))),
        }
    }

    /// The files that are open, one as often as it is.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn open(&self) -> io::Result<Vec<u64>> {
        let served = Served::read(&self.served)?;
        Ok(served.known().open.iter().map(|open| open.file).collect())
    }

    /// Whether all are what they were.
    ///
    /// # Errors
    /// Which is not.
    pub fn verify(&self, look: impl Fn(u64) -> io::Result<Attr>) -> io::Result<()> {
        let served = Served::read(&self.served)?;
        let places = served.known().places();
        for was in &self.seen {
            let named = |why: &str| wrong(format!("file {:?}{why}", places.name(was.inode)));
            let now = look(was.inode).map_err(|e| named(&format!(": {e}")))?;
            if Seen::of(was.inode, &now) != *was {
                return Err(named(" is not what it was when it was saved"));
            }
        }
        Ok(())
    }
}

impl Served {
    fn read(bytes: &[u8]) -> io::Result<Self> {
        let read = postcard::from_bytes(bytes);
        read.map_err(|e| wrong(format!("what it serves: {e}")))
    }

    fn known(&self) -> &Known {
        match self {
            Self::First(known) | Self::Second(known, _) => known,
        }
    }

    fn known_mut(&mut self) -> &mut Known {
        match self {
            Self::First(known) | Self::Second(known, _) => known,
        }
    }
}

impl Known {
    /// # Errors
    /// If there are files without a name that they could be found by.
    fn are_named(&self, look: impl Fn(u64) -> io::Result<Attr>) -> io::Result<()> {
        let lost = self.files.iter();
        let lost = lost.filter(|file| matches!(file.place, Place::Gone));
        let (mut removed, mut odd) = (0, 0);
        for file in lost {
            match look(file.id) {
                Ok(file) if file.nlink > 0 => odd += 1,
                _ => removed += 1,
            }
        }
        let why = match (removed, odd) {
            (0, 0) => return Ok(()),
            (0, odd) => format!("{odd} files have names that are no UTF-8, and are in use"),
            (removed, _) => format!("{removed} files are removed, and open"),
        };
        let saved = "only files that have a name in UTF-8 are saved";
        Err(wrong(format!("{why} in the guest: {saved}")))
    }

    fn places(&self) -> Places<'_> {
        let places = self.files.iter().map(|file| (file.id, &file.place));
        Places(places.collect())
    }
}

impl<'a> Places<'a> {
    /// The parts of a file's name in the share, the last first.
    fn parts(&self, id: u64) -> impl Iterator<Item = &'a str> {
        let mut at = Some(id);
        let parts = std::iter::from_fn(move || match self.0.get(&at?)? {
            Place::In { parent, name } => {
                at = Some(*parent);
                Some(name.as_str())
            }
            Place::At { name } => {
                at = None;
                Some(name.as_str())
            }
            Place::Root | Place::Gone => None,
        });
        // None is its own parent, however long the way is.
        parts.take(self.0.len())
    }

    fn name(&self, id: u64) -> String {
        let mut parts: Vec<&str> = self.parts(id).collect();
        parts.reverse();
        parts.join("/")
    }

    /// Directories change with what is made in them, and devices have no content.
    fn is_verified(&self, id: u64, file: &Attr) -> bool {
        if file.mode & libc::S_IFMT != libc::S_IFREG {
            return false;
        }
        let (mut count, mut first) = (0, "");
        for part in self.parts(id) {
            (count, first) = (count + 1, part);
        }
        // What is in the share itself is the shim's, and made anew.
        let is_own = count < 2;
        let is_in_volume = first == VOLUMES && count > OF_VOLUME;
        !is_own && !is_in_volume
    }
}

impl Seen {
    fn of(inode: u64, file: &Attr) -> Self {
        Self {
            inode,
            size: file.size,
            modified: (file.mtime as i64, file.mtimensec),
        }
    }
}

/// Whether it is the name of a file in a directory, and leads to no other one.
fn is_a_name(name: &str) -> bool {
    !["", ".", ".."].contains(&name) && !name.contains(['/', '\0'])
}

#[cfg(test)]
mod tests;
