// SPDX-License-Identifier: Apache-2.0
//! Who is measured: our shim, those it can be replaced by, and the bare runtime below all.

use harness::containerd::release::Release;
use harness::peers;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// A shim, as its binary.
#[derive(Clone, Debug)]
pub struct Contender {
    /// In the raw results, e.g. `go-2.1`.
    pub key: &'static str,
    /// In tables and plots, e.g. `Go 2.1`.
    pub label: &'static str,
    pub binary: PathBuf,
    /// Where it came from: a Debian package's version, or a crate's.
    pub version: String,
}

pub const OURS: &str = "dunnage";
/// The rival that the goals are stated against.
pub const RIVAL: &str = "go-2.1";
/// The key of bare `runc` in results.
pub const RUNC: &str = "runc";

/// Those that are installed; a missing one is reported by name.
pub fn all() -> Vec<Contender> {
    let mut found = vec![Contender {
        key: OURS,
        label: "dunnage",
        binary: peers::shim().to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }];
    let go = [
        ("1.6", "go-1.6", "Go 1.6"),
        ("1.7", "go-1.7", "Go 1.7"),
        ("2.1", RIVAL, "Go 2.1"),
    ];
    for (name, key, label) in go {
        match Release::find(name) {
            Some(release) => found.push(Contender {
                key,
                label,
                binary: release.go_shim(),
                version: format!("Debian {}", release.version),
            }),
            None => eprintln!("bench: containerd {name} is MISSING (make setup)"),
        }
    }
    let rust = peers::peers().join("rust-shim");
    match fs::read_to_string(rust.join("version")) {
        Ok(version) => found.push(Contender {
            key: "rust-0.2",
            label: "containerd-runc-shim",
            binary: rust.join("bin/containerd-shim-runc-v2-rs"),
            version: format!("crate {}", version.trim()),
        }),
        Err(_) => {
            eprintln!("bench: the crate containerd-runc-shim is MISSING (make bench gets it)")
        }
    }
    found
}

/// `runc --version`'s first line.
pub fn runtime_version() -> String {
    let output = Command::new(peers::runc()).arg("--version").output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
    text.unwrap_or_default()
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}
