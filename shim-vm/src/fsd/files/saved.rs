// SPDX-License-Identifier: Apache-2.0
//! What the file server knows, for another that goes on with it.

use super::Files;
use crate::fsd::Inode;
use crate::fsd::state::State;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use virtiofsd::filesystem::{Context, FileSystem, SerializableFileSystem};
use virtiofsd::fuse::Attr;

impl Files {
    fn look(&self, inode: Inode) -> io::Result<Attr> {
        let nobody = Context {
            uid: 0.into(),
            gid: 0.into(),
            pid: 0,
        };
        self.files
            .getattr(nobody, inode, None)
            .map(|(attr, _)| attr)
    }

    /// A file with these bytes, to be read from its beginning; it is the only one there is.
    fn scratch(&self, bytes: &[u8]) -> io::Result<File> {
        let mut file = self.scratch.try_clone()?;
        file.set_len(0)?;
        file.write_all_at(bytes, 0)?;
        file.seek(SeekFrom::Start(0))?;
        Ok(file)
    }

    fn save(&self, mut to: File) -> io::Result<()> {
        self.files.serialize(self.scratch(&[])?)?;
        let mut served = vec![0; self.scratch.metadata()?.len() as usize];
        self.scratch.read_exact_at(&mut served, 0)?;
        let tree = self.known().tree.save();
        let state = State::of(tree, &served, |inode| self.look(inode))?;
        to.write_all(&postcard::to_stdvec(&state).map_err(io::Error::other)?)
    }

    fn restore(&self, mut from: File) -> io::Result<()> {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes)?;
        let state: State = postcard::from_bytes(&bytes).map_err(io::Error::other)?;
        state.check()?;
        self.files
            .deserialize_and_apply(self.scratch(&state.served)?)?;
        self.scratch.set_len(0)?;
        state.verify(|inode| self.look(inode))?;
        let open = state.open()?;
        self.known().tree.restore(state.tree, open);
        Ok(())
    }
}

/// QEMU says no more than that it has failed.
fn said(what: &str, done: io::Result<()>) -> io::Result<()> {
    done.inspect_err(|e| {
        let _ = io::stderr().write_all(format!("fsd: {what}: {e}\n").as_bytes());
    })
}

impl SerializableFileSystem for Files {
    fn prepare_serialization(&self, cancel: Arc<AtomicBool>) {
        self.files.prepare_serialization(cancel);
    }

    fn serialize(&self, state: File) -> io::Result<()> {
        said("save", self.save(state))
    }

    fn deserialize_and_apply(&self, state: File) -> io::Result<()> {
        said("restore", self.restore(state))
    }
}
