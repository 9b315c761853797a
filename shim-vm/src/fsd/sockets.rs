// SPDX-License-Identifier: Apache-2.0
//! Sockets that containers make in volumes, and to which the host may connect: those that the shim names.
//!
//! Such a one is bound here when the guest makes it. So it is one file with two listeners: that of the
//! container, which the guest's kernel knows it by, and one of the host's, which the shim gets.

use crate::fsd::Inode;
use crate::share::OF_VOLUME;
use crate::{rights, sys};
use nix::fcntl::{OFlag, ResolveFlag};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{fchdir, read};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use task::below::open_below;
use virtiofsd::filesystem::{Context, FileSystem};
use virtiofsd::fuse::ROOT_ID;
use virtiofsd::passthrough::PassthroughFs;
use virtiofsd::soft_idmap::Id;

/// The most places that are known; the oldest gives way.
const MOST: usize = 256;
/// The most that a message has: a number, and a path (PATH_MAX).
const MESSAGE: usize = NUMBER + 4096;
const NUMBER: usize = size_of::<u32>();
/// Who connects waits in the kernel, as many as it lets wait (somaxconn).
const QUEUE: i32 = 128;

pub struct Sockets {
    channel: OwnedFd,
    root: File,
    places: Mutex<Vec<Place>>,
}

/// Where one may be made, in the share.
#[derive(Clone)]
struct Place {
    /// The shim's.
    number: [u8; NUMBER],
    path: PathBuf,
}

impl Place {
    /// As the shim says it; `None` if it is nothing that it says.
    fn read(message: &[u8]) -> Option<Self> {
        let (number, path) = message.split_first_chunk()?;
        let path = Path::new(std::ffi::OsStr::from_bytes(path)).to_owned();
        (path.is_relative() && path.file_name().is_some()).then_some(Self {
            number: *number,
            path,
        })
    }

    /// The directory that it is in, which may be made later than the place is known.
    fn dir(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    /// Whether its volume is still in the share.
    fn has_volume(&self, root: &File) -> bool {
        let volume: PathBuf = self.path.iter().take(OF_VOLUME).collect();
        open_dir(root, &volume).is_ok()
    }
}

/// With no link, wherever somebody has put one meanwhile.
fn open_dir(root: &File, path: &Path) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let rules = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
    open_below(root, path, flags, rules)
}

impl Sockets {
    /// By the channel with this number.
    ///
    /// # Errors
    /// If it is not there.
    pub fn new(channel: i32) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            channel: task::sys::adopt(channel)?,
            root: File::open("/")?,
            places: Mutex::default(),
        }))
    }

    /// Hears where sockets may be made, for as long as there is a shim, and says that it has.
    pub fn listen(&self) {
        let mut message = [0; MESSAGE];
        while let Ok(length @ 1..) = read(&self.channel, &mut message) {
            let Some(place) = Place::read(&message[..length]) else {
                continue;
            };
            let number = place.number;
            let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
            // Of containers that are gone.
            places.retain(|known| known.has_volume(&self.root));
            if places.len() == MOST {
                places.remove(0);
            }
            places.push(place);
            drop(places);
            let _ = rights::send(self.channel.as_fd(), &number, &[]);
        }
    }

    /// Makes the socket `name` in `parent`, if it is one of those, and gives the shim its listener. False
    /// if it was not made: then it is one like any other, or its maker is told why it can't be.
    pub fn make(
        &self,
        files: &PassthroughFs,
        context: Context,
        (parent, name): (Inode, &CStr),
        mode: u32,
    ) -> bool {
        let is_name = |place: &&Place| {
            let known = place.path.file_name();
            known.is_some_and(|known| known.as_bytes() == name.to_bytes())
        };
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let named: Vec<Place> = places.iter().filter(is_name).cloned().collect();
        // A disk may be waited for from here on.
        drop(places);
        let mut named = named.iter();
        let Some(place) = named.find(|place| is_dir(files, context, place, parent)) else {
            return false;
        };
        let bound = open_dir(&self.root, place.dir()).map_err(io::Error::from);
        let Ok(listener) = bound.and_then(|dir| self.bind(&dir, name, mode, context)) else {
            return false;
        };
        // If there is no shim, or it hears of too many, nobody on the host is connected.
        let _ = rights::send(self.channel.as_fd(), &place.number, &[listener.as_fd()]);
        true
    }

    /// As the guest's user; whether that may is for the guest's kernel to say, and the host's.
    fn bind(&self, dir: &OwnedFd, name: &CStr, mode: u32, who: Context) -> io::Result<OwnedFd> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let made = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        fchmod(&made, Mode::from_bits_truncate(mode))?;
        let address = UnixAddr::new(name.to_bytes())?;
        // A name in a socket's address can't be below a directory that is open (unix(7)).
        fchdir(dir)?;
        let bound = sys::as_user((who.uid.into_inner(), who.gid.into_inner()), || {
            bind(made.as_raw_fd(), &address)
        });
        fchdir(&self.root)?;
        bound??;
        listen(&made, Backlog::new(QUEUE)?)?;
        Ok(made)
    }
}

/// Whether `parent` is the directory of `place`, as it is now.
fn is_dir(files: &PassthroughFs, context: Context, place: &Place, parent: Inode) -> bool {
    let (mut at, mut looked_up) = (ROOT_ID, Vec::new());
    let is_there = place.dir().iter().all(|name| {
        let name = CString::new(name.as_bytes()).unwrap_or_default();
        let Ok(entry) = files.lookup(context, at, &name) else {
            return false;
        };
        at = entry.inode;
        looked_up.push((at, 1));
        true
    });
    files.batch_forget(context, looked_up);
    is_there && at == parent
}
