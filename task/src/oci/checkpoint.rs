// SPDX-License-Identifier: Apache-2.0
//! Checkpoints by CRIU (contract T21, T73).

use super::Oci;
use crate::aside;
use crate::container::Container;
use crate::error::{Error, Result};
use protos::runc::CheckpointOptions;
use protos::ttrpc::Context;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

/// What a container is restored from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Checkpoint {
    /// A directory with CRIU's images.
    pub image: String,
    /// The image it builds on; empty without one.
    pub parent: String,
}

/// Writes a checkpoint into `image`. CRIU works in `work_path`, or in a directory that goes again.
///
/// # Errors
/// Code Unknown with what the runtime said and where CRIU's log is.
pub async fn write(
    container: &Container<Oci>,
    image: &Path,
    options: &CheckpointOptions,
    context: &Context,
) -> Result<()> {
    let own = container.bundle.work().join("criu-work");
    let work = match options.work_path.as_str() {
        "" => own.clone(),
        path => PathBuf::from(path),
    };
    let made = work.clone();
    aside::run(move || fs::create_dir_all(&made).map_err(Error::io("mkdir", &made))).await?;
    let cli = &container.own.cli;
    let done = cli
        .checkpoint(&container.id, image, &work, options, context)
        .await;
    let (id, log, failed) = (
        container.id.clone(),
        container.bundle.criu_dump_log(),
        done.is_err(),
    );
    let kept = log.clone();
    aside::run(move || {
        if failed && let Err(e) = fs::copy(work.join("dump.log"), kept) {
            log::error!("{id}: copy of CRIU's dump.log: {e}");
        }
        if work == own {
            let _ = fs::remove_dir_all(own);
        }
    })
    .await;
    done.map_err(|failure| failure.checkpoint(&log))
}
