// SPDX-License-Identifier: Apache-2.0
//! A container's root filesystem, where its VM has it: in the share, or out of files in the share.

use crate::rootfs::{self, Mounts, Root, Stack};
use crate::share::{Stage, bind};
use crate::spec::{Translated, Volume};
use crate::vm::Vm;
use protos::Status;
use protos::guest::{Directory, RootLayer, Verity};
use protos::places::{ROOTS, TOP};
use protos::task::CreateTaskRequest;
use protos::ttrpc::Context;
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use task::Command;
use task::aside;
use task::oci::command::{Streams, run};
use task::reaper::Reaper;
use task::rootfs::Layer;

const MKFS: &str = "mkfs.ext4";

/// The files of a root filesystem: where the host has them, and the guest.
#[derive(Default)]
pub struct Files(BTreeMap<String, String>);

impl Files {
    /// What the guest says of them, with the host's names.
    pub fn name_in(&self, mut status: Status) -> Status {
        // The last first: a number is the beginning of a longer one.
        for (host, guest) in self.0.iter().rev() {
            status.message = status.message.replace(guest, host);
        }
        status
    }
}

/// Mounts the root filesystem where the guest sees it, or shows it the files; what the guest has to
/// mount, which is nothing if the host has done it.
///
/// # Errors
/// What can't be mounted or shown.
pub async fn share(
    vm: &Vm,
    request: &CreateTaskRequest,
    spec: &mut Translated,
    (reaper, stage): (&Reaper, &Stage),
    context: &Context,
) -> Result<(Vec<RootLayer>, Files), String> {
    let id = &request.id;
    let mounts = match &request.rootfs[..] {
        [] => vec![bind(&Path::new(&request.bundle).join(&spec.root), false)],
        mounts => mounts.to_vec(),
    };
    let config = vm.settings.wanted(&spec.wanted)?;
    let points = spec.points.take();
    let (lower, stack) = match rootfs::plan(mounts, config.writable, points.is_some())? {
        Root::Host(mounts) => {
            vm.share
                .add_rootfs(id, mounts, points, stage, context)
                .await?;
            return Ok(Default::default());
        }
        Root::Guest { lower, stack } => (lower, stack),
    };
    if let Some(file) = stack.file() {
        let size = config.writable_size << 20;
        let made = make_filesystem(file, size, reaper, context).await;
        made.map_err(|why| format!("writable file {}: {why}", file.display()))?;
    }
    let files = show(vm, id, &stack, stage, context).await?;
    let lower = match lower {
        Some(mounts) => {
            let (mounts, readonly) = (Mounts::Plain(mounts), Some(Vec::new()));
            vm.share
                .add_rootfs(id, mounts, readonly, stage, context)
                .await?;
            Some(protos::places::rootfs(id))
        }
        None => None,
    };
    let base = format!("{ROOTS}/{id}");
    spec.has_root(&format!("{base}/{TOP}"));
    let layers = aside::run(move || {
        let shown = |file: &str| files.0.get(file).cloned().unwrap_or_default();
        let layers = stack.layers(&base, shown, lower.as_deref())?;
        Ok::<_, String>((layers, files))
    });
    let (layers, files) = layers.await?;
    Ok((layers.into_iter().map(told).collect(), files))
}

/// Shows the guest the files that the stack is made of.
async fn show(
    vm: &Vm,
    id: &str,
    stack: &Stack,
    stage: &Stage,
    context: &Context,
) -> Result<Files, String> {
    let mut files = Files::default();
    for (file, readonly) in stack.files() {
        let name = file.to_string_lossy().into_owned();
        let volume = Volume::file(file, readonly);
        let (shown, is_dir) = vm.share.add_volume(id, &volume, stage, context).await?;
        if is_dir {
            return Err(format!("{name}: a directory, and no image of a filesystem"));
        }
        files.0.insert(name, shown);
    }
    Ok(files)
}

fn told(layer: Layer) -> RootLayer {
    let dir = |(path, mode): (PathBuf, u32)| Directory {
        path: path.to_string_lossy().into_owned(),
        mode,
    };
    RootLayer {
        mount: Some(layer.mount),
        dirs: layer.dirs.into_iter().map(dir).collect(),
        verity: layer.verity.map(|verity| Verity {
            root_hash: verity.root_hash,
            hash_offset: verity.hash_offset,
        }),
    }
}

/// Makes an ext4 of so many bytes in a file, which takes no more of the disk than is written to it, unless
/// it is there. It has its name when it is whole.
async fn make_filesystem(
    file: &Path,
    size: u64,
    reaper: &Reaper,
    context: &Context,
) -> Result<(), String> {
    let begun = file.with_extension("begun");
    let (making, whole) = (begun.clone(), file.to_owned());
    let make = move || -> io::Result<bool> {
        if whole.try_exists()? {
            return Ok(false);
        }
        let mut new = OpenOptions::new();
        let new = new.write(true).create(true).truncate(true).mode(0o600);
        new.open(&making)?.set_len(size).map(|()| true)
    };
    if !aside::run(make).await.map_err(|e| e.to_string())? {
        return Ok(());
    }
    let mut mkfs = Command::new(MKFS);
    // The inode tables are made when they are first needed, and nothing is kept for root.
    let lazily = "lazy_itable_init=1,lazy_journal_init=1,discard,root_owner=0:0";
    mkfs.args(["-q", "-F", "-m", "0", "-E", lazily]).arg(&begun);
    let made = run(reaper, mkfs, Streams::Captured, context).await;
    let whole = file.to_owned();
    aside::run(move || match made {
        Ok(_) => fs::rename(&begun, &whole).map_err(|e| e.to_string()),
        Err(failure) => {
            let _ = fs::remove_file(&begun);
            Err(format!("{MKFS}: {failure}"))
        }
    })
    .await
}
