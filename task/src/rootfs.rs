// SPDX-License-Identifier: Apache-2.0
//! A container's root filesystem: containerd's mounts become it, and it is unmounted again.
//!
//! Mounting and unmounting can block for long (a slow disk, a dead server), so each call does its
//! work on a short-lived thread of this process (contract N7: never of a child), and the loop
//! waits for its answer. A caller that stops waiting does not stop the thread. Only FUSE has
//! helper programs in place of the thread (contract N6).

mod error;
mod fuse;
mod hidden;
mod idmap;
mod loopdev;
pub(crate) mod mountinfo;
mod namespace;
mod options;
mod remount;
mod target;
#[cfg(test)]
mod tests;
mod unmount;
mod verity;

pub use error::MountError;
pub use hidden::{Hidden, followed, show};
pub use idmap::{hide_this_thread, user_namespace};
pub use namespace::{Namespace, Place};
pub use options::Refusal;
pub use verity::Verity;

use crate::aside;
use crate::error::of_call;
use crate::reaper::Reaper;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{SysconfVar, chdir, sysconf};
use options::{Arguments, Image, Plan};
use protos::ttrpc::Context;
use protos::types::Mount;
use remount::make_readonly;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use target::Target;

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
    let layers = mounts.into_iter().map(Layer::from).collect();
    mount_layers(reaper, context, rootfs.into(), layers).await
}

/// [`mount_all`], of mounts of which some can do more, and anywhere.
///
/// # Errors
/// Which mount failed, and why; nothing is mounted then.
pub async fn mount_layers(
    reaper: &Reaper,
    context: &Context,
    place: Place,
    layers: Vec<Layer>,
) -> Result<(), MountError> {
    let page = sysconf(SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .map_or(4096, |size| size as usize);
    let jobs = layers
        .into_iter()
        .map(|layer| {
            let one = &layer.mount;
            match options::plan(&one.r#type, &one.options, page) {
                Ok(plan) => Ok((layer, plan)),
                Err(why) => Err(MountError::refused(layer.mount, why)),
            }
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut done = Vec::new();
    for (layer, plan) in jobs {
        let remount = matches!(&plan, Plan::Kernel(how) if how.flags.contains(MsFlags::MS_REMOUNT));
        let job = Job {
            place: place.clone(),
            one: layer.mount,
            dirs: layer.dirs,
            verity: layer.verity,
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
                if let Err(left) = place.run(|| unmount::each(done)).await {
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
    let fuse = aside::alone(move || {
        let (fuse, points) = unmount::below(&path)?;
        if fuse.is_empty() {
            unmount::each(points)?;
        }
        Ok::<_, MountError>(fuse)
    });
    let fuse = fuse.await?;
    if fuse.is_empty() {
        return Ok(());
    }
    fuse::unmount(reaper, fuse).await;
    // What the helpers left, and all the rest.
    aside::alone(move || unmount::each(unmount::below(&again)?.1)).await
}

/// Whether something is mounted below `place`.
///
/// # Errors
/// If it can't be looked up.
pub async fn has_mounts_below(place: Place) -> Result<bool, MountError> {
    let path = place.dir.clone();
    let below = move || Ok(unmount::below(&path)?.1.iter().any(|point| *point != path));
    place.run(below).await
}

/// A mount, and what it takes.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    pub mount: Mount,
    /// Directories that are made before, if they are missing: their paths below the root filesystem's
    /// directory, in what is mounted there by then, and their modes.
    pub dirs: Vec<(PathBuf, u32)>,
    /// The source is an image that this stands for.
    pub verity: Option<Verity>,
}

impl From<Mount> for Layer {
    fn from(mount: Mount) -> Self {
        Self {
            mount,
            ..Self::default()
        }
    }
}

/// One mount to make.
#[derive(Clone)]
struct Job {
    place: Place,
    one: Mount,
    dirs: Vec<(PathBuf, u32)>,
    verity: Option<Verity>,
}

impl Job {
    /// Mounts by mount(2), and tells where.
    async fn mount(self, reaper: &Reaper, how: Arguments) -> Result<PathBuf, MountError> {
        let Some(ids) = how.ids.clone() else {
            let place = self.place.clone();
            return place
                .run(move || {
                    self.make_dirs()?;
                    let target = self.target()?;
                    self.mount_here(&target, &how)?;
                    Ok(target.path)
                })
                .await;
        };
        let users = idmap::user_namespace(reaper, &ids.uid_map, &ids.gid_map).await;
        let users = users.map_err(|error| {
            self.prepare(
                "make a user namespace for",
                &self.place.dir,
                &self.place.dir,
                error,
            )
        })?;
        let job = self.clone();
        let place = self.place.clone();
        let mounted = place.run(move || {
            job.make_dirs()?;
            job.mount_hidden(&how, &ids, &users)
        });
        let mounted = mounted.await?;
        place
            .run(move || {
                let target = self.target()?;
                let open = target.open().map_err(|e| self.no_target(e))?;
                let attached = crate::sys::attach_mount(mounted.as_fd(), open.as_fd());
                attached.map_err(|errno| self.failed(&target.path, errno))?;
                Ok(target.path)
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
        let (one, place) = (self.one.clone(), self.place.clone());
        let (target, before) = place
            .run(move || {
                let target = self.target()?.path;
                let before = unmount::count_at(&target)?;
                Ok::<_, MountError>((target, before))
            })
            .await?;
        let mut helper = fuse::command(program, kind, &one, &target);
        let command = format!("{helper:?}");
        if let Some(namespace) = place.namespace.clone() {
            helper.mounts(namespace);
        }
        let Err(failure) = fuse::mount(reaper, helper, context).await else {
            return Ok(target);
        };
        // It may have come as far as mounting, and no further.
        let undone = place.run(move || {
            let more = unmount::count_at(&target)?.saturating_sub(before);
            unmount::each(vec![target; more])
        });
        if let Err(left) = undone.await {
            log::error!("cannot undo a mount helper's mount: {left}");
        }
        Err(MountError::Helper { command, failure })
    }

    fn target(&self) -> Result<Target, MountError> {
        Target::below(&self.place.dir, &self.one.target).map_err(|error| self.no_target(error))
    }

    fn no_target(&self, error: io::Error) -> MountError {
        MountError::Target {
            rootfs: self.place.dir.clone(),
            target: self.one.target.clone(),
            error,
        }
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
        how: &Arguments,
        ids: &idmap::Ids,
        users: &OwnedFd,
    ) -> Result<OwnedFd, MountError> {
        let failed = |doing, path: &Path| {
            let path = path.to_owned();
            move |errno: Errno| self.prepare(doing, &path, &self.place.dir, of_call(errno))
        };
        idmap::hide_this_thread().map_err(failed("make a mount namespace for", &self.place.dir))?;
        // Only now: what is open in another mount namespace can't be mounted on.
        let target = self.target()?;
        for dir in &ids.lower {
            idmap::cover(dir, users).map_err(failed("map the owners of", dir))?;
        }
        self.mount_here(&target, how)?;
        let taken = idmap::take(&self.target()?.point(), ids, users);
        taken.map_err(failed("map the owners of", &target.path))
    }

    /// The source's, and those of the files that it needs beside itself.
    fn disks(
        &self,
        image: Image,
        how: &Arguments,
    ) -> Result<Vec<loopdev::Device>, loopdev::Failure> {
        let readonly = how.flags.contains(MsFlags::MS_RDONLY);
        let files = [&self.one.source].into_iter().chain(&how.devices);
        let attach = |file: &String| loopdev::attach(Path::new(file), image, readonly);
        files.map(attach).collect()
    }

    fn make_dirs(&self) -> Result<(), MountError> {
        for (dir, mode) in &self.dirs {
            let made = target::make_dir(&self.place.dir, dir, *mode);
            made.map_err(|e| self.prepare("make directory", dir, &self.place.dir, e))?;
        }
        Ok(())
    }

    fn mount_here(&self, target: &Target, how: &Arguments) -> Result<(), MountError> {
        let point = target.point();
        let failed = |errno| self.failed(&target.path, errno);
        let no_device = |e: loopdev::Failure| self.prepare(e.doing, &e.path, &target.path, e.error);
        let disks = match how.image {
            Some(image) => self.disks(image, how).map_err(no_device)?,
            None => Vec::new(),
        };
        let mut source = disks
            .first()
            .map_or(Path::new(&self.one.source), |disk| &disk.path);
        let checked = match &self.verity {
            Some(verity) => Some(verity::open(source, verity).map_err(no_device)?),
            None => None,
        };
        if let Some(checked) = &checked {
            source = &checked.path;
        }
        let data = disks.iter().skip(1).fold(how.data.clone(), |data, disk| {
            let device = format!("device={}", disk.path.display());
            if data.is_empty() {
                device
            } else {
                format!("{data},{device}")
            }
        });
        if let Some(dir) = &how.chdir {
            // The working directory of this thread only, not of the process.
            unshare(CloneFlags::CLONE_FS).map_err(failed)?;
            chdir(dir.as_str()).map_err(failed)?;
        }
        let remount = how.flags.contains(MsFlags::MS_REMOUNT);
        let readonly_bind = how.flags.contains(MsFlags::MS_BIND | MsFlags::MS_RDONLY);
        if !(remount && readonly_bind && data.is_empty()) {
            let kind = self.one.r#type.as_str();
            // Some filesystems take an empty text for a wrong one.
            let data = Some(data.as_str()).filter(|data| !data.is_empty());
            mount(Some(source), &point, Some(kind), how.flags, data).map_err(failed)?;
        }
        if readonly_bind {
            // Opened anew: what was open is below the mount now.
            let made = make_readonly(&self.target()?.point(), how.flags);
            if made.is_err() && !remount {
                unmount::each(vec![target.path.clone()])?;
            }
            made.map_err(failed)?;
        }
        Ok(())
    }
}
