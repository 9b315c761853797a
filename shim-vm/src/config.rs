// SPDX-License-Identifier: Apache-2.0
//! What the operator has set: `/etc/dunnage/shim-vm.toml`, and the annotations it allows.
//!
//! Annotations are `io.dunnage.vm.<name>`, with the names of the file's fields.

use crate::limits::PERIOD;
use crate::pod::Overhead;
use crate::{container_sockets, pool, sockets};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;
use task::record::{ADOPT, ON_SHIM_DEATH};

/// Where the file is, unless `DUNNAGE_VM_CONFIG` says otherwise.
const FILE: &str = "/etc/dunnage/shim-vm.toml";
const PREFIX: &str = "io.dunnage.vm.";
/// Annotations that are allowed unless the file has a list: none of them gives a container's owner
/// anything of the host's.
const ALLOWED: [&str; 5] = ["memory", "vcpus", "accel", "debug_console", WRITABLE];
/// The annotation that is about a container, and not about its VM.
const WRITABLE: &str = "writable";
/// What a VM has, and the least a guest boots with, in MiB.
const MEMORY: u64 = 512;
const LEAST_MEMORY: u64 = 96;
/// The most that a microvm has.
const MOST_VCPUS: u32 = 64;
/// MiB beyond which nothing that is a size of memory makes sense.
const MOST_MEMORY: u64 = 1 << 24;
/// What a small container's files, and some that are open, take.
const LEAST_FILES: u64 = 4096;
/// A file and a stream for each.
const MOST_SOCKETS: u64 = 16;
/// What a guest needs for itself, beside a container's limit, in MiB.
const GUEST_SHARE: u64 = 128;

/// What runs the VM's processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// KVM where it works, which is tried once, else TCG.
    Auto,
    Kvm,
    Tcg,
}

/// Where what a container writes to its root filesystem goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Writable {
    /// Where containerd's mounts say.
    Host,
    /// Into the guest's memory.
    Memory,
    /// Into a filesystem of its own, a file beside the directory that containerd's mounts name.
    File,
}

/// What becomes of a VM whose shim was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDeath {
    /// It goes on, and a new shim takes it over.
    Adopt,
    /// It ends with its shim.
    Kill,
    /// Adopt, if who starts the shim says that it can find another in its place.
    Auto,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
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
    /// Seconds that the guest may take to show init's exit after SIGKILL, or to answer a Delete; then
    /// its VM is killed.
    pub kill_timeout: u64,
    pub on_shim_death: OnDeath,
    /// Seconds that a VM waits for another shim.
    pub adopt_timeout: u64,
    /// The guest's console goes to the shim's log.
    pub debug_console: bool,
    /// Whether an operator may run programs in guests.
    pub debug_exec: bool,
    /// The host's sockets that containers may connect to, where they have them.
    pub sockets: Vec<PathBuf>,
    /// Sockets that containers make in volumes, by the host's paths, which the host may connect to.
    pub container_sockets: Vec<PathBuf>,
    /// The annotations that count.
    pub annotations: Vec<String>,
    /// The most that a VM may have, whatever its container says, in MiB and in processors; 0: as
    /// much as this machine has.
    pub max_memory: u64,
    pub max_vcpus: u32,
    /// What a VM's cgroup may use beside the limits of its containers, in MiB and in hundredths of
    /// a processor.
    pub overhead_memory: u64,
    pub overhead_cpu: u64,
    /// The most files that the server of a VM's files has open: one for each that the guest knows.
    pub max_open_files: u64,
    pub writable: Writable,
    /// How large such a file may become, in MiB.
    pub writable_size: u64,
    /// The users that VMs run as, each another: this one and those after it, so many.
    pub first_user: u32,
    pub users: u32,
    /// VMs in store.
    pub pool: pool::Settings,
    /// VMs go on as one that was booted and saved, where there is one.
    pub templates: bool,
    /// VMs can be saved with their container, and restored.
    pub checkpoints: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            accel: Accel::Auto,
            memory: MEMORY,
            vcpus: 1,
            image: PathBuf::new(),
            kernel: PathBuf::new(),
            initrd: PathBuf::new(),
            qemu: "qemu-system-x86_64".into(),
            start_timeout: 0,
            kill_timeout: 10,
            on_shim_death: OnDeath::Auto,
            adopt_timeout: 30,
            debug_console: false,
            debug_exec: false,
            sockets: Vec::new(),
            container_sockets: Vec::new(),
            annotations: ALLOWED.map(str::to_owned).into(),
            max_memory: 0,
            max_vcpus: 0,
            overhead_memory: 384,
            overhead_cpu: 25,
            max_open_files: 1 << 20,
            writable: Writable::Host,
            writable_size: 10 << 10,
            first_user: 0x7000_0000,
            users: 1 << 16,
            pool: pool::Settings::default(),
            templates: false,
            checkpoints: false,
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

impl Wanted {
    /// The annotations of ours that a VM is booted with.
    pub fn of_the_machine(&self) -> impl Iterator<Item = (&String, &String)> {
        let ours = |key: &str| {
            key.strip_prefix(PREFIX)
                .is_some_and(|name| name != WRITABLE)
        };
        self.annotations.iter().filter(move |(key, _)| ours(key))
    }
}

impl Config {
    /// The file that counts.
    pub fn file() -> PathBuf {
        let path = std::env::var_os("DUNNAGE_VM_CONFIG");
        path.map_or_else(|| PathBuf::from(FILE), PathBuf::from)
    }

    /// The file's settings; without a file the defaults.
    ///
    /// # Errors
    /// If the file is there and is wrong: it names the field.
    pub fn load() -> Result<Self, String> {
        let path = Self::file();
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
        // A name alone is looked for in PATH.
        if self.qemu.components().count() > 1 {
            self.qemu = dir.join(self.qemu);
        }
        self
    }

    /// How long a VM waits for another shim when its own was killed; `None`: it ends.
    pub fn outlives(&self) -> Option<Duration> {
        let adopts = match self.on_shim_death {
            OnDeath::Adopt => true,
            OnDeath::Kill => false,
            OnDeath::Auto => std::env::var_os(ON_SHIM_DEATH).is_some_and(|value| value == ADOPT),
        };
        adopts.then(|| Duration::from_secs(self.adopt_timeout))
    }

    fn check(&self) -> Result<(), String> {
        let within = |name: &str, value: u64, least: u64, most: u64, unit: &str| {
            let right = (least..=most).contains(&value);
            let why = || format!("{name} = {value}: not within {least} to {most}{unit}");
            if right { Ok(()) } else { Err(why()) }
        };
        let (memory, vcpus) = (self.most_memory(), self.most_vcpus().into());
        within("memory", self.memory, LEAST_MEMORY, memory, " MiB")?;
        within("vcpus", self.vcpus.into(), 1, vcpus, "")?;
        self.pool.check(
            |name, value| within(name, value, LEAST_MEMORY, memory, " MiB"),
            |name, value| within(name, value.into(), 1, vcpus, ""),
        )?;
        let (most, overhead) = (MOST_MEMORY, self.overhead_memory);
        within("overhead_memory", overhead, 0, most, " MiB")?;
        within("overhead_cpu", self.overhead_cpu, 0, 100_000, "")?;
        let files = self.max_open_files;
        within("max_open_files", files, LEAST_FILES, 1 << 30, "")?;
        within("writable_size", self.writable_size, 1, MOST_MEMORY, " MiB")?;
        for (name, paths) in [
            ("sockets", &self.sockets),
            ("container_sockets", &self.container_sockets),
        ] {
            within(name, paths.len() as u64, 0, MOST_SOCKETS, "")?;
            if let Some(path) = paths.iter().find(|path| path.is_relative()) {
                return Err(format!("{name}: {path:?} is not an absolute path"));
            }
        }
        container_sockets::check(&self.container_sockets)?;
        // Neither root, nor what stands for nobody at all (chown(2)).
        let users = u64::from(u32::MAX - self.first_user);
        within("first_user", self.first_user.into(), 1, u32::MAX.into(), "")?;
        within("users", self.users.into(), 1, users, "")
    }

    /// The most that a VM may have, in MiB.
    pub fn most_memory(&self) -> u64 {
        match self.max_memory {
            0 => this_machines_memory().max(MEMORY),
            most => most,
        }
        .min(MOST_MEMORY)
    }

    pub fn most_vcpus(&self) -> u32 {
        let own = std::thread::available_parallelism().map_or(1, NonZero::get);
        match self.max_vcpus {
            0 => u32::try_from(own).unwrap_or(MOST_VCPUS),
            most => most,
        }
        .min(MOST_VCPUS)
    }

    /// What a VM's cgroup may use beside its containers.
    pub fn overhead(&self) -> Overhead {
        Overhead {
            memory: self.overhead_memory << 20,
            cpu: self.overhead_cpu * PERIOD / 100,
        }
    }

    /// The settings for a container: its limits make a default, its annotations win.
    ///
    /// # Errors
    /// If an annotation is not allowed, or is wrong: it names it.
    pub fn wanted(&self, wanted: &Wanted) -> Result<Self, String> {
        let mut config = self.clone();
        if let Some(limit) = wanted.memory {
            let needs = limit.div_ceil(1 << 20) + GUEST_SHARE;
            config.memory = config.memory.max(needs).min(self.most_memory());
        }
        if let Some(vcpus) = wanted.vcpus {
            config.vcpus = config.vcpus.max(vcpus).min(self.most_vcpus());
        }
        for (key, value) in &wanted.annotations {
            let Some(name) = key.strip_prefix(PREFIX) else {
                continue;
            };
            if !self.annotations.iter().any(|allowed| allowed == name) {
                let file = Self::file();
                let file = file.display();
                return Err(format!("annotation {key}: not allowed by {file}"));
            }
            let set = config.set(name, value).and_then(|()| config.check());
            set.map_err(|why| format!("annotation {key}={value:?}: {why}"))?;
        }
        Ok(config)
    }

    /// With these settings, each `name=value` as an annotation has it.
    ///
    /// # Errors
    /// If one is wrong: it names it.
    pub fn with(mut self, settings: &[&str]) -> Result<Self, String> {
        for setting in settings {
            let (name, value) = setting.split_once('=').unwrap_or((setting, ""));
            let set = self.set(name, value).and_then(|()| self.check());
            set.map_err(|why| format!("{setting}: {why}"))?;
        }
        Ok(self)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let number = |value: &str| value.parse::<u64>().map_err(|_| "not a number".to_owned());
        match name {
            "memory" => self.memory = number(value)?,
            "vcpus" => self.vcpus = u32::try_from(number(value)?).unwrap_or(u32::MAX),
            "start_timeout" => self.start_timeout = number(value)?,
            "kernel" => self.kernel = absolute(value)?,
            "initrd" => self.initrd = absolute(value)?,
            "sockets" => self.sockets = sockets::list(value)?,
            "container_sockets" => self.container_sockets = sockets::list(value)?,
            "accel" => {
                self.accel = match value {
                    "auto" => Accel::Auto,
                    "kvm" => Accel::Kvm,
                    "tcg" => Accel::Tcg,
                    _ => return Err("not auto, kvm or tcg".into()),
                }
            }
            WRITABLE => {
                self.writable = match value {
                    "host" => Writable::Host,
                    "memory" => Writable::Memory,
                    "file" => Writable::File,
                    _ => return Err("not host, memory or file".into()),
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

    /// How long the guest may owe what it must do.
    pub fn patience(&self) -> Duration {
        Duration::from_secs(self.kill_timeout.max(1))
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

/// In MiB.
fn this_machines_memory() -> u64 {
    nix::sys::sysinfo::sysinfo().map_or(MOST_MEMORY, |machine| machine.ram_total() >> 20)
}

fn absolute(value: &str) -> Result<PathBuf, String> {
    let path = Path::new(value);
    let absolute = path.is_absolute().then(|| path.to_owned());
    absolute.ok_or_else(|| "not an absolute path".to_owned())
}

#[cfg(test)]
mod tests;
