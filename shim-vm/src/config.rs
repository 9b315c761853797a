//! What the operator has set: `/etc/dunnage/shim-vm.toml`, and the annotations it allows.
//!
//! Annotations are `io.dunnage.vm.<name>`, with the names of the file's fields.

use serde::Deserialize;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the file is, unless `DUNNAGE_VM_CONFIG` says otherwise.
const FILE: &str = "/etc/dunnage/shim-vm.toml";
const PREFIX: &str = "io.dunnage.vm.";
/// Annotations that are allowed unless the file has a list: none of them gives a container's owner
/// anything of the host's.
const ALLOWED: [&str; 4] = ["memory", "vcpus", "accel", "debug_console"];
/// The least a guest boots with, and the most that is sold, in MiB.
const MEMORY: std::ops::RangeInclusive<u64> = 96..=1 << 20;
const VCPUS: std::ops::RangeInclusive<u32> = 1..=64;
/// What a guest needs for itself, beside a container's limit, in MiB.
const GUEST_SHARE: u64 = 128;

/// What runs the VM's processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// KVM where it works, which is tried once, else TCG.
    Auto,
    Kvm,
    Tcg,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub accel: Accel,
    /// MiB of a VM whose container has no limit.
    pub memory: u64,
    pub vcpus: u32,
    /// The directory with the guest images; empty: looked for beside the shim, as installed.
    pub image: PathBuf,
    /// In place of the image's.
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub qemu: PathBuf,
    /// Seconds from the start of QEMU to the agent's hello; 0: 10 with KVM, 30 with TCG.
    pub start_timeout: u64,
    /// The guest's console goes to the shim's log.
    pub debug_console: bool,
    /// The annotations that count.
    pub annotations: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            accel: Accel::Auto,
            memory: 512,
            vcpus: 1,
            image: PathBuf::new(),
            kernel: PathBuf::new(),
            initrd: PathBuf::new(),
            qemu: "qemu-system-x86_64".into(),
            start_timeout: 0,
            debug_console: false,
            annotations: ALLOWED.map(str::to_owned).into(),
        }
    }
}

/// What a container's config.json says of the machine it wants.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// The memory limit, in bytes.
    pub memory: Option<u64>,
    /// Processors, rounded up.
    pub vcpus: Option<u32>,
    pub annotations: HashMap<String, String>,
}

impl Config {
    /// The file's settings; without a file the defaults.
    ///
    /// # Errors
    /// If the file is there and is wrong: it names the field.
    pub fn load() -> Result<Self, String> {
        let path = std::env::var_os("DUNNAGE_VM_CONFIG");
        let path = path.map_or_else(|| PathBuf::from(FILE), PathBuf::from);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(format!("open {}: {e}", path.display())),
        };
        let config = Self::parse(&text).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(config.relative_to(path.parent().unwrap_or(Path::new("/"))))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|e| e.to_string())?;
        config.check()?;
        Ok(config)
    }

    /// Files that are named by relative paths are beside the one that names them.
    fn relative_to(mut self, dir: &Path) -> Self {
        for path in [&mut self.image, &mut self.kernel, &mut self.initrd] {
            if *path != Path::new("") {
                *path = dir.join(&*path);
            }
        }
        self
    }

    fn check(&self) -> Result<(), String> {
        if !MEMORY.contains(&self.memory) {
            let (least, most) = (MEMORY.start(), MEMORY.end());
            let memory = self.memory;
            return Err(format!(
                "memory = {memory}: not within {least} to {most} MiB"
            ));
        }
        if !VCPUS.contains(&self.vcpus) {
            let (least, most) = (VCPUS.start(), VCPUS.end());
            return Err(format!(
                "vcpus = {}: not within {least} to {most}",
                self.vcpus
            ));
        }
        Ok(())
    }

    /// The settings for a container: its limits make a default, its annotations win.
    ///
    /// # Errors
    /// If an annotation is not allowed, or is wrong: it names it.
    pub fn wanted(&self, wanted: &Wanted) -> Result<Self, String> {
        let mut config = self.clone();
        if let Some(limit) = wanted.memory {
            let needs = limit.div_ceil(1 << 20) + GUEST_SHARE;
            config.memory = config.memory.max(needs).min(*MEMORY.end());
        }
        if let Some(vcpus) = wanted.vcpus {
            config.vcpus = config.vcpus.max(vcpus).min(*VCPUS.end());
        }
        for (key, value) in &wanted.annotations {
            let Some(name) = key.strip_prefix(PREFIX) else {
                continue;
            };
            if !self.annotations.iter().any(|allowed| allowed == name) {
                return Err(format!("annotation {key}: not allowed by {FILE}"));
            }
            let set = config.set(name, value).and_then(|()| config.check());
            set.map_err(|why| format!("annotation {key}={value:?}: {why}"))?;
        }
        Ok(config)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let number = |value: &str| value.parse::<u64>().map_err(|_| "not a number".to_owned());
        match name {
            "memory" => self.memory = number(value)?,
            "vcpus" => self.vcpus = u32::try_from(number(value)?).unwrap_or(u32::MAX),
            "start_timeout" => self.start_timeout = number(value)?,
            "kernel" => self.kernel = absolute(value)?,
            "initrd" => self.initrd = absolute(value)?,
            "accel" => {
                self.accel = match value {
                    "auto" => Accel::Auto,
                    "kvm" => Accel::Kvm,
                    "tcg" => Accel::Tcg,
                    _ => return Err("not auto, kvm or tcg".into()),
                }
            }
            "debug_console" => {
                let switch = value.parse();
                self.debug_console = switch.map_err(|_| "not true or false".to_owned())?;
            }
            _ => return Err("there is no such setting".into()),
        }
        Ok(())
    }

    /// How long a boot may take.
    pub fn deadline(&self, accel: Accel) -> Duration {
        Duration::from_secs(match (self.start_timeout, accel) {
            (0, Accel::Kvm) => 10,
            (0, _) => 30,
            (seconds, _) => seconds,
        })
    }
}

fn absolute(value: &str) -> Result<PathBuf, String> {
    let path = Path::new(value);
    let absolute = path.is_absolute().then(|| path.to_owned());
    absolute.ok_or_else(|| "not an absolute path".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_settings_are_named() {
        for (text, named) in [
            ("memory = 1", "memory = 1: not within 96"),
            ("vcpus = 0", "vcpus = 0: not within 1"),
            ("accel = \"xen\"", "accel"),
            ("memroy = 512", "memroy"),
        ] {
            let why = Config::parse(text).unwrap_err();
            assert!(why.contains(named), "{text}: {why}");
        }
        assert_eq!(Config::parse("accel = \"tcg\"").unwrap().accel, Accel::Tcg);
    }

    #[test]
    fn limits_make_defaults_and_annotations_win() {
        let annotated = |list: &[(&str, &str)], memory| Wanted {
            memory,
            vcpus: Some(3),
            annotations: list
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        };
        let config = Config::default();
        let plain = config.wanted(&annotated(&[("other", "x")], Some(1 << 30)));
        let plain = plain.unwrap();
        assert_eq!((plain.memory, plain.vcpus), (1024 + GUEST_SHARE, 3));
        let small = config.wanted(&annotated(&[], Some(1 << 20))).unwrap();
        assert_eq!(small.memory, 512);
        let set = [
            ("io.dunnage.vm.memory", "256"),
            ("io.dunnage.vm.accel", "tcg"),
        ];
        let set = config.wanted(&annotated(&set, Some(1 << 30))).unwrap();
        assert_eq!((set.memory, set.accel), (256, Accel::Tcg));
        let refused = |key: &str, value: &str| {
            let wanted = annotated(&[(key, value)], None);
            config.wanted(&wanted).unwrap_err()
        };
        assert!(
            refused("io.dunnage.vm.kernel", "/x").contains("io.dunnage.vm.kernel: not allowed")
        );
        let why = refused("io.dunnage.vm.memory", "lots");
        assert_eq!(
            why,
            "annotation io.dunnage.vm.memory=\"lots\": not a number"
        );
        assert!(refused("io.dunnage.vm.vcpus", "9999").contains("not within"));
    }
}
