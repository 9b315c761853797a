// SPDX-License-Identifier: Apache-2.0
//! What the file server answers: what [`PassthroughFs`] does, in the guest's numbers, with programs that
//! are kept and with room for everybody.

mod saved;

use crate::fsd::programs::Programs;
use crate::fsd::sockets::Sockets;
use crate::fsd::tree::{Mark, Tree};
use crate::fsd::{ALONE, FULL, Handle, Inode, KEPT};
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use virtiofsd::filesystem::{
    Context, DirEntry, DirectoryIterator, Entry, Extensions, FileSystem, FsOptions, GetxattrReply,
    ListxattrReply, OpenOptions, SetattrValid, SetxattrFlags, ZeroCopyReader, ZeroCopyWriter,
};
use virtiofsd::fuse::{ATTR_SUBMOUNT, Attr, SetattrIn};
use virtiofsd::passthrough::PassthroughFs;

pub struct Files {
    files: PassthroughFs,
    sockets: Option<Arc<Sockets>>,
    known: Mutex<Known>,
    /// Where virtiofsd writes, or reads, what of it is saved.
    scratch: File,
}

/// What the guest knows.
struct Known {
    programs: Programs,
    tree: Tree,
}

/// The names in a directory.
pub struct Names {
    names: <PassthroughFs as FileSystem>::DirIter,
    mark: Mark,
}

impl DirectoryIterator for Names {
    fn next(&mut self) -> Option<DirEntry<'_>> {
        let mut entry = self.names.next()?;
        entry.ino = self.mark.of(entry.ino);
        Some(entry)
    }
}

impl Files {
    /// `files`, of which the guest may know so many at a time, and have so many open; `scratch` is a file
    /// that nobody else has.
    pub fn new(
        files: PassthroughFs,
        (known, open): (usize, usize),
        sockets: Option<Arc<Sockets>>,
        scratch: File,
    ) -> Self {
        let known = Known {
            programs: Programs::default(),
            tree: Tree::new(known, open),
        };
        Self {
            files,
            sockets,
            known: Mutex::new(known),
            scratch,
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest is told of `entry`, unless there is no room.
    fn tell(
        &self,
        context: Context,
        parent: Inode,
        name: &CStr,
        mut entry: Entry,
    ) -> io::Result<Entry> {
        let is_alone = self.is_alone_in_share(context, parent, &entry);
        let entered = self.enter(parent, name, &mut entry, is_alone);
        self.ask_to_forget(entered.is_err());
        match entered {
            Ok(()) => Ok(entry),
            Err(e) => {
                self.files.forget(context, entry.inode, 1);
                Err(e)
            }
        }
    }

    fn enter(
        &self,
        parent: Inode,
        name: &CStr,
        entry: &mut Entry,
        is_alone: bool,
    ) -> io::Result<()> {
        let tree = &mut self.known().tree;
        tree.enter(parent, name, entry)?;
        if is_alone {
            tree.leave_alone(entry.inode);
        }
        if tree.is_alone(entry.inode) {
            entry.attr_timeout = KEPT;
            // That of a name in the share is the host's.
            if !entry.entry_timeout.is_zero() {
                entry.entry_timeout = KEPT;
            }
        }
        Ok(())
    }

    /// Whether `entry`, found in `parent`, is a filesystem that changes only through the guest.
    fn is_alone_in_share(&self, context: Context, parent: Inode, entry: &Entry) -> bool {
        let is_mount = entry.attr.flags & ATTR_SUBMOUNT != 0;
        if !is_mount || !self.known().tree.is_share(parent) {
            return false;
        }
        let parent = self.files.getattr(context, parent, None);
        parent.is_ok_and(|(parent, _)| parent.mode & ALONE != 0)
    }

    fn is_alone(&self, inode: Inode) -> bool {
        self.known().tree.is_alone(inode)
    }

    /// Before something is made in `parent`.
    fn has_room(&self, parent: Inode) -> io::Result<()> {
        let has_room = self.known().tree.has_room(parent);
        self.ask_to_forget(has_room.is_err());
        has_room
    }

    /// Has the shim ask the guest to forget what it does not use, if it is time to.
    fn ask_to_forget(&self, refused: bool) {
        if self.known().tree.asks(Instant::now(), refused) {
            let _ = io::stderr().write_all(format!("{FULL}\n").as_bytes());
        }
    }

    /// What `open` opens, if there is room.
    fn opened<T>(
        &self,
        inode: Inode,
        open: impl FnOnce() -> io::Result<(Option<Handle>, T)>,
    ) -> io::Result<(Option<Handle>, T)> {
        let has_room = self.known().tree.has_room_to_open(inode);
        has_room?;
        let (handle, options) = open()?;
        if handle.is_some() {
            self.known().tree.opened(inode);
        }
        Ok((handle, options))
    }

    fn numbered(&self, inode: Inode, (mut attr, fresh): (Attr, Duration)) -> (Attr, Duration) {
        let tree = &self.known().tree;
        attr.ino = tree.mark(inode).of(attr.ino);
        (attr, if tree.is_alone(inode) { KEPT } else { fresh })
    }
}

/// What a guest is told, and may keep, of a name that is not there.
fn nothing() -> Entry {
    Entry {
        inode: 0,
        generation: 0,
        attr: Attr::default(),
        attr_timeout: Duration::ZERO,
        entry_timeout: KEPT,
    }
}

/// Leaves these to the files themselves.
macro_rules! forward {
    ($(fn $name:ident$(<$kind:ident: $what:ident>)?($($argument:ident: $type:ty),*) $(-> $answer:ty)?;)*) => {
        $(fn $name$(<$kind: $what>)?(&self, $($argument: $type),*) $(-> $answer)? {
            self.files.$name($($argument),*)
        })*
    };
}

#[rustfmt::skip]
impl FileSystem for Files {
    type Inode = Inode;
    type Handle = Handle;
    type DirIter = Names;

    fn lookup(&self, context: Context, parent: Inode, name: &CStr) -> io::Result<Entry> {
        match self.files.lookup(context, parent, name) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) && self.is_alone(parent) => Ok(nothing()),
            entry => self.tell(context, parent, name, entry?),
        }
    }

    fn mkdir(&self, context: Context, parent: Inode, name: &CStr, mode: u32, umask: u32, extensions: Extensions) -> io::Result<Entry> {
        self.has_room(parent)?;
        let entry = self.files.mkdir(context, parent, name, mode, umask, extensions)?;
        self.tell(context, parent, name, entry)
    }

    fn create(&self, context: Context, parent: Inode, name: &CStr, mode: u32, kill_priv: bool, flags: u32, umask: u32, extensions: Extensions) -> io::Result<(Entry, Option<Handle>, OpenOptions)> {
        self.has_room(parent)?;
        let has_room = self.known().tree.has_room_to_open(parent);
        has_room?;
        let (entry, handle, mut options) = self.files.create(context, parent, name, mode, kill_priv, flags, umask, extensions)?;
        let inode = entry.inode;
        match self.tell(context, parent, name, entry) {
            Ok(entry) => {
                let mut known = self.known();
                if handle.is_some() {
                    known.tree.opened(inode);
                }
                options.set(OpenOptions::NOFLUSH, known.tree.is_alone(inode));
                Ok((entry, handle, options))
            }
            Err(e) => {
                if let Some(handle) = handle {
                    let _ = self.files.release(context, inode, flags, handle, false, false, None);
                }
                Err(e)
            }
        }
    }

    fn mknod(&self, context: Context, parent: Inode, name: &CStr, mode: u32, rdev: u32, umask: u32, extensions: Extensions) -> io::Result<Entry> {
        self.has_room(parent)?;
        let sockets = self.sockets.as_ref().filter(|_| mode & libc::S_IFMT == libc::S_IFSOCK);
        let made = sockets.is_some_and(|sockets| sockets.make(&self.files, context, (parent, name), mode));
        let entry = match made {
            true => self.files.lookup(context, parent, name)?,
            false => self.files.mknod(context, parent, name, mode, rdev, umask, extensions)?,
        };
        self.tell(context, parent, name, entry)
    }

    fn symlink(&self, context: Context, link_name: &CStr, parent: Inode, name: &CStr, extensions: Extensions) -> io::Result<Entry> {
        self.has_room(parent)?;
        let entry = self.files.symlink(context, link_name, parent, name, extensions)?;
        self.tell(context, parent, name, entry)
    }

    fn link(&self, context: Context, inode: Inode, new_parent: Inode, new_name: &CStr) -> io::Result<Entry> {
        let entry = self.files.link(context, inode, new_parent, new_name)?;
        self.tell(context, new_parent, new_name, entry)
    }

    fn getattr(&self, context: Context, inode: Inode, handle: Option<Handle>) -> io::Result<(Attr, Duration)> {
        let answer = self.files.getattr(context, inode, handle)?;
        Ok(self.numbered(inode, answer))
    }

    fn setattr(&self, context: Context, inode: Inode, attr: SetattrIn, handle: Option<Handle>, valid: SetattrValid) -> io::Result<(Attr, Duration)> {
        let answer = self.files.setattr(context, inode, attr, handle, valid)?;
        Ok(self.numbered(inode, answer))
    }

    fn readdir(&self, context: Context, inode: Inode, handle: Handle, size: u32, offset: u64) -> io::Result<Names> {
        let names = self.files.readdir(context, inode, handle, size, offset)?;
        Ok(Names { names, mark: self.known().tree.mark(inode) })
    }

    fn open(&self, context: Context, inode: Inode, kill_priv: bool, flags: u32) -> io::Result<(Option<Handle>, OpenOptions)> {
        let open = || self.files.open(context, inode, kill_priv, flags);
        let (handle, mut options) = self.opened(inode, open)?;
        let only_reads = flags as i32 & libc::O_ACCMODE == libc::O_RDONLY;
        let is_alone = self.is_alone(inode);
        // A filesystem that is on another machine has something to say when what was written is closed.
        options.set(OpenOptions::NOFLUSH, only_reads || is_alone);
        if is_alone {
            options |= OpenOptions::KEEP_CACHE;
        } else if only_reads {
            let file = self.files.getattr(context, inode, handle).ok();
            let file = file.as_ref().map(|(file, _)| file);
            if self.known().programs.is_as_it_was(inode, file) {
                options |= OpenOptions::KEEP_CACHE;
            }
        }
        Ok((handle, options))
    }

    fn opendir(&self, context: Context, inode: Inode, flags: u32) -> io::Result<(Option<Handle>, OpenOptions)> {
        let (handle, mut options) = self.opened(inode, || self.files.opendir(context, inode, flags))?;
        if self.is_alone(inode) {
            options |= OpenOptions::CACHE_DIR | OpenOptions::KEEP_CACHE;
        }
        Ok((handle, options))
    }

    fn release(&self, context: Context, inode: Inode, flags: u32, handle: Handle, flush: bool, flock_release: bool, lock_owner: Option<u64>) -> io::Result<()> {
        self.files.release(context, inode, flags, handle, flush, flock_release, lock_owner)?;
        self.known().tree.closed(inode);
        Ok(())
    }

    fn releasedir(&self, context: Context, inode: Inode, flags: u32, handle: Handle) -> io::Result<()> {
        self.files.releasedir(context, inode, flags, handle)?;
        self.known().tree.closed(inode);
        Ok(())
    }

    fn syncfs(&self, context: Context, inode: Inode) -> io::Result<()> {
        let mounts = self.known().tree.mounts(inode);
        let synced = mounts.into_iter().map(|mount| self.files.syncfs(context, mount));
        // What is neither a file nor a directory has nothing to write.
        let is_error = |e: &io::Error| e.raw_os_error() != Some(libc::EBADF);
        synced.filter_map(Result::err).find(is_error).map_or(Ok(()), Err)
    }

    fn forget(&self, context: Context, inode: Inode, count: u64) {
        let mut known = self.known();
        known.programs.forget(inode);
        known.tree.forget(inode, count);
        self.files.forget(context, inode, count);
    }

    fn batch_forget(&self, context: Context, requests: Vec<(Inode, u64)>) {
        let mut known = self.known();
        for &(inode, count) in &requests {
            known.programs.forget(inode);
            known.tree.forget(inode, count);
        }
        self.files.batch_forget(context, requests);
    }

    fn destroy(&self) {
        let mut known = self.known();
        known.programs.clear();
        known.tree.clear();
        self.files.destroy();
    }

    forward! {
        fn init(capable: FsOptions) -> io::Result<FsOptions>;
        fn statfs(context: Context, inode: Inode) -> io::Result<libc::statvfs64>;
        fn rmdir(context: Context, parent: Inode, name: &CStr) -> io::Result<()>;
        fn unlink(context: Context, parent: Inode, name: &CStr) -> io::Result<()>;
        fn read<W: ZeroCopyWriter>(context: Context, inode: Inode, handle: Handle, to: W, size: u32, offset: u64, lock_owner: Option<u64>, flags: u32) -> io::Result<usize>;
        fn write<R: ZeroCopyReader>(context: Context, inode: Inode, handle: Handle, from: R, size: u32, offset: u64, lock_owner: Option<u64>, delayed_write: bool, kill_priv: bool, flags: u32) -> io::Result<usize>;
        fn rename(context: Context, old_dir: Inode, old_name: &CStr, new_dir: Inode, new_name: &CStr, flags: u32) -> io::Result<()>;
        fn readlink(context: Context, inode: Inode) -> io::Result<Vec<u8>>;
        fn flush(context: Context, inode: Inode, handle: Handle, lock_owner: u64) -> io::Result<()>;
        fn fsync(context: Context, inode: Inode, datasync: bool, handle: Handle) -> io::Result<()>;
        fn fsyncdir(context: Context, inode: Inode, datasync: bool, handle: Handle) -> io::Result<()>;
        fn access(context: Context, inode: Inode, mask: u32) -> io::Result<()>;
        fn setxattr(context: Context, inode: Inode, name: &CStr, value: &[u8], flags: u32, extra_flags: SetxattrFlags) -> io::Result<()>;
        fn getxattr(context: Context, inode: Inode, name: &CStr, size: u32) -> io::Result<GetxattrReply>;
        fn listxattr(context: Context, inode: Inode, size: u32) -> io::Result<ListxattrReply>;
        fn removexattr(context: Context, inode: Inode, name: &CStr) -> io::Result<()>;
        fn fallocate(context: Context, inode: Inode, handle: Handle, mode: u32, offset: u64, length: u64) -> io::Result<()>;
        fn lseek(context: Context, inode: Inode, handle: Handle, offset: u64, whence: u32) -> io::Result<u64>;
        fn copyfilerange(context: Context, inode_in: Inode, handle_in: Handle, offset_in: u64, inode_out: Inode, handle_out: Handle, offset_out: u64, len: u64, flags: u64) -> io::Result<usize>;
    }
}
