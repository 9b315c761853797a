// SPDX-License-Identifier: Apache-2.0
//! A layer: its blob is read, uncompressed, unpacked and verified, all in one go.

mod attributes;
mod dress;
mod place;
pub mod tree;
mod zstd;

use crate::digest::{Digest, Sum};
use crate::failure::{Result, io, refused};
use crate::tarball::Archive;
use flate2::bufread::MultiGzDecoder;
use std::cell::RefCell;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tree::Tree;

/// What the blobs of compressed archives begin with.
const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// What is not supported: Docker has it, too, and nobody uses it.
const OTHERS: [(&[u8], &str); 2] = [(b"BZh", "bzip2"), (&[0xfd, 0x37, 0x7a, 0x58], "xz")];

/// What a layer's bytes must be.
pub struct Expected<'a> {
    /// Of the blob as it is, if it has a descriptor.
    pub blob: Option<(&'a Digest, u64)>,
    /// Of the archive in it.
    pub diff: &'a Digest,
}

pub struct Unpacked {
    /// The archive's bytes.
    pub size: u64,
    /// It hides all of the layers below.
    pub covers: bool,
}

/// A reader that is shared with whoever reads on behind its owner.
struct Shared<R>(Rc<RefCell<R>>);

impl<R> Clone for Shared<R> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<R: BufRead> Read for Shared<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.borrow_mut().read(buffer)
    }
}

/// Unpacks `blob` into the directory `into`, above the layers `lower`.
///
/// # Errors
/// From the file system, and if the bytes are not what was expected: then what was unpacked is nothing
/// that anybody may use.
pub fn unpack(
    blob: impl Read + 'static,
    expected: &Expected,
    into: &Path,
    lower: &[PathBuf],
) -> Result<Unpacked> {
    let of_blob = Sum::new();
    let raw = Shared(Rc::new(RefCell::new(BufReader::with_capacity(
        1 << 16,
        of_blob.over(blob),
    ))));
    let of_diff = Sum::new();
    let plain = of_diff.over(uncompressed(raw.clone())?);
    let mut tree = Tree::new(into, lower)?;
    let mut archive = Archive::new(plain);
    tree.fill(&mut archive)?;
    io::copy(&mut archive.into_rest(), &mut io::sink()).map_err(io("layer"))?;
    io::copy(&mut raw.clone(), &mut io::sink()).map_err(io("layer"))?;
    if let Some((digest, size)) = expected.blob {
        of_blob.must_be(digest, "its digest")?;
        if of_blob.bytes() != size {
            let why = format!("it has {} bytes, not {size}", of_blob.bytes());
            return Err(refused(digest, why));
        }
    }
    of_diff.must_be(expected.diff, "its diff_id")?;
    Ok(Unpacked {
        size: of_diff.bytes(),
        covers: tree.covers(),
    })
}

fn uncompressed<R: BufRead + 'static>(raw: Shared<R>) -> Result<Box<dyn Read>>
where
    Shared<R>: 'static,
{
    let begin = {
        let mut reader = raw.0.borrow_mut();
        reader.fill_buf().map_err(io("layer"))?.to_vec()
    };
    if let Some((_, name)) = OTHERS.iter().find(|(magic, _)| begin.starts_with(magic)) {
        let why = format!("{name} is not supported, only gzip and zstd");
        return Err(refused("layer", why));
    }
    if begin.starts_with(GZIP) {
        return Ok(Box::new(MultiGzDecoder::new(BufReader::new(raw))));
    }
    if begin.starts_with(ZSTD) {
        return Ok(Box::new(zstd::Frames::new(raw)));
    }
    Ok(Box::new(raw))
}

/// What is in a file that may be compressed as a whole, such as an archive of an image.
///
/// # Errors
/// From reading, and if it is compressed as we know not how.
pub fn plain(file: impl Read + 'static) -> Result<Box<dyn Read>> {
    uncompressed(Shared(Rc::new(RefCell::new(BufReader::new(file)))))
}
