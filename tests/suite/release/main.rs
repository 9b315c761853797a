// SPDX-License-Identifier: Apache-2.0
//! What is released, and how it gets onto a machine and off it again.

mod archive;
mod chart;
mod fleet;
mod machine;
mod node;
mod packages;
mod rpms;
mod schema;
mod uninstall;
mod version;

use harness::{manager, peers, program};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The programs of a release, as the tests were given them: whoever builds only some of them
/// has them in several places.
fn programs() -> [PathBuf; 5] {
    let manager = manager::binary();
    let image = manager.with_file_name("dunnage-image");
    let shim = peers::shim().to_owned();
    [
        shim,
        peers::vm_shim(),
        manager.to_owned(),
        image,
        installer(),
    ]
}

/// What puts the shims on nodes of Kubernetes: `NODE`, else beside the manager.
fn installer() -> PathBuf {
    let default = || manager::binary().with_file_name("dunnage-node");
    std::env::var_os("NODE").map_or_else(default, PathBuf::from)
}

/// A directory with all of them, as `target/dist` is.
fn dist(dir: &Path) -> PathBuf {
    let dist = dir.join("dist");
    std::fs::create_dir(&dist).expect("a new directory");
    for path in programs() {
        let name = path.file_name().expect("a program's file");
        program::copy(&path, &dist.join(name));
    }
    dist
}

/// Where the guest image is that goes with them.
fn guest() -> PathBuf {
    let config = std::env::var_os("DUNNAGE_VM_CONFIG").map(std::fs::read_to_string);
    let config = config.map(|text| text.expect("DUNNAGE_VM_CONFIG"));
    let image = config.as_ref().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("image = "));
        Some(PathBuf::from(line?.trim_matches('"')))
    });
    image.unwrap_or_else(|| peers::workspace().join("target/dist/guest"))
}

/// Runs a script of the checkout, and panics with what it said unless it ends well; else that.
#[track_caller]
fn script(command: &mut Command) -> String {
    let output = command
        .current_dir(peers::workspace())
        .output()
        .expect("bash");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}{complained}");
    said
}
