// SPDX-License-Identifier: Apache-2.0
//! Where things are made before they are shown in the share: a mount namespace for each container that
//! is made, a copy of the host's at that time.
//!
//! ```text
//!  host's ── copied for a Create ──> the stage's: the container's mounts are made there
//!                                       │ a copy of each that is whole, mounted nowhere
//!  the share's <────────────────────────┘ mounted at a directory that is open
//! ```
//!
//! So a container has what the host has mounted by then, also where mounts of the host's are private and
//! no other namespace hears of them.

use super::{STAGE, Share, Terms};
use crate::rootfs::{Mounts, TOP};
use crate::skeleton::{Skeleton, say};
use protos::ttrpc::Context;
use protos::types::Mount;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use task::aside;
use task::rootfs::{self, Layer, Namespace, Place};

pub type Stage = Namespace;

/// Where in the share something is shown: as `name` in `dir`, a directory or a file.
pub(super) struct Point {
    pub dir: Skeleton,
    pub name: &'static str,
    pub is_dir: bool,
}

impl Point {
    fn make(&self, at: &Skeleton, name: &str) -> Result<Skeleton, String> {
        let made = match self.is_dir {
            true => at.make_dir(name),
            false => at.make_file(name),
        };
        made.map_err(|e| format!("make {name}: {e}"))
    }
}

impl Share {
    /// Where the files of a container are made, out of what the host has mounted now.
    ///
    /// # Errors
    /// If it can't be made.
    pub async fn stage(&self) -> Result<Stage, String> {
        let stage = Namespace::copy().await;
        stage.map_err(|e| format!("mount namespace: {e}"))
    }

    /// Makes `mounts` where nobody else sees them, and then shows the guest what they have become.
    pub(super) async fn show(
        &self,
        at: Point,
        mounts: Mounts,
        terms: Terms,
        stage: &Stage,
        context: &Context,
    ) -> Result<(), String> {
        let number = self.stages.get();
        self.stages.set(number + 1);
        let name = format!("{STAGE}{number}");
        let (path, place) = &self.place;
        let path = path.join(&name);
        let shown = async {
            let target = at.make(&at.dir, at.name)?;
            at.make(place, &name)?;
            let (layers, top) = layers(mounts, &path).await?;
            let made = Place {
                namespace: Some(stage.clone()),
                dir: path,
            };
            let mounted = rootfs::mount_layers(&self.reaper, context, made, layers).await;
            mounted.map_err(|e| e.to_string())?;
            let shown = async {
                let tree = stage.run(move || terms.copy(&top)).await?;
                let show = move || rootfs::show(tree.as_fd(), target.as_fd());
                self.namespace.run(move || Ok(show()?)).await
            };
            shown.await.map_err(|e: io::Error| e.to_string())
        };
        let shown = shown.await;
        let (place, failed) = (Arc::clone(place), shown.is_err());
        aside::run(move || {
            // What is mounted there goes with the stage.
            say(&name, place.clear(&name));
            if failed {
                say(at.name, at.dir.clear(at.name));
            }
        })
        .await;
        shown
    }
}

/// How `mounts` are made in the directory `stage`, and where in it is what comes of them.
async fn layers(mounts: Mounts, stage: &Path) -> Result<(Vec<Layer>, PathBuf), String> {
    match mounts {
        Mounts::Plain(mounts) => {
            let layers = mounts.into_iter().map(Layer::from);
            Ok((layers.collect(), stage.to_owned()))
        }
        Mounts::Stack(stack) => {
            let base = stage.to_string_lossy().into_owned();
            let layers = aside::run(move || stack.layers(&base, str::to_owned, None)).await?;
            Ok((layers, stage.join(TOP)))
        }
    }
}

/// A mount of the directory or file `source`, with or without what is mounted in it.
pub fn bind(source: &Path, alone: bool) -> Mount {
    let kind = if alone { "bind" } else { "rbind" };
    Mount {
        r#type: "bind".into(),
        source: source.to_string_lossy().into_owned(),
        options: vec![kind.into()],
        ..Default::default()
    }
}
