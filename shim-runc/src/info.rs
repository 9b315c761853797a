// SPDX-License-Identifier: Apache-2.0
//! What `-info` tells: who we are, and what the OCI runtime can do (contract B24).

use protos::Any;
use protos::types::{RuntimeInfo, RuntimeVersion};
use std::path::{Path, PathBuf};
use std::process::Command;
use task::oci::Options;

const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// The info of a runtime called `name`, for containers with `options`.
///
/// # Errors
/// If the OCI runtime that the options name is not there.
pub fn info(name: &str, options: Option<Any>) -> shim::Result<RuntimeInfo> {
    let decoded = Options::from_any(options.as_ref())?;
    let binary = if decoded.binary_name.is_empty() {
        "runc"
    } else {
        &decoded.binary_name
    };
    let path = look_up(binary).ok_or_else(|| {
        shim::Error::new(format!(
            "failed to look up the path of \"{binary}\": exec: \"{binary}\": \
             executable file not found in $PATH"
        ))
    })?;
    Ok(RuntimeInfo {
        name: name.into(),
        version: Some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").into(),
            revision: shim::revision().into(),
        }),
        options,
        features: features(&path),
        ..Default::default()
    })
}

/// The file that `binary` runs, as exec would find it.
fn look_up(binary: &str) -> Option<PathBuf> {
    if binary.contains('/') {
        return Some(PathBuf::from(binary)).filter(|path| path.exists());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(binary))
        .find(|file| file.is_file())
}

/// `runc features`; a runtime that can't tell has none.
fn features(runtime: &Path) -> Option<Any> {
    #[allow(
        clippy::disallowed_methods,
        reason = "-info is a command: it has no loop to block"
    )]
    let output = Command::new(runtime).arg("features").output().ok()?;
    let told = output.status.success() && output.stdout.starts_with(b"{");
    told.then(|| Any {
        type_url: FEATURES.into(),
        value: output.stdout,
    })
}
