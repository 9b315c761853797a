// SPDX-License-Identifier: Apache-2.0
//! Root filesystems that are mounted here, out of files and directories in the share.

use crate::boot;
use protos::guest::RootLayer;
use protos::places::ROOTS;
use protos::ttrpc::Context;
use protos::types::Mount;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use task::aside;
use task::reaper::Reaper;
use task::rootfs::{self, Layer, Verity};
use tokio::sync::Mutex;

pub struct Layers {
    reaper: Rc<Reaper>,
    /// Held while one is mounted or unmounted.
    turn: Mutex<()>,
}

impl Layers {
    pub fn new(reaper: Rc<Reaper>) -> Rc<Self> {
        Rc::new(Self {
            reaper,
            turn: Mutex::default(),
        })
    }

    /// Mounts the root filesystem of container `id`, whether somebody waits for it or not: who
    /// gives up unmounts it.
    ///
    /// # Errors
    /// Which mount failed, and why; nothing is mounted then.
    pub async fn mount(self: &Rc<Self>, id: &str, layers: Vec<RootLayer>) -> Result<(), String> {
        let (own, base) = (Rc::clone(self), Path::new(ROOTS).join(id));
        let mounted = tokio::task::spawn_local(async move {
            let _turn = own.turn.lock().await;
            own.take_away(&base).await;
            let layers = prepare(base.clone(), layers).await?;
            let disks: Vec<PathBuf> = layers
                .iter()
                .filter(|layer| is_disk(&layer.mount))
                .map(|layer| base.join(layer.mount.target.trim_start_matches('/')))
                .collect();
            let whole = Context::background();
            let mounted =
                rootfs::mount_layers(&own.reaper, &whole, base.clone().into(), layers).await;
            if mounted.is_err() {
                own.take_away(&base).await;
            } else if !disks.is_empty() {
                aside::beside(move || disks.iter().for_each(|disk| boot::read_ahead(disk))).await;
            }
            mounted.map_err(|e| e.to_string())
        });
        mounted.await.map_err(|e| e.to_string())?
    }

    /// Unmounts that of container `id`, if it has one.
    pub async fn unmount(&self, id: &str) {
        let _turn = self.turn.lock().await;
        self.take_away(&Path::new(ROOTS).join(id)).await;
    }

    async fn take_away(&self, base: &Path) {
        let there = base.to_owned();
        if !aside::beside(move || there.exists()).await {
            return;
        }
        if let Err(e) = rootfs::unmount_recursive(&self.reaper, base.to_owned()).await {
            return log::warn!("{}: it stays mounted: {e}", base.display());
        }
        if let Err(e) = fs::remove_dir(base) {
            log::warn!("{}: {e}", base.display());
        }
    }
}

/// Makes the directory `base`, and loads the drivers that `layers` need.
async fn prepare(base: PathBuf, layers: Vec<RootLayer>) -> Result<Vec<Layer>, String> {
    aside::beside(move || {
        for layer in &layers {
            if let Some(mount) = &layer.mount {
                // The kernel would start a program that does it.
                boot::load(&mount.r#type)?;
                if is_disk(mount) {
                    boot::load("loop")?;
                }
            }
            if layer.verity.is_some() {
                boot::load("dm_verity")?;
            }
        }
        fs::create_dir_all(&base).map_err(|e| format!("mkdir {}: {e}", base.display()))?;
        Ok(layers.into_iter().map(layer).collect())
    })
    .await
}

/// Whether a file is mounted as a disk.
fn is_disk(mount: &Mount) -> bool {
    mount.options.iter().any(|option| option == "loop")
}

fn layer(told: RootLayer) -> Layer {
    let dirs = told.dirs.into_iter();
    Layer {
        mount: told.mount.unwrap_or_default(),
        dirs: dirs.map(|dir| (dir.path.into(), dir.mode)).collect(),
        verity: told.verity.map(|verity| Verity {
            root_hash: verity.root_hash,
            hash_offset: verity.hash_offset,
        }),
    }
}
