//! A container's root filesystem: containerd's mounts become it, and it is unmounted again.
//!
//! Mounting and unmounting can block for long (a slow disk, a dead server), so each call does its
//! work on a short-lived thread of this process (contract N7: never of a child), and the loop
//! waits for its answer. A caller that stops waiting does not stop the thread. Only FUSE has
//! helper programs in place of the thread (contract N6).

mod fuse;
mod idmap;
mod loopdev;
pub(crate) mod mountinfo;
mod options;
mod target;
#[cfg(test)]
mod tests;
mod unmount;

pub use options::Refusal;

use crate::aside;
use crate::error::{of_call, words};
use crate::reaper::Reaper;
use crate::runtime::Failure;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{SysconfVar, chdir, sysconf};
use options::{Arguments, Plan};
use protos::ttrpc::Context;
use protos::types::Mount;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The flags of a mount that a user namespace may not clear, as statvfs(3) and mount(2) call them.
#[rustfmt::skip]
const LOCKED: [(FsFlags, MsFlags); 7] = [
    (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
    (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
    (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
    (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
    (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
    (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
    (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
];

/// Why a root filesystem could not be made or taken down.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// Nothing was mounted.
    #[error("mount source: {source_path:?}, target: {target:?}, fstype: {kind}: {refusal}")]
    Refused {
        kind: String,
        source_path: String,
        target: String,
        refusal: Refusal,
    },
    #[error(
        "mount source: {source_path:?}, target: {target:?}, fstype: {kind}, \
         options: {options:?}: {}",
        words(error)
    )]
    Mount {
        kind: String,
        source_path: String,
        target: PathBuf,
        options: String,
        error: io::Error,
    },
    #[error(
        "mount source: {source_path:?}, target: {target:?}, fstype: {kind}: \
         {doing} {}: {}", path.display(), words(error)
    )]
    Prepare {
        kind: String,
        source_path: String,
        target: PathBuf,
        doing: &'static str,
        path: PathBuf,
        error: io::Error,
    },
    /// A helper program mounts, and did not.
    #[error("mount helper {command} failed: {failure}")]
    Helper { command: String, failure: Failure },
    #[error("mount target {target:?} in {rootfs:?}: {}", words(error))]
    Target {
        rootfs: PathBuf,
        target: String,
        error: io::Error,
    },
    #[error("unmount {path:?}: {}", words(error))]
    Unmount { path: PathBuf, error: io::Error },
    #[error("what is mounted at {path:?}: {}", words(error))]
    Lookup { path: PathBuf, error: io::Error },
    #[error("mount thread: {0}")]
    Thread(#[from] io::Error),
}

/// The data and the directory that options make, for the fuzzer.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_options(
    kind: &str,
    list: &[String],
    page: usize,
) -> Result<(String, Option<String>), Refusal> {
    options::plan(kind, list, page).map(|plan| match plan {
        options::Plan::Kernel(arguments) => (arguments.data, arguments.chdir),
        options::Plan::Helper { .. } => (String::new(), None),
    })
}

/// Mounts all of `mounts`, parents before children, each at its target below `rootfs` (contract
/// N1 to N6). If one fails, those before it are unmounted again, the last one first.
///
/// Refuses, before it mounts anything, what only containerd's mount manager understands
/// (contract N8). A helper is killed when the caller gives up.
pub async fn mount_all(
    reaper: &Reaper,
    context: &Context,
    rootfs: PathBuf,
    mounts: Vec<Mount>,
) -> Result<(), MountError> {
    let page = sysconf(SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .map_or(4096, |size| size as usize);
    let jobs = mounts
        .into_iter()
        .map(|one| match options::plan(&one.r#type, &one.options, page) {
            Ok(plan) => Ok((one, plan)),
            Err(why) => Err(refused(one, why)),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut done = Vec::new();
    for (one, plan) in jobs {
        let remount = matches!(&plan, Plan::Kernel(how) if how.flags.contains(MsFlags::MS_REMOUNT));
        let job = Job {
            rootfs: rootfs.clone(),
            one,
        };
        let mounted = match plan {
            Plan::Kernel(how) => job.mount(reaper, how).await,
            Plan::Helper { program, kind } => job.help(reaper, context, program, &kind).await,
        };
        match mounted {
            Ok(_) if remount => {}
            Ok(target) => done.push(target),
            Err(error) => {
                done.reverse();
                if let Err(left) = on_thread(|| unmount::each(done)).await {
                    log::error!("cannot undo the mounts before a failed one: {left}");
                }
                return Err(error);
            }
        }
    }
    Ok(())
}

/// Unmounts everything that is mounted at or below `path`, the last one first, and tries busy
/// mounts again for 2.5 s (contract N7). Ok if nothing is mounted there or `path` is missing.
pub async fn unmount_recursive(reaper: &Reaper, path: PathBuf) -> Result<(), MountError> {
    let again = path.clone();
    let fuse = on_thread(move || {
        let (fuse, points) = unmount::below(&path)?;
        if fuse.is_empty() {
            unmount::each(points)?;
        }
        Ok(fuse)
    });
    let fuse = fuse.await?;
    if fuse.is_empty() {
        return Ok(());
    }
    fuse::unmount(reaper, fuse).await;
    // What the helpers left, and all the rest.
    on_thread(move || unmount::each(unmount::below(&again)?.1)).await
}

/// Mounting changes what belongs to its thread.
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, MountError> + Send + 'static,
) -> Result<T, MountError> {
    aside::alone(work).await
}

fn refused(one: Mount, refusal: Refusal) -> MountError {
    MountError::Refused {
        kind: one.r#type,
        source_path: one.source,
        target: one.target,
        refusal,
    }
}

/// One mount to make.
#[derive(Clone)]
struct Job {
    rootfs: PathBuf,
    one: Mount,
}

impl Job {
    /// Mounts by mount(2), and tells where.
    async fn mount(self, reaper: &Reaper, how: Arguments) -> Result<PathBuf, MountError> {
        let Some(ids) = how.ids.clone() else {
            return on_thread(move || {
                let target = self.target()?;
                self.mount_here(&target, &how)?;
                Ok(target)
            })
            .await;
        };
        let users = idmap::user_namespace(reaper, &ids).await;
        let users = users.map_err(|error| {
            self.prepare(
                "make a user namespace for",
                &self.rootfs,
                &self.rootfs,
                error,
            )
        })?;
        let job = self.clone();
        let (mounted, target) = on_thread(move || {
            let target = job.target()?;
            let mounted = job.mount_hidden(&target, &how, &ids, &users)?;
            Ok((mounted, target))
        })
        .await?;
        on_thread(move || {
            let attached = crate::sys::attach_mount(mounted.as_fd(), &target);
            attached.map_err(|errno| self.failed(&target, errno))?;
            Ok(target)
        })
        .await
    }

    /// Has a helper program mount, and tells where.
    async fn help(
        self,
        reaper: &Reaper,
        context: &Context,
        program: &str,
        kind: &str,
    ) -> Result<PathBuf, MountError> {
        let one = self.one.clone();
        let (target, before) = on_thread(move || {
            let target = self.target()?;
            let before = unmount::count_at(&target)?;
            Ok((target, before))
        })
        .await?;
        let helper = fuse::command(program, kind, &one, &target);
        let command = format!("{helper:?}");
        let Err(failure) = fuse::mount(reaper, helper, context).await else {
            return Ok(target);
        };
        // It may have come as far as mounting, and no further.
        let undone = on_thread(move || {
            let more = unmount::count_at(&target)?.saturating_sub(before);
            unmount::each(vec![target; more])
        });
        if let Err(left) = undone.await {
            log::error!("cannot undo a mount helper's mount: {left}");
        }
        Err(MountError::Helper { command, failure })
    }

    fn target(&self) -> Result<PathBuf, MountError> {
        target::below(&self.rootfs, &self.one.target).map_err(|error| MountError::Target {
            rootfs: self.rootfs.clone(),
            target: self.one.target.clone(),
            error,
        })
    }

    fn failed(&self, target: &Path, errno: Errno) -> MountError {
        MountError::Mount {
            kind: self.one.r#type.clone(),
            source_path: self.one.source.clone(),
            target: target.to_owned(),
            error: of_call(errno),
            options: self.one.options.join(","),
        }
    }

    fn prepare(
        &self,
        doing: &'static str,
        path: &Path,
        target: &Path,
        error: io::Error,
    ) -> MountError {
        MountError::Prepare {
            kind: self.one.r#type.clone(),
            source_path: self.one.source.clone(),
            target: target.to_owned(),
            doing,
            path: path.to_owned(),
            error,
        }
    }

    /// Mounts where this thread sees it, and nobody else does, and gives the mount away.
    fn mount_hidden(
        &self,
        target: &Path,
        how: &Arguments,
        ids: &idmap::Ids,
        users: &OwnedFd,
    ) -> Result<OwnedFd, MountError> {
        let failed = |doing, path: &Path| {
            let path = path.to_owned();
            move |errno: Errno| self.prepare(doing, &path, target, of_call(errno))
        };
        idmap::hide_this_thread().map_err(failed("make a mount namespace for", target))?;
        for dir in &ids.lower {
            idmap::cover(dir, users).map_err(failed("map the owners of", dir))?;
        }
        self.mount_here(target, how)?;
        idmap::take(target, ids, users).map_err(failed("map the owners of", target))
    }

    fn mount_here(&self, target: &Path, how: &Arguments) -> Result<(), MountError> {
        let failed = |errno| self.failed(target, errno);
        let device = match how.image {
            Some(image) => {
                let readonly = how.flags.contains(MsFlags::MS_RDONLY);
                let device = loopdev::attach(Path::new(&self.one.source), image, readonly);
                Some(device.map_err(|e| self.prepare(e.doing, &e.path, target, e.error))?)
            }
            None => None,
        };
        let source = match &device {
            Some(device) => &device.path,
            None => Path::new(&self.one.source),
        };
        if let Some(dir) = &how.chdir {
            // The working directory of this thread only, not of the process.
            unshare(CloneFlags::CLONE_FS).map_err(failed)?;
            chdir(dir.as_str()).map_err(failed)?;
        }
        let remount = how.flags.contains(MsFlags::MS_REMOUNT);
        let readonly_bind = how.flags.contains(MsFlags::MS_BIND | MsFlags::MS_RDONLY);
        if !(remount && readonly_bind && how.data.is_empty()) {
            let kind = self.one.r#type.as_str();
            // Some filesystems take an empty text for a wrong one.
            let data = Some(how.data.as_str()).filter(|data| !data.is_empty());
            mount(Some(source), target, Some(kind), how.flags, data).map_err(failed)?;
        }
        if readonly_bind && let Err(error) = make_readonly(target, how.flags).map_err(failed) {
            if !remount {
                unmount::each(vec![target.to_owned()])?;
            }
            return Err(error);
        }
        Ok(())
    }
}

/// The second step of a read-only bind mount: the kernel ignores `ro` in the first (contract N4).
fn make_readonly(target: &Path, flags: MsFlags) -> nix::Result<()> {
    let remount = |flags| mount(None::<&str>, target, None::<&str>, flags, None::<&str>);
    let flags = flags | MsFlags::MS_REMOUNT;
    match remount(flags) {
        // A user namespace must keep the flags that the source's mount is locked with.
        Err(Errno::EPERM) => remount(flags | locked(statvfs(target)?.flags())),
        done => done,
    }
}

fn locked(set: FsFlags) -> MsFlags {
    LOCKED
        .iter()
        .filter(|(fs, _)| set.contains(*fs))
        .map(|(_, ms)| *ms)
        .collect()
}
