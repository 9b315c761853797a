// SPDX-License-Identifier: Apache-2.0
//! The guest image: finding it, and finding out beforehand whether it will do.

use crate::config::Config;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Tuned is used when it is there.
const FLAVOURS: [&str; 2] = ["tuned", "distro"];
/// Without these the agent is never heard of, or has no files.
const DRIVERS: [&str; 3] = ["virtio_mmio", "virtio_console", "virtiofs"];

/// What is booted.
#[derive(Clone, Debug)]
pub struct Image {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub abilities: Abilities,
}

/// What not every kernel can; of one that comes without guest.toml nothing is known.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Abilities {
    /// It finds its devices by its command line, and needs no ACPI.
    pub command_line_devices: bool,
    /// It zeroes the pages that the file server will write into.
    pub zeroes_file_pages: bool,
}

/// The agent that goes with this shim: its version, and its build.
pub const AGENT: (&str, &str) = (env!("CARGO_PKG_VERSION"), env!("AGENT_BUILD"));

/// The image's guest.toml, as far as it decides anything.
#[derive(Debug, Deserialize)]
struct Facts {
    agent: String,
    agent_build: String,
    drivers: Vec<String>,
    #[serde(flatten)]
    abilities: Abilities,
}

impl Image {
    /// The image that `config` means.
    ///
    /// # Errors
    /// If there is none, or it does not fit this shim; the text names the file.
    pub fn find(config: &Config) -> Result<Self, String> {
        let (kernel, initrd) = (&config.kernel, &config.initrd);
        let set = |path: &Path| path != Path::new("");
        if set(kernel) && set(initrd) {
            return Self::of(kernel.clone(), initrd.clone(), Abilities::default());
        }
        let found = directories(config)?.into_iter().find_map(|dir| {
            let flavour = |flavour: &&&str| dir.join(flavour).join("guest.toml").is_file();
            Some(dir.join(FLAVOURS.iter().find(flavour)?))
        });
        let Some(dir) = found else {
            let places = directories(config)?;
            let places: Vec<_> = places.iter().map(|dir| dir.display().to_string()).collect();
            let places = places.join(", ");
            return Err(format!(
                "no guest image (guest.toml) below {places}: run make guest"
            ));
        };
        let facts = dir.join("guest.toml");
        let facts = check(&facts).map_err(|why| format!("{}: {why}", facts.display()))?;
        let or = |own: &PathBuf, name: &str| {
            if set(own) {
                own.clone()
            } else {
                dir.join(name)
            }
        };
        let abilities = if set(kernel) {
            Abilities::default()
        } else {
            facts.abilities
        };
        Self::of(or(kernel, "vmlinux"), or(initrd, "initrd"), abilities)
    }

    fn of(kernel: PathBuf, initrd: PathBuf, abilities: Abilities) -> Result<Self, String> {
        for path in [&kernel, &initrd] {
            std::fs::File::open(path).map_err(|e| format!("open {}: {e}", path.display()))?;
        }
        Ok(Self {
            kernel,
            initrd,
            abilities,
        })
    }
}

/// Where images may be.
fn directories(config: &Config) -> Result<Vec<PathBuf>, String> {
    if config.image != Path::new("") {
        return Ok(vec![config.image.clone()]);
    }
    let exe = std::env::current_exe().map_err(|e| format!("find own binary: {e}"))?;
    let beside = exe.parent().unwrap_or(Path::new("/"));
    Ok(vec![
        beside.join("../lib/dunnage/guest"),
        beside.join("guest"),
        "/usr/local/lib/dunnage/guest".into(),
        "/usr/lib/dunnage/guest".into(),
    ])
}

fn check(path: &Path) -> Result<Facts, String> {
    let text = task::proc::text(path).map_err(|e| e.to_string())?;
    let facts: Facts = toml::from_str(&text).map_err(|e| e.to_string())?;
    for (key, theirs, ours) in [
        ("agent", &facts.agent, AGENT.0),
        ("agent_build", &facts.agent_build, AGENT.1),
    ] {
        if theirs != ours {
            return Err(format!(
                "{key} = {theirs:?}, but this shim goes with {ours:?}: make guest anew"
            ));
        }
    }
    let missing = |driver: &&&str| !facts.drivers.iter().any(|has| has == **driver);
    match DRIVERS.iter().find(missing) {
        Some(driver) => Err(format!("drivers: the kernel has no {driver}")),
        None => Ok(facts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_that_does_not_fit_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            image: dir.path().to_owned(),
            ..Config::default()
        };
        let why = Image::find(&config).unwrap_err();
        assert!(why.contains("make guest"), "{why}");
        let distro = dir.path().join("distro");
        std::fs::create_dir(&distro).unwrap();
        let made_by = |agent: &str, build: &str, drivers: &str| {
            let agent = format!("agent = \"{agent}\"\nagent_build = \"{build}\"");
            let text = format!("flavour = \"distro\"\n{agent}\ndrivers = [{drivers}]\n");
            std::fs::write(distro.join("guest.toml"), text).unwrap();
            Image::find(&config)
        };
        let (ours, build) = AGENT;
        let why = made_by("9.9.9", build, "").unwrap_err();
        assert!(why.contains("agent = \"9.9.9\""), "{why}");
        let why = made_by(ours, "0123", "").unwrap_err();
        assert!(why.contains("agent_build = \"0123\""), "{why}");
        let facts = |agent: &str, drivers: &str| made_by(agent, build, drivers);
        let why = facts(ours, "\"virtio_mmio\", \"virtiofs\"").unwrap_err();
        assert!(why.contains("no virtio_console"), "{why}");
        let all = "\"virtio_mmio\", \"virtiofs\", \"virtio_console\"";
        let why = facts(ours, all).unwrap_err();
        assert!(why.contains("vmlinux"), "{why}");
        for name in ["vmlinux", "initrd"] {
            std::fs::write(distro.join(name), "").unwrap();
        }
        assert_eq!(facts(ours, all).unwrap().kernel, distro.join("vmlinux"));
    }
}
