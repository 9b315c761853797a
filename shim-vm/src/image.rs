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
}

/// The image's guest.toml, as far as it decides anything.
#[derive(Debug, Deserialize)]
struct Facts {
    agent: String,
    drivers: Vec<String>,
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
            return Self::of(kernel.clone(), initrd.clone());
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
        check(&facts).map_err(|why| format!("{}: {why}", facts.display()))?;
        let or = |own: &PathBuf, name: &str| {
            if set(own) {
                own.clone()
            } else {
                dir.join(name)
            }
        };
        Self::of(or(kernel, "vmlinux"), or(initrd, "initrd"))
    }

    fn of(kernel: PathBuf, initrd: PathBuf) -> Result<Self, String> {
        for path in [&kernel, &initrd] {
            std::fs::File::open(path).map_err(|e| format!("open {}: {e}", path.display()))?;
        }
        Ok(Self { kernel, initrd })
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

fn check(path: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let facts: Facts = toml::from_str(&text).map_err(|e| e.to_string())?;
    let ours = env!("CARGO_PKG_VERSION");
    if facts.agent != ours {
        let theirs = facts.agent;
        return Err(format!(
            "agent = {theirs:?}, but this shim is {ours}: make guest anew"
        ));
    }
    let missing = |driver: &&&str| !facts.drivers.iter().any(|has| has == **driver);
    match DRIVERS.iter().find(missing) {
        Some(driver) => Err(format!("drivers: the kernel has no {driver}")),
        None => Ok(()),
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
        let facts = |agent: &str, drivers: &str| {
            let text =
                format!("flavour = \"distro\"\nagent = \"{agent}\"\ndrivers = [{drivers}]\n");
            std::fs::write(distro.join("guest.toml"), text).unwrap();
            Image::find(&config)
        };
        let why = facts("9.9.9", "").unwrap_err();
        assert!(why.contains("agent = \"9.9.9\""), "{why}");
        let ours = env!("CARGO_PKG_VERSION");
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
