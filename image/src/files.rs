// SPDX-License-Identifier: Apache-2.0
//! The files of an image that was given as a file or a directory: by their names in it.

use crate::failure::{Result, io, refused};
use crate::layer;
use crate::layer::tree::inside;
use crate::tarball::Archive;
use nix::fcntl::{OFlag, ResolveFlag};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tar::EntryType;
use task::below::open_below;

/// Links that lead from one file of an archive to the next, at most.
const MOST_LINKS: usize = 8;

pub enum Files {
    Directory(File),
    Archive {
        file: Rc<File>,
        entries: HashMap<PathBuf, Place>,
    },
}

/// What an archive has of a name.
pub enum Place {
    Data { offset: u64, size: u64 },
    Link(PathBuf),
}

/// A part of a file.
struct Slice {
    file: Rc<File>,
    at: u64,
    left: u64,
}

impl Read for Slice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let most = most.min(buffer.len());
        let read = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

impl Files {
    /// Those of the directory or archive `path`, or of the archive that comes on stdin if that is `-`.
    /// One that is compressed, or no file, is written to `spool` first.
    ///
    /// # Errors
    /// From the file system, and if it is no archive.
    pub fn open(path: &Path, spool: &Path) -> Result<Self> {
        let shown = path.display();
        let failed = || io(&shown);
        if path == Path::new("-") {
            return Self::spooled(io::stdin(), spool).map_err(|e| e.of(&"stdin"));
        }
        let mut file = File::open(path).map_err(failed())?;
        let kind = file.metadata().map_err(failed())?.file_type();
        if kind.is_dir() {
            return Ok(Self::Directory(file));
        }
        let mut begin = [0; 512];
        let is_tar = kind.is_file() && {
            // A header is a block, and what is compressed begins with its own mark.
            let read = file.read(&mut begin).map_err(failed())?;
            file.rewind().map_err(failed())?;
            Archive::new(&begin[..read])
                .next()
                .is_ok_and(|it| it.is_some())
                || begin.starts_with(b"\0\0")
        };
        let files = match is_tar {
            true => Self::archive(file),
            false => Self::spooled(file, spool),
        };
        files.map_err(|e| e.of(&shown))
    }

    fn spooled(from: impl Read + 'static, spool: &Path) -> Result<Self> {
        let mut options = File::options();
        let opened = options.create_new(true).read(true).write(true).open(spool);
        let mut file = opened.map_err(io(spool.display()))?;
        let mut plain = layer::plain(from)?;
        io::copy(&mut plain, &mut file).map_err(io("archive"))?;
        file.rewind().map_err(io(spool.display()))?;
        Self::archive(file)
    }

    fn archive(file: File) -> Result<Self> {
        let mut entries = HashMap::new();
        let whole = file.metadata().map_err(io("archive"))?.len();
        let file = Rc::new(file);
        let slice = Slice {
            file: Rc::clone(&file),
            at: 0,
            left: whole,
        };
        let mut archive = Archive::new(BufReader::new(slice));
        while let Some(entry) = archive.next().map_err(io("archive"))? {
            let Some(path) = inside(&entry.path) else {
                return Err(refused(entry.shown(), "it leads out of the archive"));
            };
            let link = || {
                let link = std::ffi::OsStr::from_bytes(&entry.link);
                let dir = path.parent().unwrap_or(Path::new(""));
                match entry.kind {
                    EntryType::Symlink => lexical(&dir.join(link)),
                    _ => lexical(Path::new(link)),
                }
            };
            let place = match entry.kind {
                EntryType::Regular | EntryType::Continuous => Place::Data {
                    offset: entry.offset,
                    size: entry.size,
                },
                EntryType::Symlink | EntryType::Link => match link() {
                    Some(to) => Place::Link(to),
                    None => return Err(refused(entry.shown(), "it leads out of the archive")),
                },
                _ => continue,
            };
            entries.insert(path, place);
        }
        Ok(Self::Archive { file, entries })
    }

    /// The file of this name, if there is one, and its size.
    ///
    /// # Errors
    /// From the file system.
    pub fn find(&self, name: &str) -> Result<Option<(Box<dyn Read>, u64)>> {
        match self {
            Self::Directory(dir) => {
                let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
                let opened = open_below(dir, name, flags, ResolveFlag::RESOLVE_BENEATH);
                let file = match opened {
                    Err(nix::errno::Errno::ENOENT) => return Ok(None),
                    opened => File::from(opened.map_err(io(name))?),
                };
                let about = file.metadata().map_err(io(name))?;
                match about.is_file() {
                    true => Ok(Some((Box::new(file), about.len()))),
                    false => Err(refused(name, "not a file")),
                }
            }
            Self::Archive { file, entries } => {
                let mut path = inside(name.as_bytes()).unwrap_or_default();
                for _ in 0..MOST_LINKS {
                    match entries.get(&path) {
                        None => return Ok(None),
                        Some(Place::Link(to)) => path.clone_from(to),
                        Some(&Place::Data { offset, size }) => {
                            let slice = Slice {
                                file: Rc::clone(file),
                                at: offset,
                                left: size,
                            };
                            return Ok(Some((Box::new(slice), size)));
                        }
                    }
                }
                Err(refused(name, "links that lead nowhere"))
            }
        }
    }

    /// All of a file that is there, and small.
    ///
    /// # Errors
    /// From the file system, and if there is none, or more than `most` bytes of it.
    pub fn content(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>> {
        let Some((mut file, size)) = self.find(name)? else {
            return Ok(None);
        };
        if size > most {
            return Err(refused(name, format!("{size} bytes, {most} are the most")));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io(name))?;
        Ok(Some(bytes))
    }
}

/// A name without `.` and `..`, if it does not begin above.
fn lexical(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::Normal(part) => clean.push(part),
            std::path::Component::ParentDir if !clean.pop() => return None,
            _ => {}
        }
    }
    Some(clean)
}
