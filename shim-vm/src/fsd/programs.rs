//! What the guest keeps of the host's programs from one execution to the next.
//!
//! When a file is opened, a guest forgets what it has read of it, unless the file server says that
//! it is as it was: so a change is seen, and each exec reads its whole program again. Of programs
//! we say so when their size and times are those of the last time they were opened. Of other files
//! we don't: those that somebody has mapped into memory change without a change of their times.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use virtiofsd::filesystem::{
    Context, Entry, Extensions, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SerializableFileSystem, SetattrValid, SetxattrFlags, ZeroCopyReader, ZeroCopyWriter,
};
use virtiofsd::fuse::{Attr, SetattrIn};
use virtiofsd::passthrough::PassthroughFs;

type Inode = <PassthroughFs as FileSystem>::Inode;
type Handle = <PassthroughFs as FileSystem>::Handle;

/// A file that changed so lately may change again without its times telling: a filesystem's clock
/// ticks some hundred times a second, that of another machine may be behind, and FAT counts by two
/// seconds.
const SETTLED: Duration = Duration::from_secs(3);

/// The files of [`PassthroughFs`], with programs that are kept.
pub struct Programs {
    files: PassthroughFs,
    /// Each program as it was when the guest opened it last.
    opened: Mutex<HashMap<Inode, State>>,
}

/// What changes with a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    size: u64,
    /// Since the epoch.
    modified: Duration,
    changed: Duration,
}

impl State {
    /// None if it isn't a program's, or may change unnoticed.
    fn of(file: &Attr, now: Duration) -> Option<Self> {
        let executable = file.mode & libc::S_IFMT == libc::S_IFREG && file.mode & 0o111 != 0;
        let state = Self {
            size: file.size,
            modified: Duration::new(file.mtime, file.mtimensec),
            changed: Duration::new(file.ctime, file.ctimensec),
        };
        let last = state.modified.max(state.changed);
        (executable && last.saturating_add(SETTLED) < now).then_some(state)
    }
}

impl Programs {
    pub fn new(files: PassthroughFs) -> Self {
        Self {
            files,
            opened: Mutex::default(),
        }
    }

    fn opened(&self) -> MutexGuard<'_, HashMap<Inode, State>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `inode`, now open, is as it was when it was opened before.
    fn is_as_it_was(&self, context: Context, inode: Inode, handle: Option<Handle>) -> bool {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let file = self.files.getattr(context, inode, handle);
        let state = file.ok().and_then(|(file, _)| State::of(&file, now));
        let mut opened = self.opened();
        let before = match state {
            Some(state) => opened.insert(inode, state),
            None => opened.remove(&inode),
        };
        state.is_some() && before == state
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
impl FileSystem for Programs {
    type Inode = Inode;
    type Handle = Handle;
    type DirIter = <PassthroughFs as FileSystem>::DirIter;

    fn open(&self, context: Context, inode: Inode, kill_priv: bool, flags: u32) -> io::Result<(Option<Handle>, OpenOptions)> {
        let (handle, mut options) = self.files.open(context, inode, kill_priv, flags)?;
        let to_read = flags as i32 & libc::O_ACCMODE == libc::O_RDONLY;
        if to_read && self.is_as_it_was(context, inode, handle) {
            options |= OpenOptions::KEEP_CACHE;
        }
        Ok((handle, options))
    }

    fn forget(&self, context: Context, inode: Inode, count: u64) {
        self.opened().remove(&inode);
        self.files.forget(context, inode, count);
    }

    fn batch_forget(&self, context: Context, requests: Vec<(Inode, u64)>) {
        self.opened().retain(|inode, _| !requests.iter().any(|(gone, _)| gone == inode));
        self.files.batch_forget(context, requests);
    }

    fn destroy(&self) {
        self.opened().clear();
        self.files.destroy();
    }

    forward! {
        fn init(capable: FsOptions) -> io::Result<FsOptions>;
        fn statfs(context: Context, inode: Inode) -> io::Result<libc::statvfs64>;
        fn lookup(context: Context, parent: Inode, name: &CStr) -> io::Result<Entry>;
        fn opendir(context: Context, inode: Inode, flags: u32) -> io::Result<(Option<Handle>, OpenOptions)>;
        fn releasedir(context: Context, inode: Inode, flags: u32, handle: Handle) -> io::Result<()>;
        fn mkdir(context: Context, parent: Inode, name: &CStr, mode: u32, umask: u32, extensions: Extensions) -> io::Result<Entry>;
        fn rmdir(context: Context, parent: Inode, name: &CStr) -> io::Result<()>;
        fn readdir(context: Context, inode: Inode, handle: Handle, size: u32, offset: u64) -> io::Result<Self::DirIter>;
        fn release(context: Context, inode: Inode, flags: u32, handle: Handle, flush: bool, flock_release: bool, lock_owner: Option<u64>) -> io::Result<()>;
        fn create(context: Context, parent: Inode, name: &CStr, mode: u32, kill_priv: bool, flags: u32, umask: u32, extensions: Extensions) -> io::Result<(Entry, Option<Handle>, OpenOptions)>;
        fn unlink(context: Context, parent: Inode, name: &CStr) -> io::Result<()>;
        fn read<W: ZeroCopyWriter>(context: Context, inode: Inode, handle: Handle, to: W, size: u32, offset: u64, lock_owner: Option<u64>, flags: u32) -> io::Result<usize>;
        fn write<R: ZeroCopyReader>(context: Context, inode: Inode, handle: Handle, from: R, size: u32, offset: u64, lock_owner: Option<u64>, delayed_write: bool, kill_priv: bool, flags: u32) -> io::Result<usize>;
        fn getattr(context: Context, inode: Inode, handle: Option<Handle>) -> io::Result<(Attr, Duration)>;
        fn setattr(context: Context, inode: Inode, attr: SetattrIn, handle: Option<Handle>, valid: SetattrValid) -> io::Result<(Attr, Duration)>;
        fn rename(context: Context, old_dir: Inode, old_name: &CStr, new_dir: Inode, new_name: &CStr, flags: u32) -> io::Result<()>;
        fn mknod(context: Context, parent: Inode, name: &CStr, mode: u32, rdev: u32, umask: u32, extensions: Extensions) -> io::Result<Entry>;
        fn link(context: Context, inode: Inode, new_parent: Inode, new_name: &CStr) -> io::Result<Entry>;
        fn symlink(context: Context, link_name: &CStr, parent: Inode, name: &CStr, extensions: Extensions) -> io::Result<Entry>;
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
        fn syncfs(context: Context, inode: Inode) -> io::Result<()>;
    }
}

impl SerializableFileSystem for Programs {
    forward! {
        fn prepare_serialization(cancel: Arc<AtomicBool>);
        fn serialize(state: File) -> io::Result<()>;
        fn deserialize_and_apply(state: File) -> io::Result<()>;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_000_000);

    /// A file of this mode, modified this many seconds before now.
    fn state(mode: u32, ago: u64) -> Option<State> {
        let file = Attr {
            mode,
            size: 7,
            mtime: NOW.as_secs() - ago,
            ctime: NOW.as_secs() - ago,
            ..Attr::default()
        };
        State::of(&file, NOW)
    }

    #[test]
    fn programs_that_have_settled_have_a_state() {
        assert!(state(libc::S_IFREG | 0o755, 60).is_some());
        assert_ne!(
            state(libc::S_IFREG | 0o755, 60),
            state(libc::S_IFREG | 0o755, 61)
        );
        for other in [
            state(libc::S_IFREG | 0o644, 60),
            state(libc::S_IFDIR | 0o755, 60),
            state(libc::S_IFREG | 0o755, 3),
        ] {
            assert_eq!(other, None);
        }
    }

    /// A guest may say of a file what it likes.
    #[test]
    fn times_before_the_epoch_and_to_come_are_times() {
        let file = |mtime| Attr {
            mode: libc::S_IFREG | 0o755,
            mtime,
            ..Attr::default()
        };
        for mtime in [-1_i64 as u64, NOW.as_secs() + 60] {
            assert_eq!(State::of(&file(mtime), NOW), None);
        }
    }
}
